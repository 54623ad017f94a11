"""What `deployer` asks of the world: something that runs images, and says what runs.

A runtime knows no releases' history and decides nothing; it runs what it is given under the label of a saga, and can
name and remove everything that carries that label. Local processes, containers and Kubernetes objects fit it alike:
`prepare` is a pull, `start` makes the instances, `observe` waits for them, `switch` moves the traffic, `stop` removes.
Every method may be called again with the same arguments and then changes nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from ocistore.store import Image
from services.source.contract import HealthCheck

InstanceState = Literal["starting", "up", "crashed", "stopping", "down", "drifted"]
"""State of one instance.

`crashed`: it ended by itself and is started again after a wait that grows (`next_start_ms`). `down`: the runtime has no
such instance although the release wants it. `drifted`: it runs, but not as the release says (another image).
"""

Note = Callable[[str], None]
"""Told what is waited for, a short phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOn:
    """A database or cache of an app's own."""

    app_id: str
    app: str
    team: str
    saga_id: str
    """Who asked for it first. It outlives that saga's release, so this is no label by which `stop` finds it."""
    name: str
    """The host under which the app's instances reach it."""
    kind: str
    """`mongodb`, `mysql`, `postgres` or `redis`."""
    version: str | None
    """As asked for; null: the platform's choice."""
    user: str
    """Of its user and its database."""
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A folder that outlives releases. All instances of an app share it."""

    app_id: str
    name: str
    path: str
    """Where a container sees it, for example `/data`."""
    size_bytes: int
    """Requested size in bytes. Which runtime enforces it: `docs/storage.md`."""

    @property
    def variable(self) -> str:
        """Name of the config var that holds the path."""
        return f"STORAGE_{self.name.upper().replace('-', '_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Everything that a runtime needs to know to run a release."""

    app_id: str
    app: str
    team: str
    saga_id: str
    """The label: whoever removes this saga's things finds them by it."""
    number: int
    image: Image
    processes: Mapping[str, tuple[str, ...]]
    """Argument lists by process type."""
    formation: Mapping[str, int]
    """Instances by process type."""
    env: Mapping[str, str] = field(repr=False)
    """Config vars and declared defaults; the image's own variables are the runtime's to add."""
    release_command: tuple[str, ...] | None = None
    health_path: str | None = None
    """Superseded by `checks`."""
    checks: Mapping[str, tuple[HealthCheck, ...]] = field(default_factory=dict)
    """Health checks by process type, as the app declares them; `services.deployer.checks` completes them."""
    port: int | None = None
    """Port on which `web` listens whatever PORT says; null: PORT."""
    volumes: tuple[Volume, ...] = ()
    """Folders that outlive releases."""
    commit: str | None = None
    """What it was built from; instances are told, so that an app can show it."""
    addons: tuple[AddOn, ...] = ()
    """What must be there before anything of the release runs."""

    @property
    def repository(self) -> str:
        """Where its image is."""
        return self.image.repository

    @property
    def digest(self) -> str:
        """Of its image."""
        return self.image.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One running (or to be running) copy of a process."""

    id: str
    app_id: str
    saga_id: str
    release: int
    process: str
    """`web.1`: the process type and its number."""
    state: InstanceState
    since_ms: int
    restarts: int = 0
    note: str = ""
    """Why it is not up, for people."""
    digest: str = ""
    """Of the image that it was started from, as observed."""
    next_start_ms: int | None = None
    """Time of the next start of a crashed instance; null: it is not waiting for one."""
    first_answer_ms: int | None = None
    """Milliseconds from its first start until its checks had passed; null: the runtime did not see it."""
    log_tail: tuple[str, ...] = ()
    """Last lines before its last end, without secrets; empty: it has not ended, or the runtime does not keep them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Counts of one release since it received traffic."""

    requests: int
    """Answered requests, `errors` included."""
    errors: int
    """Answers with a status of 500 or above, and requests that the release did not answer."""
    cut_requests: int = 0
    """Requests that were still open when the drain time was over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A difference between what a release wants and what runs."""

    app_id: str
    saga_id: str
    what: str
    """One sentence for people: `the container of web.1 is gone`."""
    repaired: bool
    """True: this pass repaired it. False: it is still there; a later pass tries again."""
    at_ms: int


class RunningCommand(Protocol):
    """A one-off process.

    Iterating gives its output (stdout and stderr) in pieces, until it has ended and `exit_code` is set.
    """

    exit_code: int | None
    """Exit status, or 128 + the number of the signal that ended it; null while it runs."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of its output."""

    async def close(self) -> None:
        """End it and everything that it started; without effect where it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an app is reached, from its first deployment to its removal."""

    url: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """A release that runs without traffic while the one after it is observed."""

    saga_id: str
    load: Callable[[], Awaitable[Release]]
    """The release; raises `NotWarm` as soon as the observation has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an app should look like after a restart of ours."""

    app_id: str
    app: str
    port: int
    fence: int
    saga_id: str | None
    """Whose release serves; null: nobody's."""
    processes: AbstractSet[str] = frozenset()
    """Process types in its formation, also those of which there shall be no instance; empty: they are not known."""
    load: Callable[[], Awaitable[Release]]
    """The release that serves; called only where there is one, again after an error."""
    warm: Warm | None = None
    """The release before, while the one that serves is observed; a runtime without room for both may leave it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What must stay on this machine."""

    sagas: AbstractSet[str]
    layers: AbstractSet[str]
    """Digests."""
    images: AbstractSet[str] = frozenset()
    """Digests."""


