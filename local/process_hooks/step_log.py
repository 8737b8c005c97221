"""Logs the requests that a function's process sends, for the console's timeline.

The call's record does not show when a lease was taken or a slot was freed. So the points of `kill_points.py` are
also logged, one line of JSON each in the file RINGONCE_STEPS: `{"at", "ms", "function", "process", "point",
"phase": "started"|"ended"|"died", "call", "won", "waitingFor", "result", "error", "when"}`, where `at` is in epoch
milliseconds, `ms` is the duration, `waitingFor` is what the call then waits for, and the last five are
optional."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

_CALL_ID = re.compile(r"[0-9a-f]{24}")
# In a message's body, a room's metadata, a participant's identity, a webhook's id.
_CALL_ID_INSIDE = re.compile(r"(?:call_?[iI]d\W{2,8}|\bcall-|\bevt_)([0-9a-f]{24})(?![0-9a-f])")
_file = os.environ.get("RINGONCE_STEPS")
# Appends whole lines with one write each, because the processes of all functions share the file.
_handle = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if _file else None


def call_of(given: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    """The id of the step's call, found in its arguments; None when they contain none."""
    for value in given[1:]:
        if isinstance(value, str) and _CALL_ID.fullmatch(value):
            return value
        if isinstance(of_object := getattr(value, "call_id", None), str):
            return of_object
    headers = [dict(getattr(value, "headers", {})) for value in given[1:]]
    inside = _CALL_ID_INSIDE.search(repr((given[1:], named, headers)))
    return inside[1] if inside else None


def outcome(result: Any) -> dict[str, Any]:
    """The part of a step's result that the timeline shows: whether a conditional write was made and what the call
    waits for, or a boolean."""
    if isinstance(won := getattr(result, "won", None), bool):
        why = getattr(getattr(result, "call", None), "waiting_for", None)
        return {"won": won} | ({"waitingFor": why} if why else {})
    return {"result": result} if isinstance(result, bool) else {}


def note(point: str, phase: str, call: str | None, **fields: Any) -> None:
    """Writes one line; nothing when the step belongs to no call."""
    if _handle is None or call is None:
        return
    line = {
        "at": time.time_ns() // 1_000_000,
        "function": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", ""),
        "process": os.getpid(),
        "point": point,
        "phase": phase,
        "call": call,
        **fields,
    }
    os.write(_handle, json.dumps(line).encode() + b"\n")


class Step:
    """One step in progress. Leaving the context logs its end with `result` or the exception."""

    def __init__(self, point: str, call: str | None) -> None:
        self._point, self._call = point, call
        self._started = time.monotonic()
        self.result: Any = None

    def __enter__(self) -> Step:
        note(self._point, "started", self._call)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ended = outcome(self.result) if kind is None else {"error": kind.__name__}
        note(self._point, "ended", self._call, ms=round((time.monotonic() - self._started) * 1000), **ended)
