"""deploy/prometheus/alerts.yaml: rules over figures that exist, each explained to whoever is woken up by it."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from knarr.up import settings_class
from seedwork.chassis.settings import SERVICE_PORTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the services' /metrics."""
    found: set[str] = set()
    for name in SERVICE_PORTS:
        create_app = importlib.import_module(f"services.{name}.app").create_app
        app = create_app(settings_class(name)(home=tmp_path_factory.mktemp(name), bus="in-process"))
        for family in app.state.service.metrics.registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            found.update(family.name + suffix for suffix in suffixes)
    return found


def test_an_alert_looks_at_figures_that_there_are(rules: list[dict[str, Any]], figures: set[str]) -> None:
    """A rule over a figure that nobody tells would never fire."""
    named = {name for rule in rules for name in re.findall(r"knarr_\w+", rule["expr"])}
    assert named
    assert named <= figures


def test_every_alert_is_explained(rules: list[dict[str, Any]]) -> None:
    """docs/operate.md has a row for each, and for no other."""
    explained = re.findall(r"^\| `(Knarr\w+)` \|", (ROOT / "docs" / "operate.md").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(rule["alert"] for rule in rules)
