"""Interleaving by hooks: what happens between two steps is decided by the test, not by the clock."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from tests.system import System


def nothing() -> None:
    """What happens by default."""


def once(
    patch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    *,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
) -> None:
    """Runs `before` ahead of the next call of a method, `after` behind it; later calls are as ever."""
    original = getattr(owner, method)

    def plain(*given: Any, **named: Any) -> Any:
        patch.setattr(owner, method, original)
        before()
        result = original(*given, **named)
        after()
        return result

    async def awaited(*given: Any, **named: Any) -> Any:
        patch.setattr(owner, method, original)
        before()
        try:
            return await original(*given, **named)
        finally:
            after()

    patch.setattr(owner, method, awaited if inspect.iscoroutinefunction(original) else plain)


def change_durations(patch: pytest.MonkeyPatch, system: System, module: str, **changes: float) -> None:
    """Other durations (seconds, as they are) for one function, until the test ends."""
    settings = system.modules[module].settings
    durations = dataclasses.replace(settings.durations, **changes)
    patch.setattr(system.modules[module], "settings", dataclasses.replace(settings, durations=durations))
