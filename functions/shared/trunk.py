"""A SIP trunk: when it may be given its next INVITE, and the breaker that stops it after faults.

A fault is a dial that the trunk itself refused: credentials, DNS name, connection. After `FAULTS_TO_STOP` in a row
the trunk is stopped for a minute, and its calls wait in the line instead of failing one by one. After that one
call at a time tries it; if that fails too, it is stopped for twice as long, at most an hour.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

FAULTS_TO_STOP = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Trunk:
    """Times are epoch ms, 0 when unset. next_free_ms: from which it may get an INVITE. faults: ids of calls that
    failed by its fault since its last success, at most FAULTS_TO_STOP. stops: how often in a row it was stopped.
    stopped_until_ms: end of the last stop. probe_until_ms: until then the call probe_call tries it. fault: the
    last one's text.
    """

    trunk_id: str
    next_free_ms: int = 0
    faults: frozenset[str] = frozenset()
    stops: int = 0
    stopped_at_ms: int = 0
    stopped_until_ms: int = 0
    probe_until_ms: int = 0
    probe_call: str = ""
    fault: str = ""

    @classmethod
    def from_item(cls, trunk_id: str, item: dict[str, Any] | None) -> Trunk:
        item = item or {}
        return cls(
            trunk_id,
            item.get("nextFreeAt", 0),
            frozenset(item.get("faults", ())),
            item.get("stops", 0),
            item.get("stoppedAt", 0),
            item.get("stoppedUntil", 0),
            item.get("probeUntil", 0),
            item.get("probeCall", ""),
            item.get("fault", ""),
        )

    @property
    def faulty(self) -> bool:
        """Whether there was a fault since the last success."""
        return bool(self.faults or self.stops)

    def state(self, now_ms: int) -> Literal["in_use", "stopped", "probing", "to_probe"]:
        """in_use: any call may try it. stopped: none may. to_probe: one may. probing: one does."""
        if not self.stops:
            return "in_use"
        if now_ms < self.stopped_until_ms:
            return "stopped"
        return "probing" if now_ms < self.probe_until_ms else "to_probe"

    def holds(self, call_id: str, now_ms: int) -> bool:
        """Whether this call must wait for the trunk: it is stopped, or another call tries it."""
        state = self.state(now_ms)
        return state == "stopped" or (state == "probing" and self.probe_call != call_id)
