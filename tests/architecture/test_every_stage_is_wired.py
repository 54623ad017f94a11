"""Adding a stage means one folder, one line in the list of services, and messages that document themselves."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

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
