"""Adding a stage means one folder, one line in the list of services, one compose entry, one manifest."""

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from seedwork.chassis.settings import SERVICE_PORTS, ServiceSettings
from seedwork.messages import Command, Event, FailureEvent, Message, UndoneEvent

ROOT = Path(__file__).parents[2]
SKELETON = ("contract.py", "settings.py", "models.py", "api.py", "app.py", "__main__.py", "migrations/env.py")


def messages_of(service: str) -> list[type[Message]]:
    module = importlib.import_module(f"services.{service}.contract")
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Command | Event) and each.__module__ == module.__name__
    ]


ALL_MESSAGES = [each for service in SERVICE_PORTS for each in messages_of(service)]


def test_each_folder_is_a_service_and_each_service_a_folder() -> None:
    """The list of services and the folders say the same."""
    folders = {each.parent.name for each in (ROOT / "services").glob("*/contract.py")}
    assert folders == set(SERVICE_PORTS)


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_each_service_has_the_skeleton(service: str) -> None:
    """Whoever knows one service finds their way in the others."""
    missing = [name for name in SKELETON if not (ROOT / "services" / service / name).is_file()]
    assert not missing


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_each_service_has_at_least_one_migration(service: str) -> None:
    """A database without migrations cannot be upgraded later."""
    assert list((ROOT / "services" / service / "migrations" / "versions").glob("*.py"))


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_each_service_has_settings_that_explain_themselves(service: str) -> None:
    """Each setting of its own has a sentence below it, with unit and reason."""
    module = importlib.import_module(f"services.{service}.settings")
    (own,) = [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, ServiceSettings) and each.__module__ == module.__name__
    ]
    classes = [each for each in own.__mro__ if issubclass(each, ServiceSettings) and each is not ServiceSettings]
    source = "".join(map(inspect.getsource, classes))
    silent = [
        name
        for name in own.model_fields
        if name not in ServiceSettings.model_fields
        and not re.search(rf'\n    {name}\b[^"]*(?:"[^"\n]*"[^"]*)*?"""', source)
    ]
    assert not silent


@pytest.mark.parametrize("message", ALL_MESSAGES, ids=lambda each: each.__name__)
def test_each_message_has_a_valid_example(message: type[Message]) -> None:
    """The example is what the documentation shows, and what the test endpoints send."""
    example = message.example()
    assert message.model_validate(example.model_dump(mode="json")) == example


@pytest.mark.parametrize("message", ALL_MESSAGES, ids=lambda each: each.__name__)
def test_each_message_says_what_it_means(message: type[Message]) -> None:
    """A docstring of its own: the generated page of messages is made of them."""
    assert (message.__doc__ or "").strip() != (message.__mro__[1].__doc__ or "").strip()


def test_message_names_are_unique() -> None:
    """The class name is the message's type on the bus."""
    names = [each.__name__ for each in ALL_MESSAGES]
    assert len(names) == len(set(names))


def test_each_undo_and_failure_has_the_common_fields() -> None:
    """What the log shows of an undo and of a failure is the same for each service."""
    for each in ALL_MESSAGES:
        if each.__name__.endswith("Failed") and each.__name__ != "DeploymentFailed":
            assert issubclass(each, FailureEvent), each
        if each.__name__.endswith(("Discarded", "Unpublished", "RolledBack")):
            assert issubclass(each, UndoneEvent), each


def test_each_step_of_each_saga_speaks_messages_of_the_services() -> None:
    """What a definition sends and awaits is in some service's contract."""
    sagas = importlib.import_module("services.saga_coordinator.sagas")
    known = {each.__name__ for each in ALL_MESSAGES}
    definitions = [each for _, each in inspect.getmembers(sagas) if type(each).__name__ == "Saga"]
    assert {each.name for each in definitions} >= {"deploy", "release", "remove"}
    for definition in definitions:
        for step in definition.steps:
            assert step.ok.__name__ in known, (definition.name, step.name)
            assert step.failed.__name__ in known, (definition.name, step.name)


