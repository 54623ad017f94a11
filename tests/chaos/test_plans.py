"""What a seed says, and what every plan must hold."""

from itertools import pairwise

import pytest

from seedwork.chassis.settings import SERVICE_PORTS
from tests.chaos.plans import PHASES, REGISTRY_FAULTS, UNASKED, plan_of


def test_a_seed_says_everything() -> None:
    """The same acts in the same order; another seed has others."""
    assert plan_of(7, UNASKED, lease_s=10) == plan_of(7, UNASKED, lease_s=10)
    assert plan_of(7, UNASKED, lease_s=10) != plan_of(8, UNASKED, lease_s=10)


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_hits_everything(seed: int) -> None:
    """Each service by one replica and by both, each pause beyond the lease, each server for a moment and for long."""
    acts = plan_of(seed, PHASES, lease_s=10)
    killed = [each.target for each in acts if each.phase == "kills"]
    paused = {each.target.partition(".")[0]: each for each in acts if each.phase == "pauses"}
    for service in SERVICE_PORTS:
        assert sum(each in {f"{service}.a", f"{service}.b"} for each in killed) == 1
        assert killed.count(f"{service}.*") == 1
        assert paused[service].lasts_s > 10
        assert paused[service].target != f"{service}.*"
    for server in ("mysql", "pulsar"):
        lasts = sorted(each.lasts_s for each in acts if each.phase == server)
        assert lasts[0] == 0
        assert lasts[-1] >= 60
    assert {each.target for each in acts if each.phase == "registry"} == set(REGISTRY_FAULTS)
    assert [each.lasts_s for each in acts if each.phase == "api"] == [60]


def test_a_rolling_restart_comes_when_the_rest_is_over_and_the_engine_is_last() -> None:
    """They need everything else to be well."""
    assert [each.phase for each in plan_of(3, PHASES, lease_s=10)][-2:] == ["rolling", "docker"]


def test_the_engine_is_restarted_only_for_who_asks() -> None:
    """Others may use it."""
    assert "docker" not in {each.phase for each in plan_of(3, UNASKED, lease_s=10)}


def test_one_phase_alone_does_the_same_as_among_others() -> None:
    """So a failure is looked into with less around it: only the order is another."""
    alone = plan_of(5, ("kills",), lease_s=10)
    among = [each for each in plan_of(5, UNASKED, lease_s=10) if each.phase == "kills"]
    assert sorted(map(str, alone)) == sorted(map(str, among))


def test_acts_are_mixed() -> None:
    """A phase does not come as a block: what one fault leaves meets the next one of another kind."""
    phases = [each.phase for each in plan_of(1, UNASKED, lease_s=10)]
    assert sum(one != two for one, two in pairwise(phases)) > len(set(phases))
