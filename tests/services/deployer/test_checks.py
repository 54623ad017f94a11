"""Declared health checks become complete checks within the platform's limits."""

from services.deployer.checks import Patience, checks_of, longest_start_s
from services.source.contract import HealthCheck

PATIENCE = Patience(start_s=60.0, start_max_s=600.0, settle_s=1.0)


def test_web_must_answer_with_any_status_by_default() -> None:
    """An open port is not enough: gunicorn's master opens it before its workers import the app."""
    checks = checks_of("web", {}, patience=PATIENCE)

    assert [(each.path, each.any_status, each.budget_s) for each in checks.startup] == [("/", True, 60.0)]
    assert checks.readiness == ()
    assert [each.listening for each in checks.liveness] == [True]


def test_another_process_must_run_for_a_moment() -> None:
    """A worker has no port; it must stay alive."""
    checks = checks_of("worker", {"web": (HealthCheck(path="/health"),)}, patience=PATIENCE)

    assert [each.uptime_s for each in checks.startup] == [1.0]
    assert checks.liveness == ()


def test_an_explicit_path_needs_a_good_status() -> None:
    """`path` passes with 200 to 399 only."""
    [check] = checks_of("web", {"web": (HealthCheck(path="/health"),)}, patience=PATIENCE).startup

    assert (check.path, check.any_status) == ("/health", False)


def test_listening_asks_for_a_tcp_connection() -> None:
    """No HTTP request is sent."""
    [check] = checks_of("worker", {"worker": (HealthCheck(listening=True, port=9000),)}, patience=PATIENCE).startup

    assert (check.path, check.listening, check.port) == (None, True, 9000)
    assert check.what == "a TCP connection on port 9000"


def test_an_app_gets_the_patience_that_it_asks_for() -> None:
    """70 s before the first attempt and 60 attempts of 7 s are more than the default of 60 s."""
    asked = HealthCheck(path="/", initial_delay_s=70, attempts=60, wait_s=2, timeout_s=5)

    assert checks_of("web", {"web": (asked,)}, patience=PATIENCE).start_s == 70 + 60 * 7


def test_patience_ends_at_the_limit_of_the_platform() -> None:
    """No app holds a deployment for hours."""
    asked = HealthCheck(path="/", initial_delay_s=7000, attempts=60_000, wait_s=3600, timeout_s=3600)
    checks = checks_of("web", {"web": (asked,)}, patience=PATIENCE)

    assert checks.start_s == 600
    assert (checks.startup[0].wait_s, checks.startup[0].timeout_s) == (300, 120)


def test_a_readiness_check_is_part_of_the_start() -> None:
    """The default startup check stays beside it."""
    checks = checks_of("web", {"web": (HealthCheck(type="readiness", path="/ready"),)}, patience=PATIENCE)

    assert [each.path for each in checks.startup] == ["/"]
    assert [(each.path, each.any_status, each.attempts) for each in checks.readiness] == [("/ready", False, 3)]


def test_the_longest_start_of_all_processes_counts() -> None:
    """A deployment's limit follows the slowest process type."""
    declared = {"worker": (HealthCheck(uptime_s=100),)}

    assert longest_start_s(["web", "worker"], declared, PATIENCE) == 100
    assert longest_start_s([], declared, PATIENCE) == 0


def test_web_must_listen_on_port_whatever_its_checks_are() -> None:
    """Its requests go there: a check of a command or of another port does not replace that."""
    declared = {"web": (HealthCheck(command=("/bin/true",)), HealthCheck(path="/", port=9000))}
    checks = checks_of("web", declared, patience=PATIENCE).startup

    assert [(each.listening, each.port) for each in checks] == [(False, None), (False, 9000), (True, None)]
