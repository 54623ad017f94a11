"""Objects as they should be against objects as they are: what differs, in words. Pure.

What the cluster adds of its own (defaults, status, fields of other managers) is no difference: every field that a
manifest names must be there with its value, and nothing else counts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, SERVICE, Object

_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(m|Ki|Mi|Gi|Ti|k|M|G|T)?", re.ASCII)
_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
}
_COMPARED = ("spec", "data", "type")
_NOTHING: tuple[Any, ...] = (None, 0, "", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An object that is not as it should be."""

    wanted: Object
    what: str
    """In words: `the Deployment of web is gone`."""


def differences(wanted: Sequence[Object], there: Sequence[Object]) -> list[Difference]:
    """Compare objects of one namespace, found by kind and name."""
    known = {(each["kind"], each["metadata"]["name"]): each for each in there}
    found = []
    for each in wanted:
        now = known.get((each["kind"], each["metadata"]["name"]))
        if now is None or "deletionTimestamp" in now["metadata"]:
            found.append(Difference(wanted=each, what=f"{called(each)} is gone"))
        elif differs(each, now):
            found.append(Difference(wanted=each, what=f"{called(each)} {_change(each, now)}"))
    return found


def differs(wanted: Object, there: Object) -> bool:
    """Whether a field that the manifest names has another value."""
    labels = (wanted["metadata"].get("labels") or {}, there["metadata"].get("labels") or {})
    return not _holds(*labels) or any(not _holds(wanted.get(name), there.get(name)) for name in _COMPARED)


def called(item: Object) -> str:
    """Name an object as people do: by the process type where it is of one."""
    process = (item["metadata"].get("annotations") or {}).get(objects.PROCESS)
    if item["kind"] == DEPLOYMENT.name and process:
        return f"the Deployment of {process}"
    if item["kind"] == SERVICE.name:
        return "the app's Service"
    return f"the {item['kind']} {item['metadata']['name']}"


def tampered(deployment: Object) -> str:
    """Return what was changed from outside in a Deployment, by its own annotations; empty: they show no change."""
    annotations = deployment["metadata"].get("annotations") or {}
    replicas, digest = annotations.get(objects.REPLICAS, ""), annotations.get(objects.DIGEST, "")
    scale = deployment["spec"].get("replicas", 1)
    if replicas.isdigit() and scale != int(replicas):
        return f"was scaled to {scale}"
    image = _image(deployment)
    if digest and not image.endswith(f"@{digest}"):
        return f"has the image {image}"
    return ""


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _change(wanted: Object, there: Object) -> str:
    if wanted["kind"] != DEPLOYMENT.name:
        return "was changed"
    if wanted["spec"]["replicas"] != there["spec"].get("replicas"):
        return f"was scaled to {there['spec'].get('replicas')}"
    return f"has the image {_image(there)}" if _image(wanted) != _image(there) else "was changed"


def _image(deployment: Object) -> str:
    containers = deployment["spec"]["template"]["spec"].get("containers") or ()
    return next((str(each.get("image", "")) for each in containers if each.get("name") == objects.CONTAINER), "")


def _holds(wanted: Any, there: Any) -> bool:
    """Whether all that is wanted is there; an API leaves out what is zero or empty."""
    if isinstance(wanted, Mapping):
        has = there if isinstance(there, Mapping) else {}
        return all(_holds(value, has.get(name)) for name, value in wanted.items())
    if isinstance(wanted, list | tuple):
        if not isinstance(there, list):
            return not wanted
        return len(wanted) == len(there) and all(map(_holds, wanted, there))
    if wanted == there or (wanted in _NOTHING and there in _NOTHING):
        return True
    return isinstance(wanted, str) and isinstance(there, str) and _same_quantity(wanted, there)


def _same_quantity(one: str, other: str) -> bool:
    """Whether `1000m` is written as `1`: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/."""
    first, second = _QUANTITY.fullmatch(one), _QUANTITY.fullmatch(other)
    if first is None or second is None:
        return False
    return _value(first) == _value(second)


def _value(match: re.Match[str]) -> Decimal:
    return Decimal(match[1]) * _FACTORS[match[2] or ""]
