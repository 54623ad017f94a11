"""The measurements on the real stack, small: what takes long in `make bench-stack` must not be found broken there."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from bench import figures
from bench.__main__ import chosen
from bench.orchestra import Kind
from bench.stack import steps, webhook
from bench.stack.__main__ import NEEDS, PAGE, allocator
from bench.stack.deploys import standard_error
from bench.stack.looks import Looks
from bench.stack.place import Processors, place, running
from tests.stack import servers
from tests.stack.servers import SERVERS

REAL = pytest.mark.stack("MYSQL_URL", "PULSAR_URL", "PULSAR_ADMIN_URL")


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "WORK", tmp_path)


def test_a_measurement_is_chosen_by_name_and_an_unknown_one_refused() -> None:
    """In the order of the table; nothing chosen is everything."""
    assert chosen("steps, floor", list(NEEDS)) == ["floor", "steps"]
    assert list(chosen("", list(NEEDS))) == list(NEEDS)
    with pytest.raises(SystemExit, match=r"no measurement typo\. Known: floor"):
        chosen("typo", list(NEEDS))


def test_every_measurement_is_a_module_and_stands_on_its_page() -> None:
    """A name that leads nowhere would be found after half an hour."""
    for name in NEEDS:
        assert (PAGE.parent / "stack" / f"{name}.py").is_file()
        assert f"`{name}`" in PAGE.read_text()


def test_only_servers_that_are_wanted_and_not_named_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps need no registry, and the one that the environment names is the one that is used."""
    begun = []

    def starting(variable: str) -> Callable[[], AbstractContextManager[None]]:
        return lambda: begun.append(variable) or nullcontext()  # type: ignore[func-returns-value]

    async def answers_at_once(_: object) -> None:
        return

    variables = [each.variables[0] for each in SERVERS]
    for variable in variables:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PULSAR_URL", "pulsar://127.0.0.1:1")
    monkeypatch.setattr(servers, "STARTED", [starting(each) for each in variables[:4]])
    monkeypatch.setattr(servers, "answers", answers_at_once)

    with servers.started(set(NEEDS["steps"])):
        assert begun == ["MYSQL_URL"]
    with servers.started():
        assert begun == ["MYSQL_URL", "MYSQL_URL", "REGISTRY", "BUILDKIT_HOST"]


@pytest.mark.parametrize("found", ["libjemalloc.so.2", None])
def test_processes_get_the_allocator_of_the_image_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    """Else the table says that they have another one."""
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setattr("ctypes.util.find_library", lambda _: found)
    told = allocator()
    assert os.environ["LD_PRELOAD"] == (found or "")
    assert ("as in the image" in told) == bool(found)


def test_a_kubelets_looks_are_those_of_the_pod_that_was_started_last_and_became_ready() -> None:
    """The old pod was started before; of two new ones, one never became ready."""
    looks = Looks(started={"old": 1.0, "new": 11.0, "broken": 12.0}, ready={"old": 2.0, "new": 11.75})
    assert looks.took_s(10.0) == 0.75


def test_the_error_of_a_median_falls_with_the_number_of_values() -> None:
    """None where all are the same; with four times as many half as much, more or less."""
    spread = [float(each) for each in range(-10, 11)]
    assert standard_error([3.0] * 9) == 0.0
    assert 1.5 < standard_error(spread) / standard_error(spread * 4) < 2.5


@REAL
@pytest.mark.parametrize(("kind", "replicas"), [("instant", 2), ("kernel", 1)])
def test_throughput_is_measured_with_replicas_and_with_participants(kind: Kind, replicas: int) -> None:
    """Eight deployments by real processes; the rate, and who spent how much on a step."""

    async def measure() -> dict[str, float]:
        with steps.cast(where, kind, replicas) as given:
            found = await steps.throughput(where, given, in_flight=500, runs=1, sagas=8, group="g")
        return {each.name: each.values[0] for each in found}

    with place(["saga_coordinator", *steps.SCHEMAS[kind]], subscriptions=steps.subscriptions(kind)) as where:
        told = asyncio.run(measure())
    assert told["500 in flight"] > 0
    assert told["500 in flight: CPU of coordinator"] >= 0
    assert ("500 in flight: CPU of participants" in told) == (kind == "kernel")


@REAL
def test_a_measurement_ends_when_somebody_without_whom_no_saga_ends_has_died() -> None:
    """It was seen to wait for ever."""

    async def measure() -> None:
        with steps.cast(where, "kernel", 1) as given:
            given.participants[0].kill()
            await steps.throughput(where, given, in_flight=500, runs=1, sagas=8, group="g")

    ended = pytest.raises(RuntimeError, match=r"bench\.stack\.participants has ended with -9")
    schemas, listeners = ["saga_coordinator", *steps.SCHEMAS["kernel"]], steps.subscriptions("kernel")
    with place(schemas, subscriptions=listeners) as where, ended:
        asyncio.run(measure())


@REAL
def test_webhooks_are_measured_on_every_replica() -> None:
    """One second of traffic; each push is stored, whichever of the two takes it."""
    with place(["webhook"]) as where, running(where, ["webhook"], replicas=2) as services:
        found = asyncio.run(webhook.measure(where, services, 1, 1))
    told = {each.name: each.values[0] for each in found}
    assert told["p99"] >= told["p50"] > 0


def test_processor_time_is_told_by_who_spent_it() -> None:
    """Of processes that have ended since, what they spent is not known, and counts as nothing negative."""
    ours = Processors({})
    assert all(spent_s >= 0 for spent_s in ours.spent_s().values())
