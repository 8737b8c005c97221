"""Lets a function's process die at a chosen point of one call, as a crash, a kill or a lost machine would.

The product knows nothing of this: on the local stack the points are wrapped from outside when their modules are
imported. A death is a file in the folder RINGONCE_DEATHS,
`{"function": "DialWorker", "point": "CallStore.fence", "when": "before"|"during"|"after", "call": "<callId>"}`.
The first process that comes to that point with that call takes the file (renames it to `.done`) and is gone at
once: no exception handler, no `finally`, nothing. Each point is also noted as it is passed (`step_log.py`).
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

# Everything that leaves a process: each a point to die before or after; what awaits, to die during, too.
POINTS: dict[str, tuple[str, ...]] = {
    "shared.call_store": (
        "CallStore.create",
        "CallStore.take_lease",
        "CallStore.wait",
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
    "shared.limits": ("LimitStore.take_slot", "LimitStore.free_slot"),
    "shared.delivery_store": ("DeliveryStore.create", "DeliveryStore.take", "DeliveryStore.finish"),
    "shared.queues": ("Queue.send", "Queue.send_batch"),
    "shared.livekit.client": ("LiveKit.view_room", "LiveKit.create_room", "LiveKit.dial"),
    "webhook_dispatch.transport": ("GuardedTransport.handle_async_request",),
}

# Not every answer says when its request has arrived; one that takes this long has been sent.
DURING_SECONDS = 0.3
LOOK_EVERY_SECONDS = 0.02


async def rings(livekit: Any, named: dict[str, Any]) -> bool:
    """Whether a dial's phone has begun to ring: a process that is slow to send it must not be taken for one that
    died while it rang. Asked past the points, as the product's own looks are points too."""
    try:
        view = await inspect.unwrap(type(livekit).view_room)(livekit, named["room"], named["identity"])
    except Exception:
        # Nothing of this may come between the product and its own answer.
        return False
    return view.call_status not in (None, "dialing")


# What a death during a point waits for, where the other side can be asked; it waits no longer than the answer.
BEGUN: dict[str, Callable[[Any, dict[str, Any]], Awaitable[bool]]] = {"LiveKit.dial": rings}


# Held from before a step to the death that it leads to. One process works on many calls side by side, and the
# first to die takes the others with it: their own fatal steps must not be done, or half done, but be to come.
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
    """The file that asks for a death here, if there is one."""
    folder = Path(os.environ["RINGONCE_DEATHS"])
    for path in folder.glob("*.json"):
        try:
            death = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # Another process has just taken it.
        here = death["point"] == point and death["when"] == when
        if here and death["function"] in os.environ.get("AWS_LAMBDA_FUNCTION_NAME", ""):
            headers = [dict(getattr(value, "headers", {})) for value in given]
            if death["call"] in repr((given[1:], named, headers)):
                return path
    return None


async def taken(lock: threading.Lock) -> bool:
    """Waits until the lock is this task's, without a thread: those may be what others need to let go of it."""
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
