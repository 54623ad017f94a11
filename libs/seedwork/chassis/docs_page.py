"""`/docs`: the API to look at and to try, with Swagger UI from an installed package.

Nothing is fetched from elsewhere: the page works on a machine without internet, and nobody is told who reads it.
"""

import base64
import hashlib
import importlib.resources
import re
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from seedwork.errors import NotFound

_FOLDER = Path(str(importlib.resources.files("fastapi_swagger"))) / "resources"
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}


def router(app: FastAPI) -> APIRouter:
    """The page of this app, which must have been made with `docs_url=None`, and the files that it loads."""
    routes = APIRouter(include_in_schema=False)
    page = get_swagger_ui_html(
        openapi_url="openapi.json",  # relative, as the others: a proxy may put a path before
        title=app.title,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body))

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return page

    @routes.get("/docs/{name}")
    async def file(name: str) -> FileResponse:
        if name not in _FILES:
            raise NotFound(f"There is no /docs/{name[:100]}", todo="/docs is the page.")
        return FileResponse(_FOLDER / name, media_type=_FILES[name], headers={"Cache-Control": "max-age=86400"})

    return routes


def _policy(page: bytes) -> str:
    """Allow the page what it loads, and the scripts in it by their digests; no other page may frame it."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in scripts)
    return (
        f"default-src 'none'; script-src 'self' {digests}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
