"""The command line against a running platform: what people type, what they read, what scripts get."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from knarr.client import Platform
from seedwork.errors import Unauthenticated
from tests.e2e.harness import CRASHES, SECRET, Knarr, Laptop, eventually, web_app

pytestmark = pytest.mark.xdist_group("e2e-main")

EXAMPLES = Path(__file__).parents[2] / "examples"


def typed(knarr: Knarr, *words: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `knarr …` on the platform's home."""
    done = subprocess.run(
        [sys.executable, "-m", "knarr", *words],
        env=knarr.environment(KNARR_HOME=str(knarr.home)),
        cwd=knarr.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == check, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def folder(knarr: Knarr, name: str, files: dict[str, str]) -> Path:
    path = knarr.folder / "folders" / name
    for file, text in files.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(text)
    return path


def test_deploy_shows_each_step_and_prints_the_address_alone(knarr: Knarr) -> None:
    """Progress on standard error, the address on standard output: `curl $(knarr deploy)`."""
    done = typed(knarr, "deploy", str(folder(knarr, "plain-folder", web_app("plain"))))
    assert done.stdout.strip() == knarr.app("plain-folder")["url"]
    for step in ("source", "build", "publish", "deploy"):
        assert f"✓ {step}" in done.stderr
    assert knarr.ask("plain-folder") == "plain"


def test_a_deployment_that_is_undone_ends_with_five_and_says_why(knarr: Knarr) -> None:
    """Step, reason, the app's last lines, and each undo."""
    done = typed(knarr, "deploy", str(folder(knarr, "crashing", {**web_app("x"), "app.py": CRASHES})), check=5)
    assert done.stdout == ""
    assert "✗ deploy" in done.stderr
    assert "about to crash" in done.stderr
    assert done.stderr.count("↶") == 4


def test_json_is_one_document_for_programs(knarr: Knarr) -> None:
    """The saga as it ended, with the address."""
    done = typed(knarr, "deploy", "--json", str(folder(knarr, "as-json", web_app("x"))))
    saga = json.loads(done.stdout)
    assert saga["state"] == "SUCCEEDED"
    assert saga["url"] == knarr.app("as-json")["url"]


def test_a_wait_that_is_too_long_ends_with_seven_and_the_deployment_goes_on(knarr: Knarr) -> None:
    """It says how to look again."""
    slow = {**web_app("x"), "Procfile": "release: sleep 3\nweb: python app.py\n"}
    done = typed(knarr, "deploy", "--timeout", "0.1", str(folder(knarr, "hurry", slow)), check=7)
    assert "knarr deployments" in done.stderr
    eventually("it is deployed all the same", lambda: knarr.app("hurry")["release"] == 1)


def test_ctrl_c_detaches(knarr: Knarr) -> None:
    """130; the deployment goes on, and the text says how to look again and how to cancel."""
    slow = {**web_app("x"), "Procfile": "release: sleep 3\nweb: python app.py\n"}
    with subprocess.Popen(
        [sys.executable, "-m", "knarr", "deploy", str(folder(knarr, "detached", slow))],
        env=knarr.environment(KNARR_HOME=str(knarr.home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stderr is not None
        said = ""
        while "✓ publish" not in said:
            line = watching.stderr.readline()
            assert line, said
            said += line
        watching.send_signal(signal.SIGINT)
        said += watching.stderr.read()
    assert watching.returncode == 130
    assert "knarr sagas cancel" in said
    eventually("it is deployed all the same", lambda: knarr.app("detached")["release"] == 1)


def test_what_is_not_there_ends_with_three_and_what_is_forbidden_with_four(knarr: Knarr) -> None:
    """Scripts tell them apart."""
    assert "nowhere" in typed(knarr, "apps", "show", "nowhere", check=3).stderr
    done = subprocess.run(
        [sys.executable, "-m", "knarr", "apps", "list"],
        env=knarr.environment(KNARR_HOME=str(knarr.home), KNARR_TOKEN="wrong"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4


def test_config_releases_rollback_scale_restart_logs_and_removal(knarr: Knarr) -> None:
    """A day in the life of an app, typed."""
    typed(knarr, "deploy", "--app", "daily", str(folder(knarr, "daily", web_app("one"))))
    typed(knarr, "config", "set", "daily", "GREETING=hello")
    assert knarr.ask("daily", "/env") == "hello"
    assert "hello" not in typed(knarr, "config", "list", "daily").stdout
    assert typed(knarr, "config", "get", "daily", "GREETING").stdout.strip() == "hello"
    typed(knarr, "scale", "daily", "web=2")
    eventually("two instances", lambda: len(knarr.app("daily")["instances"]) == 2)
    typed(knarr, "restart", "daily")
    typed(knarr, "rollback", "daily", "--to", "1")
    assert knarr.ask("daily", "/env") == "unset"
    releases = json.loads(typed(knarr, "releases", "daily", "--json").stdout)
    assert [each["number"] for each in releases] == [5, 4, 3, 2, 1]
    assert "version one listens" in typed(knarr, "logs", "daily").stdout
    assert typed(knarr, "open", "daily").stdout.strip() == knarr.app("daily")["url"]
    sagas = json.loads(typed(knarr, "deployments", "--app", "daily", "--json").stdout)
    assert "DeployRelease" in typed(knarr, "sagas", "log", sagas[0]["id"]).stdout
    typed(knarr, "apps", "remove", "daily", "--yes")
    typed(knarr, "apps", "show", "daily", check=3)


def test_a_command_runs_beside_the_app_and_the_app_is_stopped_and_started(knarr: Knarr) -> None:
    """In the environment of its release, with its exit code; a stopped app has no address until it is started."""
    typed(knarr, "deploy", "--app", "verbs", str(folder(knarr, "verbs", web_app("one"))))
    typed(knarr, "config", "set", "verbs", "GREETING=hello")
    code = "import os, sys; print(os.environ['GREETING']); sys.exit(7)"
    assert typed(knarr, "run", "verbs", "python", "-c", code, check=7).stdout == "hello\n"
    assert "`knarr start verbs`" in typed(knarr, "stop", "verbs").stderr
    assert (knarr.app("verbs")["state"], knarr.app("verbs")["url"]) == ("stopped", None)
    assert "Nothing changed" in typed(knarr, "stop", "verbs").stdout
    assert "`knarr start verbs`" in typed(knarr, "open", "verbs", check=3).stderr
    typed(knarr, "start", "verbs")
    assert knarr.ask("verbs", "/env") == "hello"
    assert "web.1" in typed(knarr, "ps", "verbs").stdout
    line = json.loads(typed(knarr, "logs", "verbs", "--json", "--process", "web").stdout.splitlines()[-1])
    assert line["process"] == "web.1"


def test_a_signed_push_can_be_sent_from_a_local_repository(knarr: Knarr) -> None:
    """As GitHub would send it."""
    repository = knarr.repository("typed-push")
    knarr.create_app("typed-push", repository)
    secret_file = knarr.folder / "secret"
    secret_file.write_text(SECRET)
    words = ["webhook", "send", str(repository.path), "--app", "typed-push", "--secret-file", str(secret_file)]
    assert typed(knarr, *words).stdout.strip() == knarr.app("typed-push")["url"]
    assert "accepted" in typed(knarr, "webhook", "deliveries").stdout


@pytest.mark.parametrize("example", ["hello-static", "hello-node", "worker-python", "cupaas-python", "hello-python"])
def test_each_example_can_be_deployed(knarr: Knarr, example: str) -> None:
    """They are what people try first."""
    typed(knarr, "deploy", str(EXAMPLES / example))
    assert "ello from" in knarr.ask(example)


def test_doctor_is_content(knarr: Knarr) -> None:
    """Everything that matters is there."""
    findings = json.loads(typed(knarr, "doctor", "--json").stdout)
    assert [each for each in findings if each["state"] == "wrong"] == []
    assert {each["name"]: each["state"] for each in findings}["token"] == "ok"


@pytest.mark.laptop("`knarr up` is a command of the laptop")
def test_a_second_platform_on_the_same_home_is_refused(knarr: Laptop) -> None:
    """It says who has it."""
    done = typed(knarr, "up", "--port-base", str(knarr.port_base), check=1)
    assert knarr.process is not None
    assert f"kill {knarr.process.pid}" in done.stderr


@pytest.mark.laptop("`knarr up` is a command of the laptop")
def test_a_taken_port_is_explained(knarr: Laptop) -> None:
    """Which service wanted it, and the way out."""
    done = typed(knarr, "up", "--home", str(knarr.folder / "other"), "--port-base", str(knarr.port_base), check=1)
    assert f"Port {knarr.port_base + 1} is taken" in done.stderr
    assert "--port-base" in done.stderr


def test_a_granted_token_is_known_to_all_services_and_refused_once_revoked(knarr: Knarr) -> None:
    """In one process as in separate ones, without a restart; it sees no other team's apps and sagas."""
    typed(knarr, "deploy", str(folder(knarr, "of-the-operator", web_app("x"))))
    secret = typed(knarr, "tokens", "create", "visitor", "--team", "visitors", "--scope", "read").stdout.strip()
    lists = {"webhook": "/apps", "registry": "/images", "deployer": "/storage", "saga_coordinator": "/sagas"}
    with contextlib.closing(Platform(knarr.address, secret)) as visitor:
        assert {name: visitor.get(name, path)["items"] for name, path in lists.items()} == {name: [] for name in lists}
        typed(knarr, "tokens", "revoke", "visitor")

        def refused() -> bool | None:
            for name, path in lists.items():
                try:
                    visitor.get(name, path)
                except Unauthenticated:
                    continue
                return None
            return True

        assert eventually("every service refuses the token", refused)
