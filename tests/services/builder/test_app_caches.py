"""Build caches of apps: apart from each other, under names that cannot be computed, bounded in size."""

import os
from pathlib import Path

from services.builder.adapters.layers.caches import AppCaches

OLD = (1_000_000_000, 1_000_000_000)


def filled(caches: AppCaches, app_id: str, size_bytes: int) -> Path:
    """The folder of an app that was built long ago."""
    with caches.of(app_id) as cache:
        cache.tools.mkdir(exist_ok=True)
        (cache.tools / "file").write_bytes(bytes(size_bytes))
    os.utime(cache.folder, OLD)
    return cache.folder


def test_an_apps_caches_are_the_same_in_every_build_and_no_other_apps(tmp_path: Path) -> None:
    """Also after a restart: the key is kept."""
    one, again = AppCaches(tmp_path, max_bytes=0), AppCaches(tmp_path, max_bytes=0)

    assert one.named("a") == again.named("a")
    assert one.named("a").folder != one.named("b").folder
    assert one.named("a").kept("steps", ".next/cache").name != one.named("b").kept("steps", ".next/cache").name
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_the_name_of_a_cache_cannot_be_computed_from_the_app(tmp_path: Path) -> None:
    """Another installation has another key, so nothing of the app's id gives the name."""
    names = {AppCaches(tmp_path / home, max_bytes=0).named("a").folder.name for home in ("one", "two")}

    assert len(names) == 2


async def test_the_least_recently_used_caches_go_first(tmp_path: Path) -> None:
    """Until the rest fits; those of a build that runs stay."""
    caches = AppCaches(tmp_path, max_bytes=2500)
    oldest, old, running = (filled(caches, name, 1000) for name in ("oldest", "old", "running"))
    for number, folder in enumerate((running, oldest, old)):
        os.utime(folder, (OLD[0] + number, OLD[0] + number))

    with caches.of("running"):
        os.utime(running, OLD)
        assert await caches.sweep() == 1

    assert not oldest.exists()
    assert old.exists()
    assert running.exists()


async def test_caches_that_fit_stay(tmp_path: Path) -> None:
    """A limit that is not reached removes nothing."""
    caches = AppCaches(tmp_path, max_bytes=10_000)
    folder = filled(caches, "a", 1000)

    assert await caches.sweep() == 0
    assert folder.exists()
