"""The clock of everything that is tested at a set time."""

from __future__ import annotations

MINUTE = 60_000
# The beginning of a minute. No run of the reconciler in the first minutes is one that compares the slots.
START = 1_800_000_060_000


class Clock:
    """now: epoch milliseconds, as long as a test wants them to stay."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def seconds(self) -> float:
        """For what measures in seconds, as the caches do."""
        return self.now / 1000

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1000)
