"""The sagas. Downward each reads as the flow, upward as the undo (DESIGN §3).

A definition that a running saga began with stays here until the last of them has ended: a change that such a saga would
misunderstand gets a new `version` beside the old one. Seconds are those of silence: whoever works reports every 30 s.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from seedwork.lanes import Place
from seedwork.saga import Definitions, Link, Reason, Retry, Saga, Step, VerbRefused, View
from services.builder.contract import (
    BuildDiscarded,
    BuildImage,
    DiscardBuild,
    ImageBuildFailed,
    ImageBuilt,
    ImageRebased,
    RebaseImage,
)
from services.deployer.contract import (
    AppRetired,
    DeployRelease,
    ObservationStopped,
    ObserveRelease,
    RebaseRequested,
    ReleaseDeployed,
    ReleaseDeployFailed,
    ReleaseObserved,
    ReleaseObserveFailed,
    ReleaseRequested,
    ReleaseRolledBack,
    RetireApp,
    RetireAppFailed,
    RollBackRelease,
    StopObserving,
)
from services.registry.contract import (
    DropImages,
    DropImagesFailed,
    ImagePublished,
    ImagePublishFailed,
    ImagesDropped,
    ImageUnpublished,
    PublishImage,
    UnpublishImage,
)
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.source.contract import DiscardSource, FetchSource, SourceDiscarded, SourceFetched, SourceFetchFailed
from services.webhook.contract import AppRemovalRequested, DeploymentRequested

PERSISTENT = Retry(attempts=12, first_s=2.0, longest_s=600.0)
"""For what cannot be undone: about half an hour of attempts, then a person."""
FORWARD_2 = Retry(attempts=5, first_s=1.0, longest_s=60.0)
"""Going forward in versions 1 and 2, 15 s at most: what was away for half a minute left sagas for a person."""
UNDO_1 = Retry(attempts=8, first_s=1.0, longest_s=120.0)
"""Of an undo in version 1, two minutes at most: a server that was away for a minute left sagas stuck."""


# ------------------------------------------------------------------------------------------------ deploy


def fetch_source(view: View) -> FetchSource:
    """The commit that was pushed, or the upload; with the commits it must not set back."""
    asked = view.started(DeploymentRequested)
    return FetchSource(
        app=asked.app,
        repository=asked.repository,
        clone_url=asked.clone_url,
        ref=asked.ref,
        commit=asked.commit,
        root=asked.root,
        source_digest=asked.source_digest,
        known_commits={saga: commit for saga, commit in view.known_commits.items() if commit != asked.commit},
        force=asked.force,
        settings=asked.settings,
    )


def build_image(view: View) -> BuildImage:
    """The archive, into a staged image."""
    source = view.result("source", SourceFetched)
    return BuildImage(
        app=view.saga.origin.app,
        commit=view.saga.commit,
        source_digest=source.digest,
        description=source.description,
        builder=view.started(DeploymentRequested).settings.builder,
    )


def publish_built(view: View) -> PublishImage:
    """The staged image, to its permanent place."""
    image = view.result("build", ImageBuilt)
    return PublishImage(app=view.saga.origin.app, digest=image.digest, staged=image.repository, commit=view.saga.commit)


def deploy_built(view: View) -> DeployRelease:
    """The published image, to running instances; those of the release before keep running."""
    source = view.result("source", SourceFetched)
    return deploy_built_unobserved(view).model_copy(update={"observed": True, "watched_digest": source.watched_digest})


def deploy_built_unobserved(view: View) -> DeployRelease:
    """The published image, to running instances, in versions without the step `observe`."""
    image = view.result("publish", ImagePublished)
    return DeployRelease(
        app=view.saga.origin.app, repository=image.repository, digest=image.digest, commit=view.saga.commit
    )


def newest_push_counts(data: Mapping[str, Any]) -> Place:
    """Deployments wait as a group in which only the newest counts."""
    return Place(group="deploy", order=data.get("number") or 0)


def deploy_again(view: View) -> Mapping[str, Any]:
    """The same commit, also where a branch was asked for."""
    return {
        **view.saga.origin.data,
        "commit": view.saga.commit,
        "trigger": "retry",
        "parent_id": view.saga.id,
    }


# ------------------------------------------------------------------------------------------------ release


def publish_known(view: View) -> PublishImage:
    """A reference to an image that is there."""
    asked = view.started(ReleaseRequested)
    return PublishImage(app=asked.app, digest=asked.digest, commit=asked.commit)


def deploy_known(view: View) -> DeployRelease:
    """The image with what was asked for; the instances of the release before keep running."""
    return deploy_known_unobserved(view).model_copy(update={"observed": True})


def deploy_known_unobserved(view: View) -> DeployRelease:
    """The image with what was asked for: older, other config, other formation, or just anew."""
    asked = view.started(ReleaseRequested)
    image = view.result("publish", ImagePublished)
    return DeployRelease(
        app=asked.app,
        kind=asked.kind,
        repository=image.repository,
        digest=image.digest,
        commit=asked.commit,
        config_version=asked.config_version,
        formation=asked.formation,
        rollback_to=asked.rollback_to,
    )


def by_kind(data: Mapping[str, Any]) -> Place:
    """A rollback goes first; of config changes only the newest counts, since it contains the others."""
    kind = data.get("kind")
    if kind == "config":
        return Place(group="config", order=data.get("config_version") or 0)
    return Place(first=kind == "rollback")


def kind_of(data: Mapping[str, Any]) -> str:
    """What the trigger is called: rollback, config, scale, restart."""
    return str(data.get("kind", "api"))


# ------------------------------------------------------------------------------------------------ rebase


def rebase_image(view: View) -> RebaseImage:
    """The image of the release that is current when the lane is granted: one that was deployed meanwhile stays."""
    asked, live = view.started(RebaseRequested), view.lane.live
    digest, commit = (live["digest"], live["commit"]) if live else (asked.digest, asked.commit)
    return RebaseImage(app=asked.app, repository=asked.repository, digest=digest, commit=commit)


def publish_rebased(view: View) -> PublishImage:
    """The staged image, to its permanent place."""
    image = view.result("rebase", ImageRebased)
    return PublishImage(app=view.saga.origin.app, digest=image.digest, staged=image.repository, commit=view.saga.commit)


def deploy_rebased(view: View) -> DeployRelease:
    """The published image with the current config and formation."""
    image = view.result("publish", ImagePublished)
    return DeployRelease(
        app=view.saga.origin.app,
        kind="rebase",
        repository=image.repository,
        digest=image.digest,
        commit=view.saga.commit,
        observed=True,
    )


def only_one_rebase(_data: Mapping[str, Any]) -> Place:
    """Of those that wait only the newest counts: one does for all of them."""
    return Place(group="rebase")


def rebased_to_remember(view: View) -> Mapping[str, Any]:
    """The same as of any release; its number is that of the deployment whose image was rebased."""
    live = view.lane.live
    return {**release_to_remember(view), "number": live["number"] if live else None}


# ------------------------------------------------------------------------------------------------ all


def observe_release(view: View) -> ObserveRelease:
    """The release that has the traffic now."""
    return ObserveRelease(app=view.saga.origin.app)


def unchanged(view: View) -> Reason | None:
    """Mark a success that touched nothing."""
    return "unchanged" if view.result("deploy", ReleaseDeployed).unchanged else None


def release_to_remember(view: View) -> Mapping[str, Any]:
    """What a later rollback, retry or push has to know of this release."""
    release = view.result("deploy", ReleaseDeployed)
    number = view.saga.origin.number
    if number is None:  # the same image as some deployment's: as old as that
        same = (each["number"] for each in view.lane.kept if each.get("digest") == release.digest)
        number = next(same, None)
    live = view.lane.live
    return {
        "number": number,
        "commit": view.saga.commit,
        "release": release.number,
        "digest": release.digest,
        "replaced": live.get("replaced") if release.unchanged and live else release.replaced,
    }


def put_back(view: View) -> Link:
    """A rollback to the release that this one replaced, if this one is live."""
    live = view.lane.live
    release = view.result("deploy", ReleaseDeployed)
    if live is None or live["saga_id"] != view.saga.id:
        raise VerbRefused(
            view.saga,
            f"Release {release.number} is not live any more",
            why="only the live release can be taken back",
            todo=f"Compensate saga {live['saga_id']}, which is live." if live else "",
        )
    replaced = live.get("replaced")
    before = next((each for each in view.lane.kept if each.get("release") == replaced), None)
    if replaced is None or before is None:
        raise VerbRefused(
            view.saga,
            f"Release {release.number} has nothing to go back to",
            why="no release before it is known" if replaced is None else "the one before it is not kept",
            todo="Remove the app, or deploy another commit.",
        )
    asked = ReleaseRequested(
        app=view.saga.origin.app,
        kind="rollback",
        digest=before["digest"],
        commit=before["commit"],
        rollback_to=before["release"],
    )
    return Link(definition="release", data=asked.model_dump(mode="json"), trigger="rollback")


def left_in(where: str) -> Any:
    """What stays behind when a person skips an undo, named by its saga."""
    return lambda view: (f"what saga {view.saga.id} made for {view.saga.origin.app}", where)


def succeeded(view: View) -> DeploymentSucceeded:
    """The news that it is done."""
    origin = view.saga.origin
    deploy = next((step for step in view.saga.steps if step.name == "deploy"), None)
    return DeploymentSucceeded(
        app=origin.app,
        saga=origin.saga,
        commit=view.saga.commit,
        kind=origin.data.get("kind"),
        unchanged=bool(deploy and deploy.result and deploy.result.get("unchanged")),
    )


def failed(view: View) -> DeploymentFailed:
    """The news that it was undone, and why."""
    origin, step = view.saga.origin, view.saga.failed_step
    return DeploymentFailed(
        app=origin.app,
        saga=origin.saga,
        commit=view.saga.commit,
        reason=view.saga.reason or "failed",
        step=step.name if step else None,
        message=step.error["message"] if step and step.error else "",
    )


# ------------------------------------------------------------------------------------------------ remove


def retire_app(view: View) -> RetireApp:
    """Everything that runs or is routed."""
    return RetireApp(app=view.saga.origin.app)


def drop_images(view: View) -> DropImages:
    """Everything in the image store."""
    return DropImages(app=view.saga.origin.app)


# ------------------------------------------------------------------------------------------------ the flow

# fmt: off
DEPLOY = Saga(
    name="deploy",
    version=4,
    starts_on=DeploymentRequested,
    steps=(
        Step("source", send=fetch_source, ok=SourceFetched, failed=SourceFetchFailed, timeout_s=120,
             undo=lambda _: DiscardSource(), undone=SourceDiscarded, leaves=left_in("source")),
        Step("build", send=build_image, ok=ImageBuilt, failed=ImageBuildFailed, timeout_s=120,
             undo=lambda _: DiscardBuild(), undone=BuildDiscarded, leaves=left_in("builder")),
        Step("publish", send=publish_built, ok=ImagePublished, failed=ImagePublishFailed, timeout_s=120,
             undo=lambda _: UnpublishImage(), undone=ImageUnpublished, leaves=left_in("registry")),
        Step("deploy", send=deploy_built, ok=ReleaseDeployed, failed=ReleaseDeployFailed, timeout_s=120,
             undo=lambda _: RollBackRelease(), undone=ReleaseRolledBack, leaves=left_in("deployer")),
        Step("observe", send=observe_release, ok=ReleaseObserved, failed=ReleaseObserveFailed, timeout_s=120,
             undo=lambda _: StopObserving(), undone=ObservationStopped, leaves=left_in("deployer")),
    ),
    succeeded=succeeded,
    compensated=failed,
    place=newest_push_counts,
    replaces_after="source",
    gives_way_before="deploy",
    commit_of="source",
    remember=release_to_remember,
    success_reason=unchanged,
    again=deploy_again,
    compensation=put_back,
)

RELEASE = Saga(
    name="release",
    version=4,
    starts_on=ReleaseRequested,
    steps=(
        Step("publish", send=publish_known, ok=ImagePublished, failed=ImagePublishFailed, timeout_s=120,
             undo=lambda _: UnpublishImage(), undone=ImageUnpublished, leaves=left_in("registry")),
        Step("deploy", send=deploy_known, ok=ReleaseDeployed, failed=ReleaseDeployFailed, timeout_s=120,
             undo=lambda _: RollBackRelease(), undone=ReleaseRolledBack, leaves=left_in("deployer")),
        Step("observe", send=observe_release, ok=ReleaseObserved, failed=ReleaseObserveFailed, timeout_s=120,
             undo=lambda _: StopObserving(), undone=ObservationStopped, leaves=left_in("deployer")),
    ),
    succeeded=succeeded,
    compensated=failed,
    place=by_kind,
    trigger=kind_of,
    remember=release_to_remember,
    success_reason=unchanged,
    compensation=put_back,
)

REBASE = Saga(
    name="rebase",
    starts_on=RebaseRequested,
    steps=(
        Step("rebase", send=rebase_image, ok=ImageRebased, failed=ImageBuildFailed, timeout_s=120,
             undo=lambda _: DiscardBuild(), undone=BuildDiscarded, leaves=left_in("builder")),
        Step("publish", send=publish_rebased, ok=ImagePublished, failed=ImagePublishFailed, timeout_s=120,
             undo=lambda _: UnpublishImage(), undone=ImageUnpublished, leaves=left_in("registry")),
        Step("deploy", send=deploy_rebased, ok=ReleaseDeployed, failed=ReleaseDeployFailed, timeout_s=120,
             undo=lambda _: RollBackRelease(), undone=ReleaseRolledBack, leaves=left_in("deployer")),
        Step("observe", send=observe_release, ok=ReleaseObserved, failed=ReleaseObserveFailed, timeout_s=120,
             undo=lambda _: StopObserving(), undone=ObservationStopped, leaves=left_in("deployer")),
    ),
    succeeded=succeeded,
    compensated=failed,
    place=only_one_rebase,
    trigger=lambda _: "rebase",
    gives_way_before="deploy",
    commit_of="rebase",
    remember=rebased_to_remember,
    success_reason=unchanged,
    compensation=put_back,
)

REMOVE = Saga(
    name="remove",
    starts_on=AppRemovalRequested,
    forward_only=True,
    steps=(
        Step("retire", send=retire_app, ok=AppRetired, failed=RetireAppFailed, timeout_s=120, retry=PERSISTENT,
             leaves=left_in("deployer")),
        Step("drop_images", send=drop_images, ok=ImagesDropped, failed=DropImagesFailed, timeout_s=120,
             retry=PERSISTENT, leaves=left_in("registry")),
    ),
    succeeded=succeeded,
    compensated=failed,
)
# fmt: on


def version_3(saga: Saga) -> Saga:
    """As sagas began before releases were observed: the step `deploy` is the last one."""
    unobserved = {"deploy_built": deploy_built_unobserved, "deploy_known": deploy_known_unobserved}
    steps = tuple(
        replace(step, send=unobserved.get(step.send.__name__, step.send))
        for step in saga.steps
        if step.name != "observe"
    )
    return replace(saga, version=3, steps=steps, success_reason=None, commit_of=None)


def version_2(saga: Saga) -> Saga:
    """As sagas began before steps had more patience."""
    before = version_3(saga)
    steps = tuple(replace(step, retry=FORWARD_2) for step in before.steps)
    return replace(before, version=2, steps=steps)


def version_1(saga: Saga) -> Saga:
    """As sagas began before undos had more patience, either."""
    before = version_2(saga)
    return replace(before, version=1, steps=tuple(replace(step, undo_retry=UNDO_1) for step in before.steps))


DEFINITIONS = Definitions(
    (
        *(version(saga) for version in (version_1, version_2, version_3) for saga in (DEPLOY, RELEASE)),
        DEPLOY,
        RELEASE,
        REBASE,
        REMOVE,
    )
)
