"""Kills a function's process at a chosen point of one call, as a crash or a lost machine does.

The functions contain nothing for this: the local stack wraps the points when their modules are imported. A kill is
a file in the folder RINGONCE_DEATHS, `{"function": "DialWorker", "point": "CallStore.fence", "when":
"before"|"during"|"after", "call": "<callId>"}`; for a step that is no single call's, `call` is its workspace or
its number, and empty for one that is about everything. The first process that reaches that point with that call
renames the file to `.done` and exits immediately, without exception handlers or `finally`. Each step is also
logged (`step_log.py`).
"""

from __future__ import annotations

import asyncio
import functools
import importlib.machinery
import inspect
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import step_log

# Every request that a process sends: it can be killed before and after each, and during one that is awaited.
POINTS: dict[str, tuple[str, ...]] = {
    "shared.call_store": (
        "CallStore.create",
        "CallStore.take_lease",
        "CallStore.wait",
        "CallStore.enter_line",
        "CallStore.admit",
        "CallStore.reschedule",
        "CallStore.change_times",
        "CallStore.hold",
        "CallStore.reschedule",
        "CallStore.fence",
        "CallStore.unfence",
        "CallStore.answered",
        "CallStore.note_left",
        "CallStore.note_missing",
        "CallStore.ask_to_hang_up",
        "CallStore.end",
        "CallStore.postpone",
        "CallStore.leave_due",
        "CallStore.append_report",
    ),
    "shared.limits": ("LimitStore.take_slot", "LimitStore.free_slot", "LimitStore.note_crowded"),
    "shared.numbers": (
        "NumberStore.get",
        "NumberStore.suppress",
        "NumberStore.forget_ring",
        "NumberStore.mark",
    ),
    "shared.delivery_store": ("DeliveryStore.create", "DeliveryStore.take", "DeliveryStore.finish"),
    "shared.queues": ("Queue.send", "Queue.send_batch"),
    "shared.livekit.client": ("LiveKit.view_room", "LiveKit.create_room", "LiveKit.dial"),
    "webhook_dispatch.transport": ("GuardedTransport.handle_async_request",),
}

# A request without an answer after this time is taken as sent: most services do not show its arrival.
DURING_SECONDS = 0.3
LOOK_EVERY_SECONDS = 0.02


async def rings(livekit: Any, named: dict[str, Any]) -> bool:
    """Whether the dial's phone has begun to ring. A slow process must not be killed before it has sent the dial.
    The unwrapped method is called, because `LiveKit.view_room` is a point too."""
    try:
        view = await inspect.unwrap(type(livekit).view_room)(livekit, named["room"], named["identity"])
    except Exception:
        # An error of this check must not reach the function.
        return False
    return view.call_status not in (None, "dialing")


# The condition that a kill during a point waits for, at most until the answer arrives.
BEGUN: dict[str, Callable[[Any, dict[str, Any]], Awaitable[bool]]] = {"LiveKit.dial": rings}


# Held from before a step until its kill. One process works on many calls concurrently, and the first kill ends all
# of them: the steps at which others are to be killed must not have begun by then.
dying = threading.Lock()
DYING_SECONDS = 10.0


class Points(MetaPathFinder):
    """Wraps a module's points right after it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in POINTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_and_wrap(module: ModuleType) -> None:
                run(module)
                for point in POINTS[fullname]:
                    owner, name = point.split(".")
                    wrap(getattr(module, owner), point, name)

            spec.loader.exec_module = exec_and_wrap  # type: ignore[method-assign]
        return spec


def wrap(owner: type, point: str, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def plain(*given: Any, **named: Any) -> Any:
        doomed = is_doomed(point, given, named) and dying.acquire(timeout=DYING_SECONDS)
        try:
            die_if_asked(point, "before", given, named)
            with step_log.Step(point, step_log.call_of(given, named)) as step:
                step.result = original(*given, **named)
            die_if_asked(point, "after", given, named)
            return step.result
        finally:
            if doomed:
                dying.release()

    @functools.wraps(original)
    async def awaited(*given: Any, **named: Any) -> Any:
        doomed = is_doomed(point, given, named) and await taken(dying)
        try:
            die_if_asked(point, "before", given, named)
            with step_log.Step(point, step_log.call_of(given, named)) as step:
                task = asyncio.ensure_future(original(*given, **named))
                if asked(point, "during", given, named):
                    begun = BEGUN.get(point)
                    await asyncio.wait([task], timeout=LOOK_EVERY_SECONDS if begun else DURING_SECONDS)
                    while begun and not task.done() and not await begun(given[0], named):
                        await asyncio.wait([task], timeout=LOOK_EVERY_SECONDS)
                    die_if_asked(point, "during", given, named)
                step.result = await task
                return step.result
        finally:
            die_if_asked(point, "after", given, named)
            if doomed:
                dying.release()

    setattr(owner, name, awaited if inspect.iscoroutinefunction(original) else plain)


def asked(point: str, when: str, given: tuple[Any, ...], named: dict[str, Any]) -> Path | None:
    """The file that asks for a kill here; None when there is none."""
    folder = Path(os.environ["RINGONCE_DEATHS"])
    for path in folder.glob("*.json"):
        try:
            death = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # Another process has just renamed it.
        here = death["point"] == point and death["when"] == when
        if here and death["function"] in os.environ.get("AWS_LAMBDA_FUNCTION_NAME", ""):
            headers = [dict(getattr(value, "headers", {})) for value in given]
            if death["call"] in repr((given[1:], named, headers)):
                return path
    return None


async def taken(lock: threading.Lock) -> bool:
    """Polls until the lock is acquired. It uses no thread, because its holders may need all threads to release
    it."""
    while True:
        if lock.acquire(blocking=False):
            return True
        await asyncio.sleep(LOOK_EVERY_SECONDS)


def is_doomed(point: str, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    return any(asked(point, when, given, named) for when in ("before", "after"))


def die_if_asked(point: str, when: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    path = asked(point, when, given, named)
    if path is not None:
        try:
            path.rename(path.with_suffix(".done"))
        except OSError:
            return
        step_log.note(point, "died", step_log.call_of(given, named), when=when)
        os._exit(137)


def install() -> None:
    sys.meta_path.insert(0, Points())
