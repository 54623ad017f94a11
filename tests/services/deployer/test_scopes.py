"""Scopes of config vars: who sees which, and how they are kept."""

from services.deployer.scopes import Config, closed, opened

CONFIG = Config(values={"A": "1", "B": "2", "C": "3"}, scopes={"B": "build", "C": "run"})


def test_a_config_var_without_a_scope_is_for_builds_and_instances() -> None:
    """Only what is set otherwise is left out."""
    assert CONFIG.seen_by("build") == {"A": "1", "B": "2"}
    assert CONFIG.seen_by("run") == {"A": "1", "C": "3"}


def test_scopes_are_kept_with_the_values() -> None:
    """Sealed and opened again they are the same; nothing of them is taken for a config var."""
    assert opened(closed(CONFIG)) == CONFIG
    assert "" not in opened(closed(CONFIG)).values


def test_a_version_of_an_earlier_knarr_has_no_scopes() -> None:
    """And one without scopes is kept as it was before there were any."""
    assert opened({"A": "1"}) == Config(values={"A": "1"})
    assert closed(Config(values={"A": "1"})) == {"A": "1"}
