"""What is printed behind a run's results, and the one system of all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system import System

os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "test")
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "Ringonce")

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


@pytest.fixture(scope="session")
def whole_system() -> Iterator[System]:
    """The handlers' modules exist once in a process, so there is one system for all; `reset` makes it as new."""
    from tests.system import System

    system = System()
    yield system
    system.close()