class AddOns(Protocol):
    """Provides add-ons, where the runtime can.

    Raises, from every method:
        Unavailable: The runtime does not answer.
    """

    def address(self, app_id: str, name: str, port: int) -> tuple[str, int]:
        """Return host and port under which the app's instances reach an add-on; `port` is its kind's usual one."""

    async def provide(self, addon: AddOn, *, note: Note) -> None:
        """Have it run and take connections from the app's instances; its data is as it was left.

        Raises:
            AddOnDoesNotStart: It does not; `log_tail` has its last lines.
        """

    async def withdraw(self, app_id: str, name: str) -> Sequence[str]:
        """Remove it with its data; what was found."""


class Volumes(Protocol):
    """Reads, replaces and deletes the content of volumes. The runtime itself makes and mounts them.

    Raises, from every method:
        Unavailable: The runtime does not answer.
        CannotRun: This runtime cannot do it; the text says what can.
    """

    async def used_bytes(self, volume: Volume) -> int | None:
        """Return the bytes in it, or None: the runtime does not know, or the volume was never mounted."""

    def read(self, volume: Volume) -> AsyncIterator[bytes]:
        """Return its content as the pieces of a tar archive."""

    async def replace(self, volume: Volume, archive: Path) -> None:
        """Replace its content by that of a tar archive; on an error the content before stays.

        Raises:
            InvalidInput: The archive is damaged, or an entry would leave the folder.
        """

    async def delete(self, volume: Volume) -> Sequence[str]:
        """Delete it with its content; return what was found."""


class Runtime(Protocol):
    """Runs releases.

    Raises, from every method:
        Unavailable: The runtime does not answer.
        StorageFull: The disk has no room left.
    """

    name: str
    """`process`, `docker`, `kubernetes`."""
    addons: AbstractSet[str]
    """Kinds of add-ons that it can provide."""

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """Give the app its stable address, or say which one it has; `taken` ports belong to other apps."""

    async def prepare(self, release: Release) -> None:
        """Have the image's bytes, and what else is there before instances, where they can run.

        The app's address may be found at the same time.

        Raises:
            NotFound: The image's bytes are not in the store.
            CannotRun: It is no image for this runtime.
        """

    async def run_release_command(self, release: Release) -> None:
        """Run the release's `release:` command to its end.

        Raises:
            ReleaseCommandFailed: It ended with an error, or took too long; `log_tail` has its last lines.
        """

    async def start(self, release: Release) -> None:
        """Start its instances, without traffic; those that run already stay."""

    async def observe(self, release: Release, *, note: Note) -> None:
        """Wait until every instance runs the release's digest and answers; from then on crashes are restarted.

        Raises:
            AppDoesNotStart: One does not; the text says exactly what it does instead, `log_tail` its last lines.
        """

    async def switch(self, app_id: str, saga_id: str | None, *, fence: int) -> None:
        """Send new requests to this saga's instances (None: nobody's), requests under way end where they are.

        Raises:
            Fenced: Traffic was moved under a higher fence.
        """

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """Let requests end, stop the saga's instances, remove everything that carries its label; what was found."""

    async def forget(self, app_id: str) -> Sequence[str]:
        """Remove everything of the app, its address and logs included; what was found."""

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """What runs, or should."""

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:
        """Start a one-off process in the release's environment; `label` is its name in listings (`run.1`).

        Raises:
            CannotRun: This runtime cannot do it.
        """

    async def traffic(self, app_id: str, saga_id: str) -> Traffic | None:
        """Counts since this saga's release received traffic; None: the runtime does not see requests."""

    async def trouble(self, app_id: str) -> str:
        """Why the app cannot be reached or started, for people; empty: nothing is known."""

    def logs(self, app_id: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """The last lines that the app printed; with `follow` what comes, until the caller closes it."""

    async def recover(self, standing: Sequence[Standing]) -> None:
        """After a restart of ours: exactly this runs, and nothing else of ours; returns before apps are up."""

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:
        """Compare what runs with what should; repair with a bound and a backoff; return what differed.

        Called every few seconds. A `Standing` whose fence is below one that this runtime has seen is skipped.
        """

    async def sweep(self, needed: Callable[[], Awaitable[Needed]]) -> None:
        """Remove what nobody needs. `needed` is asked after looking what there is: what came later stays."""

    async def close(self) -> None:
        """Stop what runs in this process; what the database says starts again at the next `recover`."""
