"""An event loop's time, advanced by the test: timers end at once, independent of the machine's speed."""

from __future__ import annotations

import asyncio


def time_passes(seconds: float) -> None:
    """Advances the running loop's clock by so many seconds: every timer due by then ends now."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
