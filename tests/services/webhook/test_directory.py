"""Which secrets are tried for a webhook."""

from types import SimpleNamespace
from typing import Any

from services.webhook.directory import Directory, Picture
from tests.services.webhook.conftest import Knarr


def picture(*known: tuple[str, str | None, bytes]) -> Picture:
    """From app id, repository key and secret."""
    rows: Any = [
        (SimpleNamespace(app_id=app, repository_key=key, secret_version=1, team="default", name=f"app-{app}"), secret)
        for app, key, secret in known
    ]
    return Picture.of(rows)


def test_candidates_are_the_secrets_of_the_repositorys_apps() -> None:
    """Each once, and no other app's."""
    seen = picture(("1", "a/b", b"x"), ("2", "a/b", b"y"), ("3", "a/b", b"x"), ("4", "c/d", b"z"), ("5", None, b"w"))
    assert seen.candidates(["a/b"]) == {b"x", b"y"}
    assert seen.candidates(["a/b", "c/d", "e/f"]) == {b"x", b"y", b"z"}


def test_where_the_repository_has_no_app_every_secret_is_tried_the_likely_ones_first() -> None:
    """A repository that was renamed keeps its owner or its name."""
    seen = picture(("1", "a/b", b"x"), ("2", "c/d", b"y"), ("3", None, b"w"), ("4", "e/a", b"v"))
    assert seen.candidates([]) == seen.candidates(["e/f"]) == Picture().candidates(["a/b"]) == frozenset()
    assert seen.others([]) == [b"v", b"w", b"x", b"y"]
    assert seen.others(["c/new"]) == [b"y", b"v", b"w", b"x"]
    assert seen.others(["new/d"]) == [b"y", b"v", b"w", b"x"]
    assert seen.others(["a/a"]) == [b"v", b"x", b"w", b"y"]


def test_a_secret_of_one_repository_tells_that_it_was_renamed() -> None:
    """A secret of several repositories is one of an organization's hook."""
    seen = picture(("1", "a/b", b"x"), ("2", "a/b", b"x"), ("3", "c/d", b"y"), ("4", "e/f", b"y"), ("5", None, b"z"))
    assert [each.name for each in seen.renamed([b"x"])] == ["app-1", "app-2"]
    assert list(seen.renamed([b"y"])) == list(seen.renamed([b"x", b"y"])) == list(seen.renamed([b"z"])) == []


async def test_guessing_signatures_costs_one_query_a_second(knarr: Knarr) -> None:
    """And what has changed here is seen at once."""
    from services.webhook.vault import Vault

    vault = Vault.open(None, knarr.service.home / "secret.key")
    directory = Directory(knarr.service.db, vault, knarr.clock)
    first = await directory.picture()
    assert await directory.looked_again(first) is first
    knarr.clock.ahead_ms += 2_000
    second = await directory.looked_again(first)
    assert second is not first
    assert await directory.picture() is second
    directory.forget()
    assert await directory.looked_again(second) is not second
