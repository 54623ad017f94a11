"""The page that shows the API."""

import re

from seedwork.chassis.service import Service
from seedwork.testing.http import running


async def test_the_page_loads_everything_from_the_service_itself(service: Service) -> None:
    """It works on a machine without internet, and from behind a path of a proxy."""
    async with running(service.app) as client:
        page = (await client.get("/docs")).text
        loaded = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page)
        places = {first or second for first, second in loaded}
        assert places == {
            "docs/swagger-ui-bundle.js",
            "docs/swagger-ui.css",
            "docs/favicon-32x32.png",
            "openapi.json",
        }
        assert "://" not in page
        for place in places:
            assert (await client.get(f"/{place}")).status_code == 200
        script = await client.get("/docs/swagger-ui-bundle.js")
        assert script.headers["Content-Type"].startswith("text/javascript")
        assert "SwaggerUIBundle" in script.text


async def test_no_other_file_is_given(service: Service) -> None:
    """Only those that the page loads."""
    async with running(service.app) as client:
        for name in ("__init__.py", "..%2f__init__.py", "swagger-ui.js"):
            assert (await client.get(f"/docs/{name}")).status_code == 404
