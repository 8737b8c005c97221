"""The end of a call is written once, with the reason that takes precedence; then its slot and room are freed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any, cast

import pytest

from shared.call import Call, Outcome, event
from shared.call_store import CallStore, Write
from shared.durations import Durations
from shared.ending import clear, clear_with_room, end_call, end_outcome, report_end
from shared.limits import LimitStore

NOW = 1_800_000_000_000
DURATIONS = Durations()
CALL = Call(
    call_id="0" * 24,
    workspace_id="demo",
    call_agent_id="agent-1",
    to="+12025550123",
    room_name="agent-1-x",
    job_id="job",
    created_at="2026-11-24T09:00:00.000Z",
    status="dialing",
    events=(event("call.queued", NOW),),
    ring_timeout_seconds=40,
    max_duration_seconds=1800,
    queue_deadline_ms=NOW,
    lease_id="lease",
    lease_until_ms=NOW + 500_000,
    attempts=1,
    dialed_at_ms=NOW,
)
ANSWERED = dataclasses.replace(CALL, status="in_progress", answered_at_ms=NOW)
QUEUED = dataclasses.replace(CALL, status="queued", dialed_at_ms=None)
BUSY = Outcome("busy", "busy", retryable=True, sip_status_code=486)


def asked_to_hang_up(call: Call) -> Call:
    return dataclasses.replace(call, hangup={"reason": "canceled_by_api", "at": NOW})


def ended(call: Call) -> Call:
    entry = event("call.ended", NOW, status="busy", reason="busy", retryable=True)
    return dataclasses.replace(call, status="busy", events=(*call.events, entry), ended_at_ms=NOW)


class Table:
    """What the two stores are asked, in order; `end` answers with one write after the other."""

    def __init__(self, *writes: Write) -> None:
        self.writes = list(writes)
        self.asked: list[Any] = []

    def end(self, seen: Call, outcome: Outcome, check_at: int, now: int) -> Write:
        self.asked.append((seen, outcome, check_at, now))
        return self.writes.pop(0)

    def free_slot(self, workspace_id: str, call_id: str) -> None:
        self.asked.append(f"free {workspace_id} {call_id[:1]}")

    def leave_due(self, call_id: str) -> None:
        self.asked.append(f"leave {call_id[:1]}")


def end(table: Table, seen: Call, outcome: Outcome = BUSY) -> tuple[Call | None, list[Call]]:
    """What `end_call` returns, and what it reports."""
    reported: list[Call] = []
    found = end_call(cast(CallStore, table), seen, outcome, DURATIONS, lambda: NOW, reported.append)
    return found, reported


@pytest.mark.parametrize("inferred", [False, True])
def test_a_request_to_hang_up_is_the_reason_whatever_else_ended_the_call(inferred: bool) -> None:
    outcome = dataclasses.replace(BUSY, inferred=inferred)
    assert end_outcome(CALL, outcome) == outcome
    canceled = end_outcome(asked_to_hang_up(CALL), outcome)
    assert canceled == Outcome("canceled", "canceled_by_api", inferred=inferred)
    completed = end_outcome(asked_to_hang_up(ANSWERED), outcome)
    assert completed == Outcome("completed", "canceled_by_api", inferred=inferred)


def test_who_ends_the_call_gets_it_and_reports_it_once() -> None:
    table = Table(Write(True, ended(CALL)))
    assert end(table, CALL) == (ended(CALL), [ended(CALL)])
    assert table.asked == [(CALL, BUSY, NOW + int(DURATIONS.clear_check * 1000), NOW)]


def test_a_queued_call_is_cleared_when_its_lease_is_over_and_a_fenced_one_soon() -> None:
    """Its worker may make the room, or take the slot, until then."""
    soon = NOW + int(DURATIONS.clear_check * 1000)
    for seen, check_at in (
        (QUEUED, QUEUED.lease_until_ms),
        (dataclasses.replace(QUEUED, lease_until_ms=NOW + 1), soon),
        (CALL, soon),
        (ANSWERED, soon),
    ):
        table = Table(Write(True, ended(seen)))
        end(table, seen)
        assert [asked[2] for asked in table.asked] == [check_at]


@pytest.mark.parametrize(
    "now_there",
    [
        None,
        ended(CALL),
        ANSWERED,
        dataclasses.replace(CALL, lease_id="other"),
        dataclasses.replace(CALL, lease_id=None),
    ],
    ids=["gone", "ended", "answered", "leased anew", "without a lease"],
)
def test_a_call_that_moved_on_is_left_to_the_one_who_moved_it(now_there: Call | None) -> None:
    table = Table(Write(False, now_there))
    assert end(table, CALL) == (None, [])
    assert len(table.asked) == 1


def test_a_request_to_hang_up_that_came_in_between_becomes_the_reason() -> None:
    table = Table(Write(False, asked_to_hang_up(CALL)), Write(True, ended(CALL)))
    assert end(table, CALL) == (ended(CALL), [ended(CALL)])
    assert [(seen.hangup is None, outcome.reason) for seen, outcome, *_ in table.asked] == [
        (True, "busy"),
        (False, "canceled_by_api"),
    ]


def test_an_end_is_reported_by_itself_though_its_agent_reported_behind_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A write that the SDK sent twice answers with the item as it stands by then."""
    call = ended(CALL)
    for events in (call.events, (*call.events, event("agent.summary", NOW, data="{}"))):
        caplog.clear()
        with caplog.at_level("INFO"):
            report_end(dataclasses.replace(call, events=events))
        [record] = caplog.records
        assert (record.message, vars(record)["status"], vars(record)["reason"]) == ("ended", "busy", "busy")
        assert vars(record)["to"] != call.to
        metric = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (metric["CallsEnded"], metric["status"]) == ([1.0], "busy")


def test_the_slot_is_freed_before_the_call_leaves_the_index() -> None:
    table = Table()
    clear(cast(CallStore, table), cast(LimitStore, table), CALL)
    assert table.asked == ["free demo 0", "leave 0"]


@pytest.mark.parametrize(
    ("attempts", "orphan", "deleted", "asked"),
    [
        (0, False, True, ["free demo 0", "leave 0"]),
        (0, True, True, ["free demo 0", "leave 0"]),
        (1, False, True, ["free demo 0", "delete", "leave 0"]),
        (5, False, True, ["free demo 0", "delete", "leave 0"]),
        # It stays due: its room must be deleted once more, or its agent may make it again.
        (1, False, False, ["free demo 0", "delete"]),
        (1, True, True, ["free demo 0", "delete"]),
        (1, True, False, ["free demo 0", "delete"]),
    ],
)
def test_a_call_leaves_the_index_when_its_room_is_gone(
    attempts: int, orphan: bool, deleted: bool, asked: list[str]
) -> None:
    table = Table()
    call = dataclasses.replace(CALL, attempts=attempts, orphan_room=orphan)

    async def delete_room(given: Call) -> bool:
        assert given is call
        table.asked.append("delete")
        return deleted

    cleared = asyncio.run(clear_with_room(cast(CallStore, table), cast(LimitStore, table), call, delete_room))
    assert (cleared, table.asked) == ("leave 0" in asked, asked)
