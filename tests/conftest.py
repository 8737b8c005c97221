"""Tables printed after a run's results, and the system shared by all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

    from tests.system import System

os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "test")
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "Ringonce")

# The tables of each test module that made some, by its name.
REPORT = pytest.StashKey[dict[str, list[tuple[str, ...]]]]()


@pytest.fixture(scope="module")
def report_table(request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """Rows added here are printed after the run's results, as a table of this test module."""
    return request.config.stash.setdefault(REPORT, {}).setdefault(request.path.stem, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a process of pytest-xdist has seen goes to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["report"] = session.config.stash.get(REPORT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    output: dict[str, Any] = getattr(node, "workeroutput", {})
    for module, rows in output.get("report", {}).items():
        node.config.stash.setdefault(REPORT, {}).setdefault(module, []).extend(map(tuple, rows))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for module, rows in sorted(config.stash.get(REPORT, {}).items()):
        if not rows:
            # Its tests failed before they had anything to tell.
            continue
        terminalreporter.section(f"what {module} saw")
        widths = [max(len(row[n]) for row in rows if len(row) > n) for n in range(max(map(len, rows)))]
        for row in rows:
            terminalreporter.line("  ".join(f"{cell:<{widths[n]}}" for n, cell in enumerate(row)).rstrip())


@pytest.fixture(scope="session")
def whole_system() -> Iterator[System]:
    """The handlers' modules exist once in a process, so there is one system for all; `reset` makes it as new."""
    from tests.system import System

    system = System()
    yield system
    system.close()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder where Node finds the packages of tests/node."""
    from tests.node_packages import node_project

    return node_project()
