"""Static sites: an image with a server in it, and what that server shows and hides."""

import asyncio
import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seedwork.errors import KnarrError
from services.builder.adapters.layers.knarr_static import Server, Site, content_type
from services.source.contract import BuildStep
from tests.services.builder.support import NPM, STATIC, Bench, environment_of, unpacked, write_files

PATIENCE_S = 30.0


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("outside")
    return write_files(
        tmp_path / "site",
        {
            "index.html": "home",
            "docs/index.html": "docs",
            "empty/file.txt": "text",
            "a b.css": "css",
            ".env": "SECRET=1",
            ".well-known/security.txt": "contact",
            "Procfile": "web: x",
            "docs/Procfile": "an example",
        },
    )


@contextmanager
def serving(folder: Path, *, fallback: str | None = None) -> Iterator[http.client.HTTPConnection]:
    with Server(("127.0.0.1", 0), Site(folder, fallback=fallback)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE_S)
        try:
            yield client
        finally:
            client.close()
            server.shutdown()
            thread.join()


def ask(client: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    client.putrequest(method, path, skip_host=False)
    for name, value in headers.items():
        client.putheader(name.replace("_", "-"), value)
    client.endheaders()
    response = client.getresponse()
    return response.status, response.read().decode()


def test_files_and_index_pages_are_shown(site: Path) -> None:
    """A folder's page is its index.html; names may be quoted; one connection serves many requests."""
    with serving(site) as client:
        assert ask(client, "/") == (200, "home")
        assert ask(client, "/docs/") == (200, "docs")
        assert ask(client, "/a%20b.css?v=1") == (200, "css")
        assert ask(client, "/.well-known/security.txt") == (200, "contact")
        assert ask(client, "/docs/Procfile") == (200, "an example")


def test_a_folder_without_a_slash_is_redirected(site: Path) -> None:
    """So that relative links work; never to another host."""
    with serving(site) as client:
        client.request("GET", "/docs?x=1")
        response = client.getresponse()
        response.read()
        assert (response.status, response.headers["Location"]) == (301, "/docs/?x=1")
        client.request("GET", "//docs")
        response = client.getresponse()
        response.read()
        assert response.headers["Location"] == "/docs/"


@pytest.mark.parametrize(
    "path",
    [
        *("/none", "/empty/", "/index.html/", "/.env", "/.git/config", "/Procfile", "/%00", "/" + "a" * 5000, "/loop"),
        *("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/docs/../../secret.txt"),
        *("/out/secret.txt", "/out.txt"),
    ],
)
def test_what_is_not_there_or_hidden_is_not_found(site: Path, path: str) -> None:
    """Climbing, hidden files, links that lead out, loops, folders without an index."""
    (site / "out").symlink_to(site.parent)
    (site / "out.txt").symlink_to(site.parent / "secret.txt")
    (site / "loop").symlink_to("loop")

    with serving(site) as client:
        assert ask(client, path) == (404, "Not found\n")


def test_an_own_page_for_what_is_not_there(site: Path) -> None:
    """`404.html`, with the status 404."""
    (site / "404.html").write_text("sorry")

    with serving(site) as client:
        assert ask(client, "/none") == (404, "sorry")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/some/page/of/the/app", (200, "home")),
        ("/docs", (301, "")),
        ("/a%20b.css", (200, "css")),
        ("/assets/missing.js", (404, "Not found\n")),
        ("/.env", (404, "Not found\n")),
        ("/.hidden/page", (404, "Not found\n")),
        ("/empty/", (200, "home")),
    ],
)
def test_a_page_without_a_file_is_answered_with_the_fallback(site: Path, path: str, expected: tuple[int, str]) -> None:
    """Single-page apps route by themselves; a missing file is still missing."""
    with serving(site, fallback="index.html") as client:
        assert ask(client, path) == expected


def test_a_page_is_found_without_its_ending(site: Path) -> None:
    """As static exports of frameworks link to them."""
    (site / "about.html").write_text("about")

    with serving(site) as client:
        assert ask(client, "/about") == (200, "about")
        assert ask(client, "/about/")[0] == 404
        assert ask(client, "/abou") == (404, "Not found\n")


