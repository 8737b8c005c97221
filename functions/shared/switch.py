"""The switch that stops all dialling, and the time that calls were paused by it.

Paused time does not count against a call's queue deadline. It is computed from the intervals that the switch
keeps, so that a pause costs no write for each waiting call.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from shared.call import Call

# How long the intervals are kept: longer than any call without an `expires_at` waits after its `scheduled_at`.
PAUSES_KEPT_MS = 30 * 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Switch:
    """paused_at_ms: since when dialling is stopped; None when it is not. pauses: earlier ones, (from, to), epoch
    ms.
    """

    paused_at_ms: int | None = None
    pauses: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_item(cls, item: dict[str, Any] | None) -> Switch:
        item = item or {}
        pauses = tuple((pause["from"], pause["to"]) for pause in item.get("pauses", ()))
        return cls(item.get("pausedAt"), pauses)

    def paused_ms(self, since_ms: int, until_ms: int) -> int:
        """Milliseconds between two times (epoch ms) at which dialling was stopped."""
        pauses = self.pauses
        if self.paused_at_ms is not None:
            pauses = (*pauses, (self.paused_at_ms, until_ms))
        return sum(max(0, min(end, until_ms) - max(start, since_ms)) for start, end in pauses)

    def deadline_ms(self, call: Call, now_ms: int) -> int:
        """When the call's time in the queue is used up, as far as that is known at `now` (epoch ms).

        The client's own `expires_at` is absolute: paused time counts.
        """
        if call.expires_at_ms is not None:
            return call.expires_at_ms
        since_ms = max(call.created_at_ms, call.paused_until_ms, call.scheduled_at_ms or 0)
        return call.queue_deadline_ms + self.paused_ms(since_ms, now_ms)

    def resumed(self, now_ms: int) -> Switch:
        """The switch after the pause ended at `now`; intervals that no call needs any more are dropped."""
        if self.paused_at_ms is None:
            return self
        pauses = (*self.pauses, (self.paused_at_ms, now_ms))
        return Switch(None, tuple(pause for pause in pauses if pause[1] >= now_ms - PAUSES_KEPT_MS))

    def pauses_item(self) -> list[dict[str, int]]:
        """The stored form of `pauses`."""
        return [{"from": start, "to": end} for start, end in self.pauses]