# --- one compose entry, one manifest ----------------------------------------------------------------------------------

COMPOSE: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
K8S = ROOT / "deploy" / "k8s"
ENGINE = "/var/run/docker.sock"


def hyphened(service: str) -> str:
    """A service's name where names are DNS labels."""
    return service.replace("_", "-")


def port(service: str) -> int:
    return 8701 + SERVICE_PORTS.index(service)


def manifests(folder: Path) -> list[Mapping[str, Any]]:
    """All objects of a kustomization's own files."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [each for name in listed for each in yaml.safe_load_all((folder / name).read_text())]


def of_kind(kind: str, name: str) -> Mapping[str, Any]:
    (found,) = [each for each in manifests(K8S / "base") if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_each_service_has_a_compose_entry(service: str) -> None:
    """Its program, its port on loopback, a check that it is ready, a volume of its own and a bound on what it takes."""
    entry = COMPOSE["services"][hyphened(service)]
    assert entry["command"] == ["python", "-m", f"services.{service}"]
    assert any(each.endswith(f":{port(service)}") for each in entry["ports"])
    assert entry["healthcheck"]["test"][-1] == "/readyz"
    assert f"{hyphened(service)}:/var/lib/knarr" in entry["volumes"]
    assert set(entry["deploy"]["resources"]["limits"]) >= {"cpus", "memory"}
    assert entry["depends_on"]["db-upgrade"]["condition"] == "service_completed_successfully"
    assert entry["depends_on"]["bus-setup"]["condition"] == "service_completed_successfully"
    assert entry["environment"][f"KNARR_{service.upper()}_URL"] == f"http://{hyphened(service)}:{port(service)}"


def test_what_compose_publishes_is_on_loopback() -> None:
    """A fresh installation talks to nobody else on the network."""
    published = [each for entry in COMPOSE["services"].values() for each in entry.get("ports", ())]
    assert len(published) >= len(SERVICE_PORTS)
    assert not [each for each in published if not each.startswith("127.0.0.1:")]


def test_only_those_who_need_the_engine_have_its_socket() -> None:
    """Whoever has it has the machine."""
    with_socket = {
        name
        for name, entry in COMPOSE["services"].items()
        if any(each.endswith(f":{ENGINE}") for each in entry.get("volumes", ()))
    }
    assert with_socket == {"builder", "deployer"}


def test_no_container_of_ours_has_more_rights_than_it_needs() -> None:
    """No capability but for the job that gives volumes to their owners, no new privileges, a read-only file system."""
    ours = {name: each for name, each in COMPOSE["services"].items() if "knarr" in each["image"]}
    assert set(ours) >= {hyphened(service) for service in SERVICE_PORTS}
    for name, entry in ours.items():
        assert entry["cap_drop"] == ["ALL"], name
        assert entry["read_only"], name
        assert entry["security_opt"] == ["no-new-privileges:true"], name
    assert [name for name, entry in ours.items() if entry.get("cap_add")] == ["secrets"]


def test_the_job_of_compose_upgrades_each_database() -> None:
    """It goes through the services by name."""
    script = COMPOSE["services"]["db-upgrade"]["command"][-1]
    (listed,) = re.findall(r"for service in ([a-z_ ]+);", script)
    assert tuple(listed.split()) == SERVICE_PORTS


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_each_service_has_a_manifest(service: str) -> None:
    """A Service on its port; a Deployment that runs it, is probed, waits for the jobs, and has its own Secret."""
    name = hyphened(service)
    (listening,) = of_kind("Service", name)["spec"]["ports"]
    assert listening["port"] == port(service)
    deployment = of_kind("Deployment", name)["spec"]
    pod = deployment["template"]["spec"]
    assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    (container,) = pod["containers"]
    assert container["args"] == ["python", "-m", f"services.{service}"]
    assert container["ports"] == [{"name": "http", "containerPort": port(service)}]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {"secretRef": {"name": f"knarr-{name}"}} in container["envFrom"]
    assert pod["initContainers"][0]["args"] == ["python", "-m", "knarr.await_setup", service]
    assert pod["terminationGracePeriodSeconds"] > ServiceSettings.model_fields["stop_grace_s"].default
    settings = of_kind("ConfigMap", "knarr")["data"]
    assert settings[f"KNARR_{service.upper()}_URL"] == f"http://{name}:{port(service)}"


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_each_pod_is_restricted(service: str) -> None:
    """Not root, no capability, a read-only file system, bounds; a token of the cluster for `deployer` alone."""
    pod = of_kind("Deployment", hyphened(service))["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is (service == "deployer")
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def test_the_job_of_the_cluster_upgrades_each_database() -> None:
    """A container for each, with that service's own user."""
    containers = of_kind("Job", "db-upgrade")["spec"]["template"]["spec"]["containers"]
    upgraded = [(each["args"], each["envFrom"][0]["secretRef"]["name"]) for each in containers]
    assert upgraded == [
        (["knarr", "db", "upgrade", "--service", service], f"knarr-{hyphened(service)}") for service in SERVICE_PORTS
    ]


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_each_service_has_a_disruption_budget(version: str) -> None:
    """The two folders say the same for two generations of clusters."""
    budgets = manifests(K8S / "disruption-budgets" / version)
    assert {each["apiVersion"] for each in budgets} == {f"policy/{version}"}
    selected = [each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] for each in budgets]
    assert selected == [hyphened(service) for service in SERVICE_PORTS]


