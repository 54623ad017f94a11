"""TLS to servers outside: a file with an authority's certificate in, a context that checks servers by it out.

Guaranteed by a context from here: the connection is encrypted, an authority that is trusted has signed the server's
certificate, and the name by which we call the server stands in it. A file is read when a client is made, so a new one
wants a restart.
"""

import ssl

from seedwork.errors import Misconfigured


def trusting(file: str, *, setting: str, besides: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """What a client checks servers by.

    Args:
        file: The certificates of one or more authorities, PEM.
        setting: The setting that names it, for people.
        besides: Trust these authorities, too; none: only those of the file.

    Raises:
        Misconfigured: The file cannot be read, or holds no certificate.
    """
    context = besides or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=file)
    except OSError as error:  # a file without certificates is an SSLError, which is one
        raise Misconfigured(
            f"The authority's certificate {file} cannot be used",
            why=str(error.strerror or error),
            todo=f"{setting} must name a file with one or more certificates (PEM) that we may read.",
        ) from error
    return context


def why_untrusted(error: BaseException | None) -> str | None:
    """Why TLS did not come about, if this error or one that led to it says so; None: it is about something else.

    A connection that breaks is none of these, whatever it was used for.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the server's certificate is not accepted: {error.verify_message}"
        if type(error) is ssl.SSLError:  # its subclasses are broken connections
            return f"the server does not speak TLS as we do: {error.reason or error}"
        error = error.__cause__ or error.__context__
    return None


def what_to_do(setting: str) -> str:
    """The advice that goes with `why_untrusted`."""
    return (
        "The server needs a certificate for the name by which it is called, "
        f"signed by an authority in the file that {setting} names."
    )
