"""The router's own answers: a page that says why an app does not answer."""

import html
from http import HTTPStatus

from seedwork.chassis.server_protocol import PAGE_HEADERS

_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def page(status: int, title: str, why: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the header fields and the body of an answer."""
    name = f"{status} {HTTPStatus(status).phrase}"
    body = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        '<body style="font-family:system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem">'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(why)}</p><p><small>{name} · knarr</small></p>\n"
    ).encode()
    headers = [
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Content-Length", str(len(body)).encode()),
        (b"Cache-Control", b"no-store"),
        (b"Content-Security-Policy", _POLICY),
        *PAGE_HEADERS,
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"Retry-After", b"1"))
    return headers, body
