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
from shared.line import Line
from tests.calls import ANSWERED, DIALING, NOW, QUEUED, asked_to_hang_up, ended

DURATIONS = Durations()
BUSY = Outcome("busy", "busy", retryable=True, sip_status_code=486)


def busy(call: Call) -> Call:
    """The call with the end that `BUSY` is."""
    return ended(call, "busy", "busy", retryable=True)


class Stores:
    """What the store and the line are asked, in order; `end` answers with one write after the other."""

    def __init__(self, *writes: Write) -> None:
        self.calls = self
        self.writes = list(writes)
        self.asked: list[Any] = []

    def end(self, seen: Call, outcome: Outcome, check_at: int, now: int) -> Write:
        self.asked.append((seen, outcome, check_at, now))
        return self.writes.pop(0)

    def free_slot(self, call: Call) -> None:
        self.asked.append(f"free {call.call_id[:1]}")

    def leave_due(self, call_id: str) -> None:
        self.asked.append(f"leave {call_id[:1]}")


def end(stores: Stores, seen: Call, outcome: Outcome = BUSY) -> tuple[Call | None, list[Call]]:
    """What `end_call` returns, and what it reports."""
    reported: list[Call] = []
    found = end_call(cast(CallStore, stores), seen, outcome, DURATIONS, lambda: NOW, reported.append)
    return found, reported


@pytest.mark.parametrize("inferred", [False, True])
def test_a_request_to_hang_up_is_the_reason_whatever_else_ended_the_call(inferred: bool) -> None:
    outcome = dataclasses.replace(BUSY, inferred=inferred)
    assert end_outcome(DIALING, outcome) == outcome
    canceled = end_outcome(asked_to_hang_up(DIALING), outcome)
    assert canceled == Outcome("canceled", "canceled_by_api", inferred=inferred)
    completed = end_outcome(asked_to_hang_up(ANSWERED), outcome)
    assert completed == Outcome("completed", "canceled_by_api", inferred=inferred)


def test_who_ends_the_call_gets_it_and_reports_it_once() -> None:
    stores = Stores(Write(True, busy(DIALING)))
    assert end(stores, DIALING) == (busy(DIALING), [busy(DIALING)])
    assert stores.asked == [(DIALING, BUSY, NOW + int(DURATIONS.clear_check * 1000), NOW)]


def test_a_queued_call_is_cleared_when_its_lease_is_over_and_a_fenced_one_soon() -> None:
    """Its worker may make the room, or take the slot, until then."""
    soon = NOW + int(DURATIONS.clear_check * 1000)
    for seen, check_at in (
        (QUEUED, QUEUED.lease_until_ms),
        (dataclasses.replace(QUEUED, lease_until_ms=NOW + 1), soon),
        (DIALING, soon),
        (ANSWERED, soon),
    ):
        stores = Stores(Write(True, busy(seen)))
        end(stores, seen)
        assert [asked[2] for asked in stores.asked] == [check_at]


@pytest.mark.parametrize(
    "now_there",
    [
        None,
        busy(DIALING),
        ANSWERED,
        dataclasses.replace(DIALING, lease_id="other"),
        dataclasses.replace(DIALING, lease_id=None),
    ],
    ids=["gone", "ended", "answered", "leased anew", "without a lease"],
)
def test_a_call_that_moved_on_is_left_to_the_one_who_moved_it(now_there: Call | None) -> None:
    stores = Stores(Write(False, now_there))
    assert end(stores, DIALING) == (None, [])
    assert len(stores.asked) == 1


def test_a_request_to_hang_up_that_came_in_between_becomes_the_reason() -> None:
    stores = Stores(Write(False, asked_to_hang_up(DIALING)), Write(True, busy(DIALING)))
    assert end(stores, DIALING) == (busy(DIALING), [busy(DIALING)])
    assert [(seen.hangup is None, outcome.reason) for seen, outcome, *_ in stores.asked] == [
        (True, "busy"),
        (False, "canceled_by_api"),
    ]


def test_an_end_is_reported_by_itself_though_its_agent_reported_behind_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A write that the SDK sent twice answers with the item as it stands by then."""
    call = busy(DIALING)
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
    stores = Stores()
    clear(cast(Line, stores), DIALING)
    assert stores.asked == ["free 0", "leave 0"]


@pytest.mark.parametrize(
    ("attempts", "orphan", "deleted", "asked"),
    [
        (0, False, True, ["free 0", "leave 0"]),
        (0, True, True, ["free 0", "leave 0"]),
        (1, False, True, ["free 0", "delete", "leave 0"]),
        (5, False, True, ["free 0", "delete", "leave 0"]),
        # It stays due: its room must be deleted once more, or its agent may make it again.
        (1, False, False, ["free 0", "delete"]),
        (1, True, True, ["free 0", "delete"]),
        (1, True, False, ["free 0", "delete"]),
    ],
)
def test_a_call_leaves_the_index_when_its_room_is_gone(
    attempts: int, orphan: bool, deleted: bool, asked: list[str]
) -> None:
    stores = Stores()
    call = dataclasses.replace(DIALING, attempts=attempts, orphan_room=orphan)

    async def delete_room(given: Call) -> bool:
        assert given is call
        stores.asked.append("delete")
        return deleted

    cleared = asyncio.run(clear_with_room(cast(Line, stores), call, delete_room))
    assert (cleared, stores.asked) == ("leave 0" in asked, asked)
