"""An event loop's time, moved on by the test: what would be waited for is over at once, on any machine alike."""

from __future__ import annotations

import asyncio


def time_passes(seconds: float) -> None:
    """The running loop's clock goes on by so much: every timer of its that was to end by then ends now."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
