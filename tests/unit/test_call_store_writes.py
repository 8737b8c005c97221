"""What each write of a call changes, who loses it, and what is read of many calls at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from shared.call import Call, Outcome, Status, event, iso
from shared.call_store import MAXIMUM_REPORTS, MAXIMUM_REPORTS_BYTES, ROOM_CLOSED, CallStore, Write
from shared.table_keys import RETENTION_SECONDS
from tests import calls as calls_of_tests
from tests.one_call import CALL, CALL_ID, NOW, OneCall

Writing = Callable[[CallStore, Call], Write]
UNTIL, WAIT, CHECK = NOW + 600_000, NOW + 5_000, NOW + 70_000
LEFT = {"reason": "USER_REJECTED", "callStatus": "ringing", "at": NOW}
CLOSED = LEFT | {"reason": ROOM_CLOSED}
HANGUP = {"reason": "canceled_by_api", "at": NOW - 1}
LEASED = {"lease_id": "mine", "lease_until_ms": UNTIL, "attempts": 1}
DIALING = LEASED | {"status": "dialing", "room_sid": "RM_1", "dialed_at_ms": NOW - 9}
TALKING = DIALING | {"status": "in_progress", "answered_at_ms": NOW - 5}
ENDED_CALL = TALKING | {"status": "completed", "ended_at_ms": NOW - 3}
NOT_WAITING = {"wait_until_ms": 0}


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    monkeypatch.setattr("secrets.token_hex", lambda size: "70" * size)
    return OneCall(monkeypatch)


def changes(before: Call, after: Call) -> dict[str, Any]:
    """The fields that differ; of the events those that are new."""
    names = [field.name for field in dataclasses.fields(Call)]
    found = {name: getattr(after, name) for name in names if getattr(before, name) != getattr(after, name)}
    if "events" in found:
        assert after.events[: len(before.events)] == before.events
        found["events"] = list(after.events[len(before.events) :])
    return found


def take(calls: CallStore, call: Call) -> Write:
    return calls.take_lease(CALL_ID, "new", UNTIL, NOW, 3)


def wait(**options: Any) -> Writing:
    return lambda calls, call: calls.wait(CALL_ID, "trunk", WAIT, CHECK, NOW, **options)


def enter(**options: Any) -> Writing:
    return lambda calls, call: calls.enter_line(CALL_ID, LINE, TURN, "slot", CHECK, NOW, **options)


def admit(line: str = "demo#single", turn: str = "1#1#a") -> Writing:
    return lambda calls, call: calls.admit(CALL_ID, line, turn, ADMITTED_LINE, CHECK, NOW)


def hold(**seen: Any) -> Writing:
    return lambda calls, call: calls.hold(dataclasses.replace(call, **seen), "new", UNTIL, NOW)


def leave_line(line: str = "demo#single") -> Writing:
    return lambda calls, call: calls.leave_line(CALL_ID, line)


def note_slots_item(calls: CallStore, call: Call) -> Write:
    return calls.note_slots_item(CALL_ID, "mine", 4)


def fence(calls: CallStore, call: Call) -> Write:
    fenced = calls_of_tests.fence(calls, call, "RM_2", from_number="+12025550100", now_ms=NOW, lease="mine")
    return Write(fenced.won, fenced.call)


def unfence(calls: CallStore, call: Call) -> Write:
    return calls.unfence(CALL_ID, "mine", "retry", WAIT, CHECK, NOW)


def answer(calls: CallStore, call: Call) -> Write:
    return calls.answered(CALL_ID, "mine", CHECK, NOW)


def end(outcome: Outcome, **seen: Any) -> Writing:
    """seen: what the writer read, if that is not what is there."""
    return lambda calls, call: calls.end(dataclasses.replace(call, **seen), outcome, CHECK, NOW)


def note_missing(**since: int | None) -> Writing:
    return lambda calls, call: calls.note_missing(call, CHECK, **since)


LINE, ADMITTED_LINE, TURN = "demo#single", "demo#single#admitted", "1#1#a"
LEASE = {"lease_id": "new", "lease_until_ms": UNTIL, "check_at_ms": UNTIL}
TAKEN = LEASE | {"attempts": 1, "slots_item": 3}
WAITS = {"wait_until_ms": WAIT, "waiting_for": "trunk", "check_at_ms": CHECK}
NO_LEASE = {"lease_id": None, "lease_until_ms": 0}
OVER = {"lease_id": "dead", "lease_until_ms": NOW - 1, "attempts": 1}
BUSY = Outcome("busy", "busy", retryable=True, sip_status_code=486)
BUSY_EVENT = event("call.ended", NOW, status="busy", reason="busy", retryable=True, sipStatusCode=486)
IS_OVER = {"ended_at_ms": NOW, "check_at_ms": CHECK}
IN_LINE: dict[str, Any] = {"line_of": LINE, "turn": TURN, "waiting_for": "slot"}
ADMITTED = IN_LINE | {"line_of": ADMITTED_LINE, "admitted_at_ms": NOW - 7, "admission": "other"}
NOT_ADMITTED = {"admitted_at_ms": None, "admission": None}
ENTERS = IN_LINE | {"check_at_ms": CHECK}
OUT_OF_LINE = {"line_of": None, "waiting_for": None}
IS_ADMITTED = {"line_of": ADMITTED_LINE, "admitted_at_ms": NOW, "admission": "70" * 8, "check_at_ms": CHECK}

# Of each write: the call's fields, the write, and what it changes; None: it is lost.
WRITES: list[tuple[dict[str, Any], Writing, dict[str, Any] | None]] = [
    ({}, take, TAKEN),
    (OVER, take, TAKEN | {"attempts": 2}),
    ({"slots_item": 1}, take, TAKEN),
    ({"wait_until_ms": NOW, "waiting_for": "retry"}, take, TAKEN | NOT_WAITING | {"waiting_for": None}),
    ({"wait_until_ms": NOW + 1}, take, None),
    (OVER | {"lease_until_ms": NOW}, take, None),
    (DIALING | OVER, take, None),
    (ENDED_CALL | OVER, take, None),
    # It does not overtake the line. An admitted call leaves the index, and stays one that was admitted.
    (IN_LINE, take, None),
    (OVER | IN_LINE, take, None),
    (ADMITTED, take, TAKEN | OUT_OF_LINE),
    # The slot is tried in another item.
    (LEASED, note_slots_item, {"slots_item": 4}),
    (LEASED | {"slots_item": 3}, note_slots_item, {"slots_item": 4}),
    (LEASED | {"lease_id": "other"}, note_slots_item, None),
    ({}, note_slots_item, None),
    (DIALING, note_slots_item, None),
    (ENDED_CALL, note_slots_item, None),
    # Waiting without a lease: the first writer wins.
    ({}, wait(), WAITS),
    (OVER, wait(), WAITS | NO_LEASE),
    ({"wait_until_ms": NOW}, wait(), WAITS),
    ({"wait_until_ms": NOW + 1}, wait(), None),
    (OVER | {"lease_until_ms": NOW}, wait(), None),
    (DIALING | OVER, wait(), None),
    (IN_LINE, wait(), None),
    (ADMITTED, wait(), WAITS),
    # With a lease that is the caller's. It keeps its slot.
    (LEASED | {"slots_item": 3}, wait(lease="mine"), WAITS | NO_LEASE),
    (LEASED | {"lease_until_ms": NOW - 1}, wait(lease="mine"), WAITS | NO_LEASE),
    (LEASED, wait(lease="other"), None),
    (DIALING, wait(lease="mine"), None),
    # Into the line without a lease: the first writer wins, and the call must hold no slot.
    ({}, enter(), ENTERS),
    ({"wait_until_ms": NOW, "waiting_for": "retry"}, enter(), ENTERS | NOT_WAITING),
    ({"wait_until_ms": NOW + 1}, enter(), None),
    (OVER, enter(), None),
    ({"slots_item": 3}, enter(), None),
    (DIALING | {"lease_id": None}, enter(), None),
    (ENDED_CALL | {"lease_id": None}, enter(), None),
    (IN_LINE | {"turn": "0#1#a"}, enter(), None),
    (ADMITTED | {"turn": "0#1#a", "waiting_for": "paused"}, enter(), ENTERS | NOT_ADMITTED),
    ({"attempts": 2}, enter(uncount=True), ENTERS | {"attempts": 1}),
    # With a lease that is the caller's.
    (LEASED | {"slots_item": 3}, enter(lease="mine"), ENTERS | NO_LEASE | {"slots_item": None}),
    (LEASED, enter(lease="mine", uncount=True), ENTERS | NO_LEASE | {"attempts": 0}),
    (
        LEASED | {"admitted_at_ms": NOW - 7, "admission": "other", "turn": "0#1#a"},
        enter(lease="mine"),
        ENTERS | NO_LEASE | NOT_ADMITTED,
    ),
    (LEASED | {"lease_until_ms": NOW - 1}, enter(lease="mine"), ENTERS | NO_LEASE),
    (LEASED, enter(lease="other"), None),
    ({}, enter(lease="mine"), None),
    (DIALING, enter(lease="mine"), None),
    (ENDED_CALL, enter(lease="mine"), None),
    # Admitted.
    (IN_LINE, admit(), IS_ADMITTED),
    (OVER | IN_LINE, admit(), IS_ADMITTED | NO_LEASE),
    (OVER | IN_LINE | {"lease_until_ms": NOW}, admit(), None),
    (IN_LINE, admit(line="demo#other"), None),
    (IN_LINE, admit(turn="2#1#a"), None),
    (ADMITTED, admit(), None),
    ({"turn": "1#1#a"}, admit(), None),
    (IN_LINE | {"status": "canceled"}, admit(), None),
    # An entry that an earlier version's write has left in the index.
    (ENDED_CALL | {"line_of": LINE, "turn": TURN}, leave_line(), {"line_of": None}),
    (DIALING | {"line_of": ADMITTED_LINE}, leave_line(ADMITTED_LINE), {"line_of": None}),
    (ENDED_CALL | {"line_of": ADMITTED_LINE}, leave_line(), None),
    (IN_LINE, leave_line(), None),
    # Leased without being admitted.
    (IN_LINE, hold(), LEASE),
    (OVER | IN_LINE, hold(), LEASE),
    (OVER | IN_LINE | {"lease_until_ms": NOW}, hold(), None),
    (IN_LINE, hold(turn="2#1#a"), None),
    (IN_LINE, hold(line_of="demo#other"), None),
    (ADMITTED, hold(), None),
    (IN_LINE | {"admitted_at_ms": NOW - 7}, hold(), None),
    (IN_LINE | {"status": "expired"}, hold(), None),
    # The fence.
    (
        LEASED,
        fence,
        {"status": "dialing", "room_sid": "RM_2", "dialed_at_ms": NOW}
        | {"events": [{"type": "call.dialing", "at": NOW, "from": "+12025550100", "gates": "[]"}]},
    ),
    (LEASED | {"lease_id": "other"}, fence, None),
    (LEASED | {"lease_until_ms": NOW}, fence, None),
    (LEASED | {"hangup": HANGUP}, fence, None),
    (TALKING, fence, None),
    (ENDED_CALL, fence, None),
    # Un-fenced, if nothing shows a phone.
    (
        DIALING,
        unfence,
        WAITS
        | NO_LEASE
        | {"waiting_for": "retry", "status": "queued", "room_sid": None, "dialed_at_ms": None}
        | {"events": [{"type": "call.queued", "at": NOW}]},
    ),
    (DIALING | {"lease_id": "other"}, unfence, None),
    (DIALING | {"hangup": HANGUP}, unfence, None),
    (DIALING | {"phone_left": CLOSED}, unfence, None),
    (DIALING | {"phone_seen_at_ms": NOW}, unfence, None),
    (LEASED, unfence, None),
    (TALKING, unfence, None),
    # Answered.
    (
        DIALING | {"phone_missing_since_ms": 5, "agent_missing_since_ms": 6, "phone_left": LEFT},
        answer,
        {"status": "in_progress", "answered_at_ms": NOW, "check_at_ms": CHECK, "phone_missing_since_ms": None}
        | {"events": [{"type": "call.answered", "at": NOW}]},
    ),
    (DIALING | {"lease_id": "other"}, answer, None),
    (DIALING | {"hangup": HANGUP}, answer, None),
    (LEASED, answer, None),
    (ENDED_CALL, answer, None),
    # LiveKit's events.
    (DIALING, lambda calls, call: calls.note_joined(call, NOW), {"phone_seen_at_ms": NOW}),
    (DIALING | {"phone_seen_at_ms": NOW - 1}, lambda calls, call: calls.note_joined(call, NOW), None),
    (TALKING, lambda calls, call: calls.note_joined(call, NOW), None),
    (DIALING, lambda calls, call: calls.note_joined(dataclasses.replace(call, room_sid="RM_0"), NOW), None),
    (DIALING, lambda calls, call: calls.note_left(call, LEFT), {"phone_left": LEFT}),
    (DIALING | {"phone_left": CLOSED}, lambda calls, call: calls.note_left(call, LEFT), {"phone_left": LEFT}),
    (DIALING | {"phone_left": LEFT | {"at": 1}}, lambda calls, call: calls.note_left(call, LEFT), None),
    (TALKING, lambda calls, call: calls.note_left(call, LEFT), None),
    (DIALING, lambda calls, call: calls.note_left(dataclasses.replace(call, room_sid="RM_0"), LEFT), None),
    (TALKING, lambda calls, call: calls.note_agent_left(call, NOW), {"agent_missing_since_ms": NOW}),
    (TALKING | {"agent_missing_since_ms": 1}, lambda calls, call: calls.note_agent_left(call, NOW), {}),
    (
        TALKING,
        lambda calls, call: calls.note_agent_left(dataclasses.replace(call, status="dialing"), NOW),
        None,
    ),
    (TALKING, lambda calls, call: calls.note_agent_left(dataclasses.replace(call, room_sid="RM_0"), NOW), None),
    # What a look found.
    (TALKING, note_missing(phone_missing_since_ms=7), {"check_at_ms": CHECK, "phone_missing_since_ms": 7}),
    (
        TALKING | {"phone_missing_since_ms": 7},
        note_missing(phone_missing_since_ms=None, agent_missing_since_ms=8),
        {"check_at_ms": CHECK, "phone_missing_since_ms": None, "agent_missing_since_ms": 8},
    ),
    (
        TALKING,
        lambda calls, call: calls.note_missing(
            dataclasses.replace(call, check_at_ms=NOW + 1), CHECK, phone_missing_since_ms=7
        ),
        None,
    ),
    (
        TALKING,
        lambda calls, call: calls.note_missing(
            dataclasses.replace(call, status="dialing"), CHECK, phone_missing_since_ms=7
        ),
        None,
    ),
    # The end.
    (
        DIALING | {"phone_missing_since_ms": 1, "agent_missing_since_ms": 2},
        end(BUSY),
        IS_OVER
        | {"status": "busy", "events": [BUSY_EVENT]}
        | {"phone_missing_since_ms": None, "agent_missing_since_ms": None},
    ),
    (
        {"wait_until_ms": NOW + 9},
        end(Outcome("expired", "expired", inferred=True)),
        IS_OVER
        | NOT_WAITING
        | {"status": "expired"}
        | {
            "events": [
                event("call.ended", NOW, status="expired", reason="expired", retryable=False, inferred=True)
            ]
        },
    ),
    (
        IN_LINE,
        end(Outcome("expired", "expired")),
        IS_OVER
        | OUT_OF_LINE
        | {"status": "expired"}
        | {"events": [event("call.ended", NOW, status="expired", reason="expired", retryable=False)]},
    ),
    (
        TALKING | {"restored_at_ms": NOW - 1},
        end(Outcome("failed", "outcome_unknown")),
        IS_OVER
        | {"status": "failed"}
        | {
            "events": [
                event("call.ended", NOW, status="failed", reason="outcome_unknown", retryable=False, restored=True)
            ]
        },
    ),
    (DIALING, end(BUSY, lease_id="other"), None),
    (DIALING, end(BUSY, lease_id=None), None),
    (DIALING | {"lease_id": None}, end(BUSY, lease_id="mine"), None),
    (DIALING, end(BUSY, hangup=HANGUP), None),
    (DIALING | {"hangup": HANGUP}, end(BUSY, hangup=None), None),
    (DIALING | {"hangup": HANGUP}, end(BUSY), IS_OVER | {"status": "busy", "events": [BUSY_EVENT]}),
    (TALKING, end(BUSY, status="dialing"), None),
    (ENDED_CALL, end(BUSY, status="dialing"), None),
    (
        TALKING,
        lambda calls, call: calls.ask_to_hang_up(call, "canceled_by_api", NOW),
        {"hangup": {"reason": "canceled_by_api", "at": NOW}, "check_at_ms": NOW},
    ),
    (TALKING | {"hangup": HANGUP}, lambda calls, call: calls.ask_to_hang_up(call, "agent_left", NOW), None),
    (
        TALKING,
        lambda calls, call: calls.ask_to_hang_up(dataclasses.replace(call, status="dialing"), "agent_left", NOW),
        None,
    ),
    (ENDED_CALL, lambda calls, call: calls.note_orphan(CALL_ID), {"orphan_room": True}),
    (ENDED_CALL, lambda calls, call: calls.leave_due(CALL_ID), {"due_shard": None, "check_at_ms": None}),
    (TALKING, lambda calls, call: calls.leave_due(CALL_ID), None),
    (TALKING, lambda calls, call: calls.postpone(call, CHECK), {"check_at_ms": CHECK}),
    (TALKING, lambda calls, call: calls.postpone(dataclasses.replace(call, check_at_ms=1), CHECK), None),
    (TALKING, lambda calls, call: calls.postpone(dataclasses.replace(call, status="dialing"), CHECK), None),
]


@pytest.mark.parametrize(("fields", "write", "expected"), WRITES)
def test_what_a_write_changes(
    one: OneCall, fields: dict[str, Any], write: Writing, expected: dict[str, Any] | None
) -> None:
    before = one.place(**{"check_at_ms": NOW + 2} | fields)
    written = write(one.calls, before)
    assert (written.won, changes(before, one.call)) == (expected is not None, expected or {})
    # What `postpone`, `note_missing` and `leave_due` may write; their callers need no record.
    small = {"check_at_ms", "due_shard", "phone_missing_since_ms", "agent_missing_since_ms"}
    not_returned = written.won and "check_at_ms" in (expected or {}) and set(expected or {}) <= small
    assert written.call == (None if not_returned else one.call)
    one.dynamodb.table("calls").clear()
    assert write(one.calls, before) == Write(False, None), "no write makes a record"
    assert one.dynamodb.table("calls") == {}


def test_a_new_call_is_written_once(one: OneCall) -> None:
    assert one.calls.create(CALL) == Write(True, CALL)
    there = one.call
    assert there == dataclasses.replace(CALL, due_shard=10)
    other = dataclasses.replace(CALL, job_id="other", to="+12025550199")
    assert one.calls.create(other) == Write(False, there)
    assert one.calls.create(CALL) == Write(True, there), "the SDK's second try"


def test_a_call_that_has_left_may_leave_again(one: OneCall) -> None:
    one.place(**ENDED_CALL)
    assert one.calls.leave_due(CALL_ID).won
    del one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]["endedAt"]
    assert one.calls.leave_due(CALL_ID).won, "by the first try of the same request"


def test_an_end_expires_the_record_after_thirty_days(one: OneCall) -> None:
    call = one.place(**TALKING)
    one.calls.end(call, Outcome("completed", "hangup"), CHECK, NOW)
    item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]
    assert item["expiresAt"] == NOW // 1000 + RETENTION_SECONDS == NOW // 1000 + 30 * 86_400


@pytest.mark.parametrize(("source", "to"), [("queued", "busy"), ("in_progress", "busy"), ("completed", "failed")])
def test_an_end_that_no_call_can_have_is_refused(one: OneCall, source: Status, to: Status) -> None:
    before = one.place(status=source)
    with pytest.raises(ValueError, match=f"{source} to {to}"):
        one.calls.end(before, Outcome(to, "busy"), CHECK, NOW)
    assert one.call == before


@pytest.mark.parametrize(("before", "kept"), [(None, NOW), (NOW - 1, NOW - 1)])
def test_webhooks_are_stopped_since_the_first_time(one: OneCall, before: int | None, kept: int) -> None:
    one.place(webhooks_stopped_at_ms=before)
    one.calls.stop_webhooks(CALL_ID, NOW)
    assert one.call.webhooks_stopped_at_ms == kept
    one.dynamodb.table("calls").clear()
    one.calls.stop_webhooks(CALL_ID, NOW)
    assert one.dynamodb.table("calls") == {}


@pytest.mark.parametrize(
    ("expires", "until", "there", "kept"),
    [(None, 9, True, None), (8, 9, True, 9), (9, 9, True, 9), (10, 9, True, 10)],
)
def test_a_record_is_kept_at_least_until_a_time(
    one: OneCall, expires: int | None, until: int, there: bool, kept: int | None
) -> None:
    one.place(**ENDED_CALL)
    item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]
    if expires is not None:
        item["expiresAt"] = expires
    assert one.calls.keep(CALL_ID, until) is there
    assert one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"].get("expiresAt") == kept
    assert one.calls.keep("b" * 24, until) is False


# ── reports ─────────────────────────────────────────────────────────────────────────────────────────


def report(one: OneCall, number: int = 1, size: int = 10, *, room: str = CALL.room_name, since: int = 0) -> bool:
    entry = event("agent.note", NOW, data={"n": number})
    return one.calls.append_report(CALL_ID, room, f"r{number}", entry, size, ended_since_ms=since).won


def test_a_report_is_one_more_event_and_not_twice(one: OneCall) -> None:
    before = one.place(**TALKING)
    assert [report(one, 1), report(one, 2), report(one, 1)] == [True, True, False]
    assert changes(before, one.call) == {
        "events": [event("agent.note", NOW, data={"n": n}) | {"reportId": f"r{n}"} for n in (1, 2)]
    }


@pytest.mark.parametrize(
    ("fields", "room", "since", "taken"),
    [
        (TALKING, CALL.room_name, NOW, True),
        (TALKING, "other", NOW, False),
        (ENDED_CALL, CALL.room_name, NOW - 3, True),
        (ENDED_CALL, CALL.room_name, NOW - 2, False),
    ],
)
def test_reports_of_another_room_or_long_after_the_end_are_refused(
    one: OneCall, fields: dict[str, Any], room: str, since: int, taken: bool
) -> None:
    one.place(**fields)
    assert report(one, room=room, since=since) is taken


def test_a_call_takes_fifty_reports(one: OneCall) -> None:
    one.place(**TALKING)
    assert MAXIMUM_REPORTS == 50
    assert [report(one, n) for n in range(51)] == [True] * 50 + [False]


@pytest.mark.parametrize(("size", "taken"), [(1024, True), (1025, False)])
def test_a_call_takes_128_kib_of_reports(one: OneCall, size: int, taken: bool) -> None:
    one.place(**TALKING)
    assert MAXIMUM_REPORTS_BYTES == 131_072
    assert report(one, 1, 126 * 1024)
    assert report(one, 2, 1024)
    assert report(one, 3, size) is taken


# ── what is due ─────────────────────────────────────────────────────────────────────────────────────


def many(one: OneCall, number: int, **fields: Any) -> list[str]:
    call_ids = [f"a{n:023x}" for n in range(number)]
    for n, call_id in enumerate(call_ids):
        given: dict[str, Any] = {"check_at_ms": NOW + n, "created_at": iso(NOW + n)} | fields
        one.calls.create(dataclasses.replace(CALL, call_id=call_id, **given))
    return call_ids


@pytest.mark.parametrize(
    ("now", "sizes"), [(NOW - 1, [0]), (NOW, [1]), (NOW + 24, [25]), (NOW + 99, [25, 25, 10])]
)
def test_what_is_due_is_read_page_by_page_the_oldest_first(one: OneCall, now: int, sizes: list[int]) -> None:
    call_ids = many(one, 60)
    pages = list(one.calls.due(10, now))
    assert [len(page) for page in pages] == sizes
    assert [key for page in pages for key in page] == [(call_id, "CALL") for call_id in call_ids[: sum(sizes)]]
    assert list(one.calls.due(11, now)) == [[]]


def test_due_items_are_read_without_what_is_large(one: OneCall) -> None:
    call = one.place(**TALKING, metadata="{}", dynamic_variables="{}", callback_url="https://x", request_hash="h")
    one.deliveries.create(CALL_ID, "demo", 3, NOW, CHECK)
    row = one.deliveries.get(CALL_ID, 3)
    due = one.calls.read_due([(CALL_ID, "DELIVERY#0003"), (CALL_ID, "CALL"), ("b" * 24, "CALL")])
    without: dict[str, Any] = {
        "metadata": None,
        "dynamic_variables": None,
        "callback_url": None,
        "request_hash": None,
    }
    assert due.calls == [dataclasses.replace(call, events=(), **without)]
    assert (due.deliveries, due.unreadable) == ([row], [])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("CALL", {"status": "lost"}),
        ("CALL", {"callId": "b" * 24}),
        ("DELIVERY#0003", {"state": "delivered"}),
        ("DELIVERY#0003", {"callId": "b" * 24}),
        ("DELIVERY#0003", {"sequence": 4}),
    ],
)
def test_a_due_item_that_contradicts_itself_is_unreadable(one: OneCall, key: str, change: dict[str, Any]) -> None:
    one.place()
    one.deliveries.create(CALL_ID, "demo", 3, NOW, CHECK)
    one.dynamodb.table("calls")[f"CALL#{CALL_ID}", key].update(change)
    due = one.calls.read_due([(CALL_ID, key)])
    assert (due.calls, due.deliveries, due.unreadable) == ([], [], [(CALL_ID, key)])
    assert one.counted["UnreadableItems"] == 1


def test_a_delivery_that_has_been_made_since_is_not_unreadable(one: OneCall) -> None:
    one.deliveries.create(CALL_ID, "demo", 3, NOW, CHECK)
    item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "DELIVERY#0003"]
    item["state"] = "delivered"
    del item["checkAt"]
    assert len(one.calls.read_due([(CALL_ID, "DELIVERY#0003")]).deliveries) == 1


@pytest.mark.parametrize(("check_at", "moved"), [(NOW, True), (NOW - 1, True), (NOW + 1, False)])
def test_what_is_due_can_be_put_off_unread(one: OneCall, check_at: int, moved: bool) -> None:
    before = one.place(check_at_ms=check_at)
    one.calls.put_off((CALL_ID, "CALL"), CHECK, NOW)
    assert changes(before, one.call) == ({"check_at_ms": CHECK} if moved else {})


def test_calls_are_read_together_without_those_that_cannot_be(one: OneCall) -> None:
    call_ids = many(one, 3)
    del one.dynamodb.table("calls")[f"CALL#{call_ids[1]}", "CALL"]["status"]
    assert {call.call_id for call in one.calls.get_many([*call_ids, "b" * 24])} == {call_ids[0], call_ids[2]}
    assert one.counted["UnreadableItems"] == 1


# ── the line ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "until", "limit", "found"),
    [
        (LINE, NOW, 9, ["0", "1"]),
        (LINE, NOW, 1, ["0"]),
        (LINE, NOW - 1, 9, ["0"]),
        (LINE, NOW - 2, 9, []),
        (LINE, NOW + 1, 9, ["0", "1", "2"]),
        (ADMITTED_LINE, NOW, 9, ["3"]),
        ("other#single", NOW, 9, []),
    ],
)
def test_the_first_entries_of_a_line(one: OneCall, line: str, until: int, limit: int, found: list[str]) -> None:
    turns = {"2": f"{NOW + 1}#5#2", "1": f"{NOW}#7#1", "0": f"{NOW - 1}#9#0", "3": f"{NOW - 9}#1#3"}
    for call_id, turn in turns.items():
        fields: dict[str, Any] = {"line_of": ADMITTED_LINE if call_id == "3" else LINE, "turn": turn}
        one.calls.create(dataclasses.replace(CALL, call_id=call_id, **fields))
    one.calls.create(dataclasses.replace(CALL, call_id="4", turn=f"{NOW - 9}#1#4"))
    assert one.calls.line(line, until, limit) == [(call_id, turns[call_id]) for call_id in found]


@pytest.mark.parametrize(
    ("waiting", "pages", "counted"),
    [
        (0, 1, (0, False)),
        (3, 1, (3, False)),
        (4, 1, (3, True)),
        (4, 2, (4, False)),
        (7, 2, (6, True)),
        (7, 9, (7, False)),
    ],
)
def test_a_long_line_is_counted_in_part(one: OneCall, waiting: int, pages: int, counted: tuple[int, bool]) -> None:
    """A page in memory has three entries."""
    for n in range(waiting):
        one.calls.create(dataclasses.replace(CALL, call_id=f"{n}", line_of=LINE, turn=f"{NOW}#5#{n}"))
    one.calls.create(dataclasses.replace(CALL, call_id="e", line_of=ADMITTED_LINE, turn=f"{NOW}#5#e"))
    assert one.calls.count_line(LINE, pages) == counted


@pytest.mark.parametrize(
    ("line", "admitted", "waits"), [(None, None, False), (LINE, None, True), (LINE, 5, False)]
)
def test_a_call_that_waits_in_the_line(line: str | None, admitted: int | None, waits: bool) -> None:
    assert dataclasses.replace(CALL, line_of=line, admitted_at_ms=admitted).in_line is waits


@pytest.mark.parametrize("item", [0, 3])
def test_a_call_that_keeps_its_slot_while_it_waits_enters_the_line_with_a_lease_only(
    one: OneCall, item: int
) -> None:
    one.place()
    one.calls.take_lease(CALL_ID, "mine", UNTIL, NOW, item)
    one.calls.wait(CALL_ID, "retry", NOW, CHECK, NOW, lease="mine")
    assert not enter()(one.calls, one.call).won
    one.calls.take_lease(CALL_ID, "mine", UNTIL, NOW, item)
    assert enter(lease="mine")(one.calls, one.call).won


@pytest.mark.parametrize(
    ("stored", "attempts", "item"), [(None, 0, None), (None, 1, 0), (0, 0, 0), (3, 0, 3), (3, 2, 3)]
)
def test_the_item_in_which_a_call_may_hold_a_slot(stored: int | None, attempts: int, item: int | None) -> None:
    """Versions that had one item stored no number."""
    assert dataclasses.replace(CALL, slots_item=stored, attempts=attempts).held_slots_item == item


# ── a workspace's calls ─────────────────────────────────────────────────────────────────────────────


def listed(one: OneCall, **query: Any) -> tuple[list[int], tuple[str, str] | None]:
    found, start = one.calls.page_of_workspace("demo", **{"limit": 100} | query)
    return [int(call.call_id[1:], 16) for call in found], start


def test_calls_are_listed_page_by_page_the_newest_first(one: OneCall) -> None:
    many(one, 5)
    one.calls.create(dataclasses.replace(CALL, call_id="b" * 24, workspace_id="other"))
    first, start = listed(one, limit=3)
    assert (first, start) == ([4, 3, 2], (iso(NOW + 2), f"CALL#a{2:023x}"))
    assert listed(one, limit=3, start=start) == ([1, 0], None)
    assert listed(one) == ([4, 3, 2, 1, 0], None)


def test_calls_of_one_moment_are_listed_once_each(one: OneCall) -> None:
    many(one, 3, created_at=iso(NOW))
    first, start = listed(one, limit=2)
    rest, end = listed(one, limit=2, start=start)
    assert (sorted(first + rest), end) == ([0, 1, 2], None)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"created_after": iso(NOW + 1)}, [2, 1]),
        ({"created_before": iso(NOW + 1)}, [1, 0]),
        ({"created_after": iso(NOW + 1), "created_before": iso(NOW + 1)}, [1]),
        ({"agent": "agent-1"}, [2, 1, 0]),
        ({"agent": "agent-2"}, []),
        ({"to": CALL.to}, [2, 1, 0]),
        ({"to": "+1"}, []),
        ({"agent": "agent-1", "to": "+1"}, []),
    ],
)
def test_a_list_is_filtered(one: OneCall, query: dict[str, Any], found: list[int]) -> None:
    many(one, 3)
    assert listed(one, **query) == (found, None)


def test_a_call_that_is_gone_from_the_table_is_not_listed(one: OneCall) -> None:
    call_ids = many(one, 3)
    del one.dynamodb.table("calls")[f"CALL#{call_ids[1]}", "CALL"]["status"]
    assert listed(one) == ([2, 0], None)
