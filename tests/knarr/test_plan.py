"""`knarr plan`: what is detected in a folder, without a platform."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from knarr.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No platform runs, and none is asked."""
    monkeypatch.setenv("KNARR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KNARR_PORT_BASE", "1")
    monkeypatch.delenv("KNARR_BUILDER", raising=False)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A FastAPI app."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "requirements.txt").write_text("fastapi==0.110.0\nuvicorn==0.29.0\n")
    (folder / "main.py").write_text("app = FastAPI()\n")
    (folder / ".env").write_text("SECRET=x\n")
    return folder


def test_the_plan_is_shown_as_text(shop: Path) -> None:
    """What it is, how it is installed, what runs, and from which files."""
    answer = runner.invoke(app, ["plan", str(shop)])
    assert answer.exit_code == 0
    assert answer.stdout.splitlines() == [
        "FastAPI (python), builder layers",
        "  Python: pip installs requirements.txt",
        "  web: uvicorn main:app --host 0.0.0.0 --port $PORT (FastAPI, main.py)",
    ]


def test_the_plan_is_shown_as_json(shop: Path) -> None:
    """The whole description, and the builder that it is for."""
    answer = runner.invoke(app, ["plan", str(shop), "--json"])
    found = json.loads(answer.stdout)
    assert (found["builder"], found["framework"], found["runtime"]["kind"]) == ("layers", "FastAPI", "python")
    assert found["packages"][0]["lock"] == "requirements.txt"


def test_the_builder_is_an_option_a_setting_or_what_the_home_remembers(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Dockerfile counts where Docker builds."""
    (shop / "Dockerfile").write_text("FROM scratch\n")
    assert runner.invoke(app, ["plan", str(shop)]).stdout.startswith("FastAPI (python), builder layers")
    assert runner.invoke(app, ["plan", str(shop), "--builder", "buildx"]).stdout.startswith(
        "dockerfile, builder buildx"
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "settings.json").write_text('{"runtime": "docker"}')
    assert runner.invoke(app, ["plan", str(shop)]).stdout.startswith("dockerfile, builder buildx")
    monkeypatch.setenv("KNARR_BUILDER", "layers")
    assert runner.invoke(app, ["plan", str(shop)]).stdout.startswith("FastAPI (python), builder layers")
    assert runner.invoke(app, ["plan", str(shop), "--builder", "jars"]).exit_code == 2


def test_a_refusal_has_every_reason_and_an_exit_code(shop: Path) -> None:
    """In text one line each, in JSON a list."""
    (shop / ".python-version").write_text("system\n")
    (shop / ".cupaas.yml").write_text("port: x\n")
    answer = runner.invoke(app, ["plan", str(shop)])
    assert answer.exit_code == 1
    assert [line[:12] for line in answer.stdout.splitlines()] == ["✗ .cupaas.ym", "✗ .python-ve"]
    found = json.loads(runner.invoke(app, ["plan", str(shop), "--json"]).stdout)
    assert len(found["error"]["reasons"]) == 2
    assert found["error"]["code"] == "app_invalid"


def test_text_of_the_app_cannot_write_to_the_terminal(shop: Path) -> None:
    """Control characters are shown, and brackets are no markup."""
    (shop / "Procfile").write_text("web: echo '\x1b]0;x\x07' [bold]\n")
    answer = runner.invoke(app, ["plan", str(shop)])
    assert "web: echo '^[]0;x^G' [bold] (Procfile)" in answer.stdout


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    """As for `knarr deploy`."""
    assert runner.invoke(app, ["plan", str(tmp_path / "gone")]).exit_code == 3
