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


REPORT = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture(scope="session")
def report_table(request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """Rows added here are printed as tables behind the run's results."""
    return request.config.stash.setdefault(REPORT, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(REPORT, [])
    if rows:
        widths = [max(len(row[n]) for row in rows if len(row) > n) for n in range(max(map(len, rows)))]
        terminalreporter.section("what was seen")
        for row in rows:
            terminalreporter.line("  ".join(f"{cell:<{widths[n]}}" for n, cell in enumerate(row)).rstrip())
