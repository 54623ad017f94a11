"""Builders to build with."""

from pathlib import Path

import pytest

from tests.services.builder.support import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)
