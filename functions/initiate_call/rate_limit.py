"""How many calls a workspace may place in a minute, counted across all processes without a request for each.

A process takes permits from the workspace's minute in DynamoDB a few at a time and spends them by itself. So all
processes together never accept more than the limit in one minute by the clock, and most requests ask nobody.
The cost: what a process holds and does not spend is lost with the minute, so near the limit some calls may be
refused that would have fitted.
"""

from __future__ import annotations

import dataclasses
import math
import threading

from shared.errors import RequestRefused
from shared.limits import LimitStore, Permits
from shared.workspaces import Workspace

_MINUTE_MS = 60_000


class RateLimit:
    """The permits this process holds."""

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._held: dict[str, Permits] = {}
        self._lock = threading.Lock()

    def spend(self, workspace: Workspace, now: int) -> int:
        """One permit of the minute that `now` (epoch milliseconds) is in. Returns the epoch minute it is of.

        Raises RequestRefused (429) when the minute has none left, StoreError when nobody can tell.
        """
        minute = now // _MINUTE_MS
        with self._lock:
            held = self._held.get(workspace.workspaceId)
            # A minute ahead of this clock was opened by a process whose clock is ahead.
            if held is None or held.minute < minute or not held.left:
                held = self._store.take_permits(workspace.workspaceId, minute, workspace.callsPerMinute, held)
                self._held[workspace.workspaceId] = held
            if held.left:
                self._held[workspace.workspaceId] = dataclasses.replace(held, left=held.left - 1)
                return held.minute
        raise _refusal(workspace.callsPerMinute, math.ceil(((held.minute + 1) * _MINUTE_MS - now) / 1000))

    def give_back(self, workspace: Workspace, minute: int) -> None:
        """A permit that placed no call."""
        with self._lock:
            held = self._held[workspace.workspaceId]
            if held.minute == minute:
                self._held[workspace.workspaceId] = dataclasses.replace(held, left=held.left + 1)


def _refusal(limit: int, seconds: int) -> RequestRefused:
    """Fields: draft-ietf-httpapi-ratelimit-headers-10."""
    return RequestRefused(
        429,
        "rate_limited",
        f"This workspace may place {limit} calls a minute; the next minute begins in {seconds} s",
        headers={
            "retry-after": str(seconds),
            "ratelimit-policy": f'"calls";q={limit};w={_MINUTE_MS // 1000}',
            "ratelimit": f'"calls";r=0;t={seconds}',
        },
    )