def test_production_has_two_of_each_service() -> None:
    """The autoscaler says how many there are of `webhook`, the overlay of the others."""
    overlay = K8S / "overlays" / "production"
    replicas = {
        each["metadata"]["name"]: each["spec"]["replicas"]
        for each in yaml.safe_load_all((overlay / "replicas.yaml").read_text())
    }
    scaling = yaml.safe_load((overlay / "scaling.yaml").read_text())["spec"]
    replicas[scaling["scaleTargetRef"]["name"]] = scaling["minReplicas"]
    assert replicas == {hyphened(service): 2 for service in SERVICE_PORTS}
    assert "replicas" not in of_kind("Deployment", "webhook")["spec"]


def test_production_gives_the_authorities_to_whoever_reads_their_settings() -> None:
    """Each container of each service and job finds the file; a job that has no settings of others gets this one."""
    pods = [each for each in manifests(K8S / "base") if each["kind"] in {"Deployment", "Job"}]
    overlay = (K8S / "overlays" / "production" / "authorities.yaml").read_text()
    given = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in yaml.safe_load_all(overlay)}
    for name, pod in ((each["metadata"]["name"], each["spec"]["template"]["spec"]) for each in pods):
        for kind in ("initContainers", "containers"):
            patched = {each["name"]: each for each in given[name].get(kind, ())}
            assert set(patched) == {each["name"] for each in pod.get(kind, ())}, name
            assert all(each["volumeMounts"] for each in patched.values()), name
            for container in pod.get(kind, ()):
                reads_settings = {"configMapRef": {"name": "knarr"}} in container["envFrom"]
                assert reads_settings or patched[container["name"]]["env"][0]["name"] == "KNARR_DATABASE_TLS_CA"


def test_both_ways_run_the_same_versions() -> None:
    """Pulsar, MySQL and the registry of compose and of the overlay `dev`, with the same settings."""
    overlay = {each["metadata"]["name"]: each for each in manifests(K8S / "overlays" / "dev") if "Set" in each["kind"]}
    overlay |= {
        each["metadata"]["name"]: each for each in manifests(K8S / "overlays" / "dev") if each["kind"] == "Deployment"
    }
    for name in ("pulsar", "mysql", "images"):
        (container,) = overlay[name]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == COMPOSE["services"][name]["image"]
        plain = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        assert plain.items() <= COMPOSE["services"][name]["environment"].items()
