from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from seedwork.chassis.settings import CommaSeparated, ServiceSettings, files_read, misconfigured
from seedwork.errors import Misconfigured


class SourceSettings(ServiceSettings):
    allow: CommaSeparated = ("https://github.com/",)

    KEYS: ClassVar[str] = "not a setting"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNARR_HOME", str(tmp_path))


def test_the_environment_wins_over_dot_env_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that the documentation promises, each source seen to matter."""
    (tmp_path / "knarr.yaml").write_text("team: yaml\nport_base: 1000\nlog_level: error\n")
    (tmp_path / ".env").write_text("KNARR_TEAM=dotenv\nKNARR_PORT_BASE=2000\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("KNARR_TEAM", "environment")
    settings = ServiceSettings()
    assert (settings.team, settings.port_base, settings.log_level) == ("environment", 2000, "error")


def test_the_folder_in_which_a_command_is_run_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloned repository's file would send the service token to an address of its own."""
    cloned = tmp_path / "cloned"
    cloned.mkdir()
    (cloned / "knarr.yaml").write_text("deployer_url: http://thief.example\nteam: stranger\n")
    (cloned / ".env").write_text("KNARR_DEPLOYER_URL=http://thief.example\nKNARR_HOME=/tmp/theirs\n")
    monkeypatch.chdir(cloned)
    for settings in (ServiceSettings(), ServiceSettings(home=tmp_path / "home")):
        assert settings.team == "default"
        assert settings.url_of("deployer") == "http://127.0.0.1:8705"


def test_the_files_that_count_are_those_of_the_home_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an argument, as in the environment; and they can be named for people."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "knarr.yaml").write_text("team: of-the-home\n")
    assert ServiceSettings(home=home).team == "of-the-home"
    assert files_read(home) == [home / "knarr.yaml"]
    (tmp_path / "named.yaml").write_text("team: named\n")
    monkeypatch.setenv("KNARR_CONFIG", str(tmp_path / "named.yaml"))
    assert ServiceSettings(home=home).team == "named"
    assert files_read(home) == [tmp_path / "named.yaml"]


def test_the_file_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`KNARR_CONFIG` names it."""
    (tmp_path / "elsewhere.yaml").write_text("team: elsewhere\n")
    monkeypatch.setenv("KNARR_CONFIG", str(tmp_path / "elsewhere.yaml"))
    assert ServiceSettings().team == "elsewhere"


def test_a_named_file_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing mistake in KNARR_CONFIG must not silently mean the defaults."""
    monkeypatch.setenv("KNARR_CONFIG", "/nowhere/knarr.yaml")
    with pytest.raises(Misconfigured, match=r"no file /nowhere/knarr\.yaml.*KNARR_CONFIG"):
        ServiceSettings()


@pytest.mark.parametrize("text", ["team: [", "- a\n- list\n", "just words", "team: \x00"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    """The error says which file and what it should look like."""
    (tmp_path / "knarr.yaml").write_text(text)
    with pytest.raises(Misconfigured, match=r"knarr\.yaml cannot be read"):
        ServiceSettings()


def test_keys_of_other_services_are_left_to_them(tmp_path: Path) -> None:
    """One file serves all services."""
    (tmp_path / "knarr.yaml").write_text("allow: [file:///srv/]\nbuild_slots: 2\n")
    assert ServiceSettings().team == "default"
    assert SourceSettings().allow == ("file:///srv/",)


def test_several_values_are_separated_by_commas_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No JSON in environment variables."""
    monkeypatch.setenv("KNARR_ALLOW", "https://a/, file:///b/,")
    assert SourceSettings().allow == ("https://a/", "file:///b/")


def test_ports_follow_the_order_of_the_services() -> None:
    """A URL in the documentation holds in every mode."""
    settings = ServiceSettings()
    assert (settings.port("webhook"), settings.port("saga_coordinator")) == (8701, 8706)
    assert settings.url_of("builder") == "http://127.0.0.1:8703"
    with pytest.raises(Misconfigured, match="No service is called 'web'"):
        settings.port("web")


def test_the_url_of_a_service_can_be_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In production each has its own host."""
    monkeypatch.setenv("KNARR_SOURCE_URL", "http://source.knarr.svc/")
    assert ServiceSettings().url_of("source") == "http://source.knarr.svc"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8702"),  # noqa: S104  nothing is bound
        ("::1", "http://[::1]:8702"),
        ("10.0.0.5", "http://10.0.0.5:8702"),
    ],
)
def test_a_service_is_asked_where_it_listens(host: str, url: str) -> None:
    """Every address includes loopback; another one is used as it is."""
    assert ServiceSettings(host=host).url_of("source") == url


def test_each_service_has_its_own_database(tmp_path: Path) -> None:
    """A file in its folder, or the name put into the URL."""
    assert (
        ServiceSettings(home=tmp_path).database_url_of("webhook")
        == f"sqlite+aiosqlite:///{tmp_path}/webhook/webhook.db"
    )
    mysql = ServiceSettings(database_url="mysql+asyncmy://knarr_{service}:x@db/knarr_{service}")
    assert mysql.database_url_of("source") == "mysql+asyncmy://knarr_source:x@db/knarr_source"


def test_secrets_are_not_shown() -> None:
    """Settings land in logs and error reports sooner or later."""
    settings = ServiceSettings.model_validate({"token": "abc-secret", "service_token": "def-secret"})
    assert "-secret" not in repr(settings)
    assert "-secret" not in settings.model_dump_json()


def test_a_wrong_value_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a stack trace about something else."""
    monkeypatch.setenv("KNARR_LOG_LEVEL", "loud")
    with pytest.raises(ValidationError) as caught:
        ServiceSettings()
    assert "KNARR_LOG_LEVEL: Input should be 'debug', 'info'" in misconfigured(caught.value).message
    assert "loud" not in str(caught.value)
