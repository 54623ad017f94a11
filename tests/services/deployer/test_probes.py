"""Health checks of an app as probes of its pods, without a cluster."""

import pytest

from services.deployer.adapters.kubernetes.probes import manifest, plan
from services.deployer.checks import Patience, checks_of
from services.source.contract import HealthCheck

PATIENCE = Patience(start_s=60.0, start_max_s=600.0, settle_s=1.0)


def probes(*declared: HealthCheck, process: str = "web") -> dict[str, object]:
    made = plan(checks_of(process, {process: declared}, patience=PATIENCE))
    return manifest(made, web=process == "web", port="http")


def own(*declared: HealthCheck) -> list[str]:
    return [each.what for each in plan(checks_of("web", {"web": declared}, patience=PATIENCE)).own]


def test_without_a_check_the_kubelet_connects_and_the_deployer_asks() -> None:
    """A kubelet would take 404 for a fault; and it does not end an app that is slow to start."""
    assert probes() == {
        "readinessProbe": {
            "tcpSocket": {"port": "http"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "tcpSocket": {"port": "http"},
            "initialDelaySeconds": 60,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    }
    assert "GET /" in own()


def test_every_key_of_a_check_is_in_its_probe() -> None:
    """Times are whole seconds, rounded up; the deployer's own limit ends before the kubelet's."""
    declared = HealthCheck(
        type="liveness",
        path="/live",
        port=9000,
        headers={"Host": "shop.example.com"},
        attempts=4,
        timeout_s=1.5,
        wait_s=2.2,
        initial_delay_s=7,
    )
    asked = {
        "path": "/live",
        "port": 9000,
        "scheme": "HTTP",
        "httpHeaders": [{"name": "Host", "value": "shop.example.com"}],
    }
    assert probes(HealthCheck(listening=True), declared)["livenessProbe"] == {
        "httpGet": asked,
        "initialDelaySeconds": 7,
        "periodSeconds": 3,
        "timeoutSeconds": 2,
        "failureThreshold": 4,
    }
    startup = probes(HealthCheck(path="/health", attempts=10, wait_s=1, timeout_s=1))["startupProbe"]
    assert isinstance(startup, dict)
    assert (startup["periodSeconds"], startup["failureThreshold"]) == (1, 10 * 2 + 30)


@pytest.mark.parametrize(
    ("check", "way"),
    [
        (HealthCheck(path="/health"), {"httpGet": {"path": "/health", "port": "http", "scheme": "HTTP"}}),
        (HealthCheck(listening=True), {"tcpSocket": {"port": "http"}}),
        (HealthCheck(command=("/bin/false",)), {"exec": {"command": ["/bin/false"]}}),
    ],
    ids=["http", "listening", "command"],
)
def test_each_way_has_its_probe(check: HealthCheck, way: dict[str, object]) -> None:
    """None of them is left to the open port alone."""
    startup = probes(check)["startupProbe"]
    assert isinstance(startup, dict)
    assert {name: startup[name] for name in way} == way


def test_what_a_kubelet_cannot_check_is_checked_by_the_deployer() -> None:
    """The text of an answer, and a second check of a type."""
    assert own(HealthCheck(path="/health")) == []
    assert own(HealthCheck(path="/health", content="ready")) == ["GET /health"]
    assert own(HealthCheck(path="/one"), HealthCheck(path="/two")) == ["GET /two"]
    assert own(HealthCheck(path="/one"), HealthCheck(type="readiness", path="/two")) == []


def test_a_worker_has_no_probe_unless_it_asks_for_one() -> None:
    """It must run for a moment, which its Deployment says."""
    assert probes(process="worker") == {}
    assert plan(checks_of("worker", {}, patience=PATIENCE)).settle_s == 1
    asked = HealthCheck(type="liveness", command=("alive",))
    assert list(probes(asked, process="worker")) == ["livenessProbe"]
