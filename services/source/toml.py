"""TOML files of a repository: bytes in, values that are checked by their types out."""

from seedwork import bounded_toml
from services.source.errors import AppInvalid
from services.source.manifests import JsonObject, read_text


def read_toml(file: str, data: bytes, max_bytes: int) -> JsonObject:
    """Read a TOML file.

    Raises:
        AppInvalid: It is no TOML, too large, or nested too deeply.
    """
    text = read_text(file, data, max_bytes)
    try:
        return JsonObject(file, "", bounded_toml.loads(text))
    except bounded_toml.TooComplex as error:
        raise AppInvalid(f"{file} {error.what}", todo=f"Shorten it: {error.allowed}.") from error
    except ValueError as error:
        raise AppInvalid(
            f"{file} cannot be read", why=f"it is no TOML: {str(error)[:300]}", todo="Correct it."
        ) from error
