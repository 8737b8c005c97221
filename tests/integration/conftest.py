"""One system for all integration tests; as new for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system import System


@pytest.fixture(scope="session")
def whole_system() -> Iterator[System]:
    system = System()
    yield system
    system.close()


@pytest.fixture
def system(whole_system: System) -> System:
    whole_system.reset()
    return whole_system
