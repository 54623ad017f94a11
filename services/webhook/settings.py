"""The intake's own settings."""

from pydantic import Field, SecretStr

from seedwork.chassis.settings import CommaSeparated, ServiceSettings


class WebhookSettings(ServiceSettings):
    """How pushes are taken in and repositories are asked."""

    secret_key: SecretStr | None = None
    """The Fernet key that encrypts webhook secrets at rest: 32 bytes, URL-safe base64.

    Default: made at the first start and kept in `<home>/webhook/secret.key` (mode 0600). Several replicas share one.
    """

    source_allow: CommaSeparated = ("https://github.com/",)
    """URL prefixes of the repositories that knarr may talk to; `source` has the same setting."""

    source_credentials: SecretStr | None = None
    """`prefix=token` pairs for private repositories; `source` has the same setting and says more."""

    poll_s: float = Field(default=180.0, ge=0)
    """Seconds between two questions for an app's ref; 0 turns asking off.

    Three minutes bound how late a push is whose webhook got lost, at 20 requests an hour and app.
    """

    poll_at_once: int = Field(default=4, ge=1)
    """Repositories asked at the same time: each is one git process of some 10 MB."""

    poll_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds for one answer; a `git ls-remote` over the internet takes one or two."""

    upload_max_bytes: int = Field(default=200 * 1000 * 1000, gt=0)
    """The largest archive that may be uploaded; a source tree of more is almost always a build by mistake."""

    source_max_bytes: int = Field(default=1024 * 1024 * 1024, gt=0)
    """Bytes of an app's source, uncompressed; `source` has the same setting, and this one is told to clients."""

    source_max_entries: int = Field(default=100_000, gt=0)
    """Files, folders and links of an app's source; `source` has the same setting, and this one is told to clients."""

    delivery_body_keep_days: float = Field(default=30.0, ge=0)
    """Days for which a delivery can be sent again; then its raw body goes, and 0 keeps it for ever.

    What arrived, its digest and what became of it stay for ever, so a copy that comes late is still a duplicate. A body
    has some 20 KB, so a thousand pushes a day come to 600 MB.
    """
