"""The table at the end: what was done, what came of it, how long things took."""

from collections import Counter
from collections.abc import Iterator, Sequence

from seedwork.messages import rfc3339_ms
from tests.chaos.acting import Actor
from tests.chaos.judging import Facts
from tests.chaos.pushing import Pusher
from tests.chaos.replicated import Replicated
from tests.chaos.watching import Watcher


def table(
    knarr: Replicated,
    facts: Facts,
    actor: Actor,
    pusher: Pusher,
    watcher: Watcher,
    *,
    held: Sequence[str],
    seconds: float,
) -> Iterator[str]:
    """Its lines."""
    ends = Counter(each.state for each in facts.sagas.values())
    acts: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for done in actor.done:
        acts[done.act.phase] += 1
        hits[done.act.phase] += done.hits
    slowest = max(actor.done, key=lambda each: each.well_after_s, default=None)
    bad = sum(not each.good for each in pusher.pushed)
    yield f"{'pushes accepted':28}{len(pusher.pushed)}, {bad} of them of programs that end at once"
    yield f"{'tries that were refused':28}{pusher.refusals}"
    yield f"{'sent again when accepted':28}{pusher.again}"
    yield f"{'sagas':28}{len(facts.sagas)}: {', '.join(f'{count} {state}' for state, count in sorted(ends.items()))}"
    yield f"{'waited for a person':28}{len(held)}"
    yield from (f"{'':28}{each}" for each in held)
    yield f"{'acts':28}{len(actor.done)}: {', '.join(f'{phase} {count}' for phase, count in acts.items())}"
    yield f"{'hits':28}{', '.join(f'{phase} {count}' for phase, count in hits.items())}"
    yield f"{'starts of processes':28}{sum(each.starts for each in knarr.replicas)}"
    if slowest is not None:
        yield f"{'all ready again, at worst':28}{slowest.well_after_s:.1f} s ({slowest.act.phase} {slowest.act.target})"
    yield f"{'answers of apps':28}{sum(each.answers for each in watcher.apps.values())}"
    yield f"{'answers that failed':28}{sum(each.failed for each in watcher.apps.values())}"
    for app, watched in watcher.apps.items():
        yield from (f"{'':28}{app}, {rfc3339_ms(int(at * 1000))}: {why}" for at, why in watched.failures[:3])
    yield f"{'versions that were seen':28}{sum(len(each.shown) for each in watcher.apps.values())}"
    yield f"{'images in the registry':28}{sum(len(each) for name, each in facts.stored.items())}"
    yield f"{'took':28}{seconds:.0f} s"
