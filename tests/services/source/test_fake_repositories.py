"""The fake keeps the port's contract, so that handlers tested with it are tested."""

import pytest

from seedwork.git import GitUrlPolicy
from services.source.ports import Repositories
from tests.services.source.fakes import FakeOrigin, FakeRepositories
from tests.services.source.repository_contract import RepositoryContract

PREFIX = "https://git.example/"


class TestFakeRepositories(RepositoryContract):
    @pytest.fixture
    def origin(self) -> FakeOrigin:
        return FakeOrigin(f"{PREFIX}acme/shop.git")

    @pytest.fixture
    def repositories(self, origin: FakeOrigin) -> Repositories:
        return FakeRepositories(GitUrlPolicy([PREFIX]), origin)

    @pytest.fixture
    def gone(self) -> str:
        return f"{PREFIX}acme/gone.git"
