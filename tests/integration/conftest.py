"""One system for all integration tests; as new for each."""

from __future__ import annotations

import pytest

from tests.system import System


@pytest.fixture
def system(whole_system: System) -> System:
    whole_system.reset()
    return whole_system
