"""One call in a real store (moto), in each of its states."""

from __future__ import annotations

from typing import Any, cast

from livekit.protocol.webhook import WebhookEvent

from livekit_events.apply_event import EventApplier
from shared.call import Call, Outcome, event
from shared.call_store import CallStore
from shared.durations import Durations
from shared.limits import LimitStore
from shared.line import Line
from tests.calls import NOW, call_record, fence
from tests.clock import Clock
from tests.in_memory import QueueInMemory
from tests.mocked_aws import calls_table
from tests.workspaces_table import TABLE, OneAtATime

CALL = "a" * 24
ROOM, SID = "agent-1-x7k2m9p4q1", "RM_1"


class StoredCall:
    """A call, brought to a state by the writes that bring it there, and what applies LiveKit's events to it."""

    def __init__(self, client: OneAtATime) -> None:
        dynamodb = self.client = cast(Any, client)
        self.table = calls_table(client)
        self.calls = CallStore(dynamodb, self.table)
        self.limits = LimitStore(dynamodb, TABLE)
        self.limits.free_slot("demo", CALL)
        clock = Clock(NOW)
        self.queue = QueueInMemory(clock)
        self.durations = Durations()
        self.applier = EventApplier(
            calls=self.calls,
            line=Line(self.calls, self.limits, self.queue, self.durations, clock),
            dial_queue=self.queue,
            durations=self.durations,
            clock=clock,
        )

    def bring_to(self, status: str) -> Call:
        """`leased`, `in line`: a queued call with the lease `mine`, or that waits for a slot. `ended` is the end
        of an answered call, `expired` that of one that was never fenced, `ended in line` the same by a version
        that did not know the line.
        """
        self.calls.create(
            call_record(
                call_id=CALL, room_name=ROOM, events=(event("call.queued", NOW - 90_000),), check_at_ms=NOW
            )
        )
        if status == "expired":
            self.calls.end(self.record, Outcome("expired", "expired"), NOW + 60_000, NOW - 1)
        if status == "leased":
            self.calls.take_lease(CALL, "mine", NOW + 600_000, NOW - 80_000, 1)
        if status in ("in line", "ended in line"):
            self.calls.enter_line(CALL, "demo#single", "1#1#a", "slot", NOW + 70_000, NOW - 80_000)
        if status == "ended in line":
            self.calls.end(self.record, Outcome("expired", "expired"), NOW + 60_000, NOW - 1)
            key = {"pk": {"S": f"CALL#{CALL}"}, "sk": {"S": "CALL"}}
            self.client.update_item(
                TableName=self.table,
                Key=key,
                UpdateExpression="SET lineOf = :line",
                ExpressionAttributeValues={":line": {"S": "demo#single"}},
            )
        if status in ("queued", "leased", "in line", "expired", "ended in line"):
            return self.record
        self.limits.take_slot("demo", CALL, 5, now_ms=NOW)
        self.calls.take_lease(CALL, "lease", NOW + 600_000, NOW - 80_000)
        fence(self.calls, self.record, SID, now_ms=NOW - 70_000)
        if status != "dialing":
            self.calls.answered(CALL, "lease", NOW + 60_000, NOW - 60_000)
        if status == "ended":
            self.calls.end(self.record, Outcome("completed", "hangup"), NOW + 60_000, NOW - 1)
        return self.record

    @property
    def record(self) -> Call:
        call = self.calls.get(CALL)
        assert call is not None
        return call

    def apply(self, event: WebhookEvent) -> str:
        applied, call_id = self.applier.apply(event)
        assert call_id == CALL
        return applied

    @property
    def holds_slot(self) -> bool:
        return CALL in self.limits.active_calls("demo")
