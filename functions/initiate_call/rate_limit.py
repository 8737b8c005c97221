"""The limit of calls that a workspace may place per minute, across all processes, without a write for each call.

A process takes several permits at a time from the workspace's minute in DynamoDB and spends them locally. So all
processes together never accept more than the limit in one minute of the clock, and most requests need no write.
The cost: permits that a process has not spent expire with the minute, so close to the limit a call may be refused
although the limit is not reached.
"""

from __future__ import annotations

import dataclasses
import math
import threading

from shared.clock import to_seconds
from shared.errors import RequestRefusedError
from shared.limits import LimitStore, Permits
from shared.workspaces import Workspace

_MINUTE_MS = 60_000


class RateLimit:
    """The permits that this process holds, by workspace."""

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._held: dict[str, Permits] = {}
        self._lock = threading.Lock()

    def spend(self, workspace: Workspace, now_ms: int) -> int:
        """Spends one permit of the minute of `now` (epoch milliseconds). Returns the permit's epoch minute.

        Raises RequestRefusedError (429) when the minute has none left, StoreError if the counter is unavailable.
        """
        minute = now_ms // _MINUTE_MS
        with self._lock:
            held = self._held.get(workspace.workspace_id)
            # A minute ahead of this clock was opened by a process with a faster clock.
            if held is None or held.minute < minute or not held.left:
                held = self._store.take_permits(workspace.workspace_id, minute, workspace.calls_per_minute, held)
                self._held[workspace.workspace_id] = held
            if held.left:
                self._held[workspace.workspace_id] = dataclasses.replace(held, left=held.left - 1)
                return held.minute
        raise _refusal(workspace.calls_per_minute, math.ceil(to_seconds((held.minute + 1) * _MINUTE_MS - now_ms)))

    def give_back(self, workspace: Workspace, minute: int) -> None:
        """Returns a permit that was not used for a call."""
        with self._lock:
            held = self._held[workspace.workspace_id]
            if held.minute == minute:
                self._held[workspace.workspace_id] = dataclasses.replace(held, left=held.left + 1)


def _refusal(limit: int, seconds: int) -> RequestRefusedError:
    """The 429 answer. Header fields: draft-ietf-httpapi-ratelimit-headers-10."""
    return RequestRefusedError(
        429,
        "rate_limited",
        f"This workspace may place {limit} calls a minute; the next minute begins in {seconds} s",
        headers={
            "retry-after": str(seconds),
            "ratelimit-policy": f'"calls";q={limit};w={_MINUTE_MS // 1000}',
            "ratelimit": f'"calls";r=0;t={seconds}',
        },
    )
