"""A plugin of pytest: with `--dist loadgroup`, tests of one `xdist_group` really go to one worker.

xdist 3.8.0 writes the group where pytest before 9.2 kept the id of a test. Nothing reads it there since, so that tests
of one group run side by side, each worker with fixtures of its own, and nobody says a word. Where xdist has had its
way, this plugin changes nothing.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the group behind the id, where xdist's scheduler looks for it."""
    if not getattr(config.option, "loadgroup", False):
        return  # not a worker, or not to be grouped
    for item in items:
        suffix = "@" + "_".join(sorted({mark.args[0] for mark in item.iter_markers("xdist_group")}))
        if suffix != "@" and not item.nodeid.endswith(suffix):
            item._id = type(item.id).parse(item.nodeid + suffix)
