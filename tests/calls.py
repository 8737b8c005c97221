"""The record of a call, as tests begin with one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from shared.call import Call, Status, event, iso
from shared.call_store import CallStore, Fence
from shared.numbers import NumberRecord, ring_write

NOW = 1_800_000_000_000
# The table of numbers.
NUMBERS = "numbers"
_tokens = itertools.count()


def call_record(at: int = NOW, **fields: Any) -> Call:
    """A call that was accepted at that time (epoch milliseconds) and has waited since, or as `fields` say."""
    given: dict[str, Any] = {
        "call_id": "0" * 24,
        "workspace_id": "demo",
        "call_agent_id": "agent-1",
        "to": "+12025550123",
        "room_name": "agent-1-x7k2m9p4q1",
        "job_id": "job",
        "created_at": iso(at),
        "status": "queued",
        "events": (event("call.queued", at),),
        "ring_timeout_seconds": 40,
        "max_duration_seconds": 1800,
        "queue_deadline_ms": at,
    }
    return Call(**given | fields)


def answered_record(at: int, **fields: Any) -> Call:
    """A call that was placed, dialled and answered at that time; its worker's lease is over."""
    return call_record(
        at,
        **{
            "status": "in_progress",
            "lease_id": "lease",
            "lease_until_ms": 1,
            "attempts": 1,
            "room_sid": "RM_1",
            "dialed_at_ms": at,
            "answered_at_ms": at,
            "callback_url": "https://hooks.example/in",
            **fields,
        },
    )


DIALING = call_record(
    status="dialing", lease_id="lease", lease_until_ms=NOW + 500_000, attempts=1, dialed_at_ms=NOW
)
ANSWERED = dataclasses.replace(DIALING, status="in_progress", answered_at_ms=NOW)
# Tried once, and not dialled: its worker's lease is live.
QUEUED = dataclasses.replace(DIALING, status="queued", dialed_at_ms=None)


def fence(
    calls: CallStore,
    seen: Call,
    room_sid: str = "RM_1",
    *,
    from_number: str | None = None,
    now_ms: int = NOW,
    lease: str | None = None,
    numbers: str = NUMBERS,
) -> Fence:
    """Fences a call with the lease that it was read with, or with another; nothing is known of its number."""
    seen = seen if lease is None else dataclasses.replace(seen, lease_id=lease)
    number = ring_write(
        numbers, NumberRecord(seen.workspace_id, seen.to), seen.call_id, counted=False, now_ms=now_ms
    )
    token = f"fence-{next(_tokens)}"
    return calls.fence(seen, room_sid, from_number, [], number, token, now_ms, lambda: True)


def asked_to_hang_up(call: Call) -> Call:
    return dataclasses.replace(call, hangup={"reason": "canceled_by_api", "at": NOW})


def ended(call: Call, status: Status, reason: str, *, retryable: bool = False, at: int = NOW) -> Call:
    """The call with its end written."""
    entry = event("call.ended", at, status=status, reason=reason, retryable=retryable)
    return dataclasses.replace(call, status=status, events=(*call.events, entry), ended_at_ms=at)