def test_a_browser_is_told_when_it_has_the_newest(site: Path) -> None:
    """By content: a file that changed without changing its time is sent again."""
    with serving(site) as client:
        client.request("GET", "/")
        response = client.getresponse()
        response.read()
        tag = response.headers["ETag"]
        assert "Last-Modified" not in response.headers
        assert ask(client, "/", If_None_Match=tag) == (304, "")
        assert ask(client, "/", If_None_Match=f'"other", W/{tag}') == (304, "")

        (site / "new.html").write_text("HOME")
        os.utime(site / "new.html", (site / "index.html").stat()[7:9])
        (site / "new.html").replace(site / "index.html")
        assert ask(client, "/", If_None_Match=tag) == (200, "HOME")


def test_head_says_what_get_would_send(site: Path) -> None:
    """Length without a body; other methods are refused."""
    with serving(site) as client:
        client.request("HEAD", "/")
        response = client.getresponse()
        assert (response.status, response.headers["Content-Length"], response.read()) == (200, "4", b"")
        assert ask(client, "/", "DELETE")[0] == 501


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.JS", "text/javascript; charset=utf-8"),
        ("a.json", "application/json; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.wasm", "application/wasm"),
        ("a", "application/octet-stream"),
    ],
)
def test_content_types(name: str, kind: str) -> None:
    """What browsers insist on."""
    assert content_type(Path(name)) == kind


async def test_the_image_serves_the_site_and_ends_on_sigterm(bench: Bench, tmp_path: Path) -> None:
    """Started as the image says, from its own layer, with exit code 0 at the end."""
    built = await bench.build(STATIC, {"index.html": "<h1>hello</h1>"})
    root = await unpacked(bench, built, tmp_path / "root")
    config = (await bench.image(built)).config["config"]
    assert config["Cmd"] == ["python", "-m", "knarr_static"]
    env = environment_of(config["Env"], root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    server = await asyncio.create_subprocess_exec(
        *config["Cmd"], cwd=root / "app", env={**env, "PORT": str(port)}, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        reader, writer = await _connected(port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        await writer.wait_closed()
        assert answer.endswith(b"\r\n\r\n<h1>hello</h1>")
        server.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.wait(), PATIENCE_S) == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def test_a_built_site_is_its_output_folder_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    """Sources and packages stay out; the fallback is in the image's environment."""
    step = BuildStep(
        name="build", command=("sh", "-c", "mkdir -p web/dist && echo built > web/dist/index.html"), language="node"
    )
    described = STATIC.model_copy(
        update={"packages": (NPM,), "build": (step,), "output": "web/dist", "fallback": "index.html"}
    )

    built = await bench.build(described, {"package.json": '{"name": "site"}', "index.html": "source", "secret.js": "x"})

    root = await unpacked(bench, built, tmp_path / "root")
    assert [path.name for path in (root / "app").iterdir()] == ["index.html"]
    assert (root / "app/index.html").read_text() == "built\n"
    assert not (root / "layers/node").exists()
    env = environment_of((await bench.image(built)).config["config"]["Env"], root)
    assert env["KNARR_STATIC_FALLBACK"] == "index.html"


@pytest.mark.parametrize(
    ("output", "fallback", "words"),
    [
        ("dist", None, "made no files in dist"),
        ("public", "app.html", "made no public/app.html"),
        ("out", None, "leads out of the app"),
        ("..", None, "leads out of the app"),
    ],
)
async def test_an_output_that_is_not_there_is_named(
    bench: Bench, output: str, fallback: str | None, words: str
) -> None:
    """Also one that a link of the build leads out of the app to."""
    step = BuildStep(name="build", command=("ln", "-s", "/", "out"), language="node")
    described = STATIC.model_copy(update={"packages": (NPM,), "build": (step,), "output": output, "fallback": fallback})

    with pytest.raises(KnarrError, match=words):
        await bench.build(described, {"package.json": '{"name": "site"}', "public/index.html": "x"})


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
