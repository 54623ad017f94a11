"""Secrets of apps: read by right and on record, never set by a repository, masked wherever text is kept."""

import pytest
from pydantic import BaseModel, ValidationError

from seedwork.jobs import Outcome
from seedwork.messages import reason_of
from seedwork.participant import Work
from services.source.contract import is_platforms
from tests.security.house import OPERATOR, SERVICE, House
from tests.security.victim import APP, Victim

PASSWORD = "correct-horse-battery-staple"

shared = pytest.mark.xdist_group("house")
together = pytest.mark.asyncio(loop_scope="session")


async def _config(platform: House, token: str, **params: str) -> tuple[int, dict[str, str]]:
    answer = await platform.ask("deployer", "GET", f"/apps/{APP}/config", token, params=params)
    return answer.status_code, answer.json()


@together
@shared
async def test_values_need_a_right_of_their_own(platform: House, victim: Victim) -> None:
    """Neither a viewer nor an administrator reads them without it, and names are shown to both."""
    change = {"PASSWORD": PASSWORD}
    assert (
        await platform.ask("deployer", "PATCH", f"/apps/{APP}/config", victim.token, json=change)
    ).status_code == 200
    for scopes in (["read"], ["read", "deploy"], ["admin"]):
        token = await platform.token(f"no-reveal-{'-'.join(scopes)}", teams=["acme"], scopes=scopes)
        assert (await _config(platform, token, reveal="1"))[0] == 403
        status, shown = await _config(platform, token)
        assert status == 200
        assert "PASSWORD" in shown
        assert PASSWORD not in shown.values()
    token = await platform.token("may-reveal", teams=["acme"], scopes=["read", "reveal"])
    assert (await _config(platform, token, reveal="1"))[1]["PASSWORD"] == PASSWORD


@together
@shared
async def test_each_reading_of_values_is_on_record(platform: House, victim: Victim) -> None:
    """With the token's name and the names of the variables; masked lists and the builder leave no entry."""

    async def entries(token: str, **params: str) -> list[tuple[str, str]]:
        answer = await platform.ask("deployer", "GET", "/audit", token, params=params)
        assert answer.status_code == 200
        return [(each["by"], each["what"]) for each in answer.json()["items"]]

    await platform.ask("deployer", "PATCH", f"/apps/{APP}/config", victim.token, json={"PASSWORD": PASSWORD})
    reader = await platform.token("reader-of-values", teams=["acme"], scopes=["read", "reveal"])
    before = len(await entries(victim.token))
    await _config(platform, reader)
    await platform.ask(
        "deployer", "GET", f"/apps/{victim.app_id}/config", SERVICE, params={"reveal": "1", "scope": "build"}
    )
    assert len(await entries(victim.token)) == before
    await _config(platform, reader, reveal="1")
    after = await entries(victim.token, app=APP)
    assert len(after) == before + 1
    assert after[0][0] == "reader-of-values"
    assert "PASSWORD" in after[0][1]
    assert PASSWORD not in after[0][1]
    rival = await platform.token("auditor", teams=["rivals"], scopes=["admin"])
    assert await entries(rival) == []
    assert len(await entries(OPERATOR)) >= before + 1


@pytest.mark.parametrize(
    "name",
    [
        "PORT",
        "KNARR_TOKEN",
        "KNARR_HOME_ID",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "PATH",
        "PYTHONHOME",
        "BASH_ENV",
    ],
)
def test_a_repository_sets_no_variable_of_the_platform_or_the_loader(name: str) -> None:
    """Such a variable would act on the programs that start the app."""
    assert is_platforms(name)


@pytest.mark.parametrize("name", ["PORTAL", "KNARR", "PYTHONPATH", "NODE_OPTIONS", "ENV", "DATABASE_URL", "path"])
def test_other_variables_are_the_apps(name: str) -> None:
    """Many apps need them."""
    assert not is_platforms(name)


def _work() -> Work:
    return Work(saga_id="s", step="deploy", app_id="a", team="acme", app=APP, attempt=1, fence=1)


def test_what_a_participant_answers_is_masked_before_it_is_stored() -> None:
    """The one place that every job row, event and saga log entry passes; facts by which a saga goes on stay."""
    work = _work()
    work.hide([PASSWORD, "line-one-of-a-key\nline-two-of-a-key"])
    data = {
        "message": f"The app printed {PASSWORD}.",
        "log_tail": ["line-one-of-a-key", f"x {PASSWORD[:20]}", "postgres://u:" + PASSWORD + "@db/"],
        "code": PASSWORD,
        "retryable": False,
    }
    shown = work.masked(Outcome(type="ReleaseDeployFailed", data=data, failure=True))
    assert PASSWORD[:16] not in str([shown.data["message"], shown.data["log_tail"]])
    assert "line-one" not in str(shown.data)
    assert (shown.data["code"], shown.failure, shown.type) == (PASSWORD, True, "ReleaseDeployFailed")
    assert work.shown(f"starting with {PASSWORD}") == "starting with ********"


def test_work_without_secrets_answers_as_it_is() -> None:
    """No outcome is rebuilt for nothing."""
    outcome = Outcome(type="ImageBuilt", data={"message": "fine"})
    assert _work().masked(outcome) is outcome


def test_the_reason_of_a_dead_letter_repeats_no_value() -> None:
    """A wrong field may hold a secret; its name and what is allowed are enough."""

    class Wanted(BaseModel):
        count: int

    with pytest.raises(ValidationError) as wrong:
        Wanted.model_validate({"count": PASSWORD})
    assert reason_of(wrong.value).startswith("The data does not fit: count: ")
    assert PASSWORD not in reason_of(wrong.value)
