"""What functions import: of the project only their own folder and shared, of slow packages only those listed
here.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.finish_build import HANDLERS_ENVIRONMENT

FUNCTIONS = Path(__file__).parents[2] / "functions"

SLOW = ("aiohttp", "google.protobuf", "httpx", "livekit", "phonenumbers", "pydantic")
LIVEKIT = {"livekit", "google.protobuf"}
ALLOWED: dict[str, set[str]] = {
    "initiate_call.handler": {"pydantic"},
    "calls_api.handler": {"pydantic"},
    "dial_worker.handler": LIVEKIT | {"aiohttp"},
    "reconcile_calls.handler": LIVEKIT | {"aiohttp"},
    "livekit_events.handler": LIVEKIT,
    "webhook_dispatch.fan_out_handler": set(),
    "webhook_dispatch.deliver_handler": {"httpx"},
}


def slow_imports(code: str) -> set[str]:
    """The slow packages that a new process has imported after `code`."""
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*(name for name in {SLOW} if name in sys.modules))"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(FUNCTIONS), **HANDLERS_ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return set(found.stdout.split())


def test_every_handler_is_listed() -> None:
    paths = FUNCTIONS.glob("*/*handler.py")
    assert {f"{path.parent.name}.{path.stem}" for path in paths} == set(ALLOWED)


@pytest.mark.parametrize("handler", ALLOWED)
def test_a_handler_imports_only_what_it_needs(handler: str) -> None:
    assert slow_imports(f"import {handler}") <= ALLOWED[handler]


def test_what_is_slow_to_import_is_seen() -> None:
    """The other tests would pass as well if nothing were found."""
    assert slow_imports("import dial_worker.handler") == ALLOWED["dial_worker.handler"]


def test_a_functions_folder_imports_shared_and_nothing_else() -> None:
    """What two functions need is in functions/shared."""
    folders = {path.name for path in FUNCTIONS.iterdir() if any(path.glob("*.py"))}
    foreign = [
        f"{path.relative_to(FUNCTIONS)}: {name}"
        for path in FUNCTIONS.rglob("*.py")
        for name in imported_names(ast.parse(path.read_text()))
        if name.partition(".")[0] in folders - {"shared", path.relative_to(FUNCTIONS).parts[0]}
    ]
    assert foreign == []


def imported_names(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
