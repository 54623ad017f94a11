"""The password file of a registry that knarr starts."""

USER = "knarr"


def htpasswd(password: str) -> bytes:
    """Return the file's text for `USER`; `registry:2` reads bcrypt only.

    Cost 5: the password has more than 128 random bits, so a slow hash protects nothing, and each request pays for it.
    """
    import bcrypt  # an extra: only who starts a registry needs it

    return f"{USER}:".encode() + bcrypt.hashpw(password.encode(), bcrypt.gensalt(5)) + b"\n"
