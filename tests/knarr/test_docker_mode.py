"""What `knarr up` decides about its runtime, and how it refuses."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dockerengine import Endpoint
from knarr import docker_mode
from knarr.docker_mode import choose
from knarr.home import Home
from knarr.own_registry import OwnRegistry
from knarr.up import Options, create_apps
from seedwork.adapters.in_process import InProcessBus
from seedwork.errors import Conflict, InvalidInput, Misconfigured, Unavailable
from services.builder.settings import BuilderSettings
from services.deployer.settings import DeployerSettings

ENGINE = Endpoint(url="unix:///box.sock", source="DOCKER_HOST")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home, and no settings but the test's."""
    for name in ("KNARR_RUNTIME", "KNARR_IMAGE_STORE", "KNARR_BUILDER", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(docker_mode, "find_endpoint", lambda: None)
    home = Home(tmp_path / "home")
    home.make()
    return home


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An engine that answers, and the calls that would have started a registry."""
    started: list[Any] = []

    async def version(_: Endpoint) -> tuple[int, int]:
        return 1, 47

    async def start(_engine: Any, _home: Home, **asked: Any) -> OwnRegistry:
        started.append(asked)
        return OwnRegistry(container=f"{asked['installation']}-images", port=asked["port"], password="secret")

    monkeypatch.setattr(docker_mode, "find_endpoint", lambda: ENGINE)
    monkeypatch.setattr(docker_mode, "_version", version)
    monkeypatch.setattr(docker_mode, "_need_buildx", lambda: None)
    monkeypatch.setattr(docker_mode, "start_registry", start)
    monkeypatch.setenv("DOCKER_HOST", "")
    return started


def a_live_app(home: Home, name: str) -> None:
    folder = home.path / "deployer"
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(folder / "deployer.db")) as conn:
        conn.execute("CREATE TABLE apps (app_id TEXT, name TEXT)")
        conn.execute("CREATE TABLE routes (app_id TEXT, saga_id TEXT)")
        conn.execute("INSERT INTO apps VALUES ('1', ?), ('2', 'never-live')", (name,))
        conn.execute("INSERT INTO routes VALUES ('1', 'saga'), ('2', NULL)")
        conn.commit()


def test_without_a_word_apps_are_processes(home: Home) -> None:
    """As before; and the home remembers it."""
    mode = choose(home, None, port_base=8700)
    assert (mode.runtime, mode.hint) == ("process", "")
    assert home.remembered() == {"runtime": "process"}


def test_an_engine_that_is_there_is_mentioned(home: Home, engine: list[Any]) -> None:
    """It is not used, and nothing is started on it."""
    assert "--runtime docker" in choose(home, None, port_base=8700).hint
    assert engine == []


def test_docker_needs_no_setting(home: Home, engine: list[Any]) -> None:
    """Builder, runtime, image store and its login all come from the one word; and so at the next start."""
    first = choose(home, "docker", port_base=8700)
    second = choose(home, None, port_base=8700)
    assert (first.settings, first.says) == (second.settings, second.says)
    assert first.watch is not None
    assert engine[0]["port"] == 8790
    assert "container of" not in first.says
    assert ENGINE.url in first.says
    create_apps(Options(home=home, host="127.0.0.1", port_base=8700), InProcessBus(), first.settings)
    assert {**first.settings, "registry_password": ""} == {
        "runtime": "docker",
        "builder": "buildx",
        "image_store": "http://127.0.0.1:8790",
        "registry_user": "knarr",
        "registry_password": "",
        "registry_container": f"{engine[0]['installation']}-images",
    }


def test_a_registry_of_the_user_is_used_in_place_of_an_own_one(
    home: Home, engine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a setting that the user made is not replaced."""
    monkeypatch.setenv("KNARR_IMAGE_STORE", "https://registry.example")
    mode = choose(home, "docker", port_base=8700)
    assert engine == []
    assert "image_store" not in mode.settings


def test_the_users_settings_win(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over what a mode brings; what nobody set comes from the mode."""
    from knarr.up import _settings

    monkeypatch.setenv("KNARR_BUILDER", "layers")
    brought = {"builder": "buildx", "image_store": "http://127.0.0.1:1", "runtime": "docker"}
    builder = _settings("builder", home, {"home": home.path}, brought)
    assert isinstance(builder, BuilderSettings)
    assert (builder.builder, builder.image_store) == ("layers", "http://127.0.0.1:1")
    deployer = _settings("deployer", home, {"home": home.path}, brought)
    assert isinstance(deployer, DeployerSettings)
    assert deployer.runtime == "docker"


def test_no_engine_is_one_sentence(home: Home) -> None:
    """With what helps; and the home does not remember a runtime that never ran."""
    with pytest.raises(Misconfigured, match=r"No Docker engine was found.*--runtime process"):
        choose(home, "docker", port_base=8700)
    assert home.remembered() == {}


def test_an_engine_that_does_not_answer_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its address, and by what named it."""

    async def silent(_: Endpoint) -> tuple[int, int]:
        raise Unavailable("no", why="Connection refused")

    monkeypatch.setattr(docker_mode, "find_endpoint", lambda: ENGINE)
    monkeypatch.setattr(docker_mode, "_version", silent)
    with pytest.raises(Misconfigured, match=r"unix:///box\.sock does not answer: Connection refused.*DOCKER_HOST"):
        choose(home, "docker", port_base=8700)


def test_a_missing_client_is_one_sentence(home: Home, engine: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Misconfigured, match=r"pip install 'knarr\[docker\]'"):
        choose(home, "docker", port_base=8700)


def test_docker_without_buildx_is_refused(home: Home, engine: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started on the engine."""
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Misconfigured, match="docker-buildx-plugin"):
        docker_mode._need_buildx()


def test_a_remote_engine_needs_a_registry_that_both_reach(
    home: Home, engine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loopback is not ours."""
    monkeypatch.setattr(docker_mode, "find_endpoint", lambda: Endpoint(url="tcp://box:2375", source="DOCKER_HOST"))
    with pytest.raises(Misconfigured, match=r"another machine.*KNARR_IMAGE_STORE"):
        choose(home, "docker", port_base=8700)


def test_a_home_with_live_apps_keeps_its_runtime(home: Home, engine: list[Any]) -> None:
    """Their images and containers are where the other one does not look; the text names them."""
    choose(home, "docker", port_base=8700)
    a_live_app(home, "shop")
    with pytest.raises(Conflict, match=r"live there: shop\. Start it with --runtime docker"):
        choose(home, "process", port_base=8700)
    assert home.remembered()["runtime"] == "docker"


def test_an_older_home_is_known_by_its_images(home: Home, engine: list[Any]) -> None:
    """It remembers nothing; its folder of images is what processes run from."""
    (home.path / "registry" / "images").mkdir(parents=True)
    a_live_app(home, "shop")
    with pytest.raises(Conflict, match="runs its apps on process"):
        choose(home, "docker", port_base=8700)


def test_a_home_without_live_apps_may_change(home: Home, engine: list[Any]) -> None:
    """Nothing is lost by it."""
    choose(home, "docker", port_base=8700)
    assert choose(home, "process", port_base=8700).runtime == "process"


def test_a_damaged_memory_is_named(home: Home) -> None:
    """It is not passed over: the apps of the home depend on it."""
    home.settings_file.write_text("[]")
    with pytest.raises(InvalidInput, match=r"settings\.json is damaged"):
        choose(home, None, port_base=8700)
