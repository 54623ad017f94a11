"""Whether the files that say what a Python app installs agree: one counts, and every other one must fit it."""

from collections.abc import Mapping, Sequence

from services.source.plan.findings import Findings
from services.source.plan.python_locks import Locked, disagreement
from services.source.plan.requirements import Requirement

Lists = Mapping[str, Sequence[Requirement]]
"""What is asked for, by file; the strongest file first."""


def check_agreement(findings: Findings, lock: Locked | None, lists: Lists) -> None:
    """Compare every list with the lock file, else with the first list; say which one is passed over.

    Args:
        findings: Where notes and refusals go.
        lock: The lock file that counts, or None.
        lists: The lists, without the manifest of the lock file.
    """
    names = list(lists)
    counts = lock.file if lock else next(iter(names), "")
    for file in names if lock else names[1:]:
        reason = disagreement(lock, file, lists[file]) if lock else _missing(counts, lists[counts], file, lists[file])
        if reason:
            findings.refuse(
                f"{counts} and {file} do not agree",
                why=reason,
                todo=f"Make them agree, or take the packages out of the one that is not used, {file}.",
            )
        else:
            findings.note(f"the packages of {file}: passed over, {counts} counts, and the two agree")


def _missing(counts: str, entries: Sequence[Requirement], file: str, wanted: Sequence[Requirement]) -> str | None:
    """The first package that the file which counts does not have, or has in a version that is not allowed."""
    pins: dict[str, frozenset[str]] = {each.name: frozenset(filter(None, [each.pinned])) for each in entries}
    for each in wanted:
        if each.name not in pins:
            if not each.is_conditional:
                return f"{file} asks for {each.name}{each.specifier}, and {counts} does not have it"
        elif pins[each.name]:
            as_lock = Locked(counts, {each.name: pins[each.name]}, is_complete=True)
            if reason := disagreement(as_lock, file, [each]):
                return reason
    return None
