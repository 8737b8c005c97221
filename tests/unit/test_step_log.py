"""The steps of the console's timeline: each is logged with the id of its call."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shared.call_store import Write
from tests.calls import call_record

CALL_ID = "0123456789abcdef01234567"


@pytest.fixture(scope="module")
def step_log() -> ModuleType:
    """The module as a function's process imports it: from a folder on its path, without a package."""
    path = Path(__file__).parents[2] / "local" / "process_hooks" / "step_log.py"
    spec = importlib.util.spec_from_file_location("step_log_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((CALL_ID,), {}),
        ((call_record(call_id=CALL_ID),), {}),
        ((), {"call": call_record(call_id=CALL_ID)}),
        ((json.dumps({"callId": CALL_ID}),), {}),
        ((), {"room": "r", "identity": f"call-{CALL_ID}"}),
        ((SimpleNamespace(headers={"webhook-id": f"evt_{CALL_ID}_2"}),), {}),
    ],
)
def test_a_step_belongs_to_the_call_in_its_arguments(
    step_log: ModuleType, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    assert step_log.call_of((object(), *given), named) == CALL_ID


def test_a_step_without_a_call_belongs_to_none(step_log: ModuleType) -> None:
    assert step_log.call_of((object(), "demo", 3), {"room": "a1b2-x7k2"}) is None


@pytest.mark.parametrize(
    ("result", "logged"),
    [
        (Write(True, call_record(waiting_for="slot")), {"won": True, "waitingFor": "slot"}),
        (Write(False, call_record(waiting_for="retry")), {"won": False, "waitingFor": "retry"}),
        (Write(True, call_record()), {"won": True}),
        (Write(True, None), {"won": True}),
        (True, {"result": True}),
        (None, {}),
    ],
)
def test_a_write_is_logged_with_what_its_call_waits_for(
    step_log: ModuleType, result: Any, logged: dict[str, Any]
) -> None:
    assert step_log.outcome(result) == logged
