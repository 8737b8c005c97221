"""Times and durations: a time is epoch milliseconds (`_ms`, int), a duration is seconds (float), as in Durations.

Code below the handlers receives the clock as an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Returns the time, epoch milliseconds.
Clock = Callable[[], int]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def to_ms(seconds: float) -> int:
    """Whole milliseconds of a duration in seconds; a fraction is cut off."""
    return int(seconds * 1000)


def to_seconds(ms: int) -> float:
    return ms / 1000
