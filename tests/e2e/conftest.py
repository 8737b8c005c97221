"""One local stack for all tests that only use it. Those that end one start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launch import launched


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is marked e2e."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A running stack: what its READY line says (see `local.stack`)."""
    with launched(tmp_path_factory.mktemp("stack") / "state") as running:
        yield running.info()
