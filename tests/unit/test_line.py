"""The line: its order, and who is admitted when, by the end of a call, a newcomer and the reconciler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.call import Call, Outcome, iso
from shared.errors import StoreError
from shared.limits import Standing
from shared.line import admitted_of, earliest_ms, line_of, turn_of
from shared.slots import SlotsItem
from shared.switch import Switch
from shared.trunk import Trunk
from shared.workspaces import Workspace
from tests.one_call import CALL, NOW, WORKSPACE, OneCall

LINE, ADMITTED = "demo#single", "demo#single#admitted"
MINUTE = 60_000
HUNDRED = dataclasses.replace(WORKSPACE, max_concurrent_calls=100)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    return OneCall(monkeypatch)


def call_id(number: int) -> str:
    return f"{number:024x}"


def wait(one: OneCall, number: int, turn: int = NOW, **fields: Any) -> Call:
    """A call that waits in the line from that time on; those of the same time in their numbers' order."""
    call = dataclasses.replace(CALL, call_id=call_id(number), created_at=iso(NOW - 1000 + number), **fields)
    one.calls.create(call)
    entered = one.calls.enter_line(call.call_id, LINE, turn_of(call, turn), "slot", NOW + 3_600_000, NOW)
    assert entered.call is not None
    return entered.call


def wait_many(one: OneCall, number: int, **fields: Any) -> None:
    for n in range(number):
        wait(one, n, **fields)


def get(one: OneCall, number: int) -> Call:
    call = one.calls.get(call_id(number))
    assert call is not None
    return call


def message(number: int, item: int = 0, delay: float = 0) -> tuple[dict[str, Any], str, float]:
    return {"callId": call_id(number), "workspaceId": "demo", "slotsItem": item}, "demo", delay


def admitted(one: OneCall) -> list[int]:
    """The numbers of the calls whose messages were sent."""
    return [int(body["callId"], 16) for body, _, _ in one.dial_queue.sent]


def leave_entry(one: OneCall, number: int, line: str = LINE, status: Any = "canceled") -> None:
    """A call that has ended by a write that left it in the index."""
    call = dataclasses.replace(CALL, call_id=call_id(number), status=status, line_of=line, turn=f"{NOW:013}#0#x")
    one.calls.create(call)


def entries(one: OneCall, line: str) -> list[int]:
    return [int(found, 16) for found, _ in one.calls.line(line, NOW + 10 * MINUTE, 999)]


def crowded_until(one: OneCall, items: int = 1) -> list[int]:
    return [item.crowded_until_ms for item in one.limits.slots("demo", items)]


def raises(error: Exception) -> Callable[..., Any]:
    def action(*given: Any, **named: Any) -> Any:
        raise error

    return action


# ── the order ───────────────────────────────────────────────────────────────────────────────────────


def test_a_call_s_place_in_the_line() -> None:
    call = dataclasses.replace(CALL, created_at="2027-01-15T08:00:00.123Z")
    assert turn_of(call) == f"1800000000123#1800000000123#{CALL.call_id}"
    assert turn_of(call, 1_800_000_900_000) == f"1800000900000#1800000000123#{CALL.call_id}"
    assert turn_of(call, 7) == f"0000000000007#1800000000123#{CALL.call_id}"
    assert [earliest_ms(turn_of(call, at)) for at in (None, 7)] == [1_800_000_000_123, 7]
    assert (line_of("demo"), admitted_of(LINE)) == (LINE, ADMITTED)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**13 - 1), st.integers(10**12, 10**13 - 1), st.integers(0, 99)), max_size=9
    )
)
def test_turns_are_ordered_by_their_time_then_by_their_calls_age(places: list[tuple[int, int, int]]) -> None:
    def turn(place: tuple[int, int, int]) -> str:
        call = dataclasses.replace(
            CALL, created_at=iso(min(place[1], 4_000_000_000_000)), call_id=f"{place[2]:024x}"
        )
        return turn_of(call, place[0])

    ordered = sorted(places, key=lambda place: (place[0], min(place[1], 4_000_000_000_000), place[2]))
    assert sorted(map(turn, places)) == list(map(turn, ordered))


# ── one is admitted ─────────────────────────────────────────────────────────────────────────────────


def test_the_first_is_admitted(one: OneCall) -> None:
    wait(one, 1, NOW)
    wait(one, 2, NOW - 1)
    one.dynamodb.requests.clear()
    assert one.line.admit_one("demo", 3)
    assert one.dynamodb.requests == ["query", "update_item", "update_item"]
    assert one.dial_queue.sent == [message(2, item=3)]
    call = get(one, 2)
    assert (call.line_of, call.admitted_at_ms, call.in_line) == (ADMITTED, NOW, False)
    assert (call.check_at_ms, call.waiting_for) == (NOW + MINUTE, "slot")
    assert get(one, 1).in_line
    assert one.counted == {"CallsAdmitted": 1}


def test_the_last_one_leaves_the_workspace_to_newcomers(one: OneCall) -> None:
    wait(one, 1)
    one.dynamodb.requests.clear()
    assert one.line.admit_one("demo", 0)
    assert one.dynamodb.requests == ["query", "update_item"]
    assert crowded_until(one) == [0]


@pytest.mark.parametrize(("until", "then"), [(0, NOW + MINUTE), (NOW + 29_999, NOW + MINUTE)])
def test_while_others_wait_newcomers_stay_behind_them(one: OneCall, until: int, then: int) -> None:
    wait_many(one, 2)
    for item in (0, 1):
        one.limits.note_crowded("demo", item, until, 1)
    one.line.admit_one("demo", 1)
    assert crowded_until(one, 2) == [until, then]


def test_that_others_wait_is_stored_twice_a_minute_at_most(one: OneCall) -> None:
    wait_many(one, 2)
    one.limits.note_crowded("demo", 0, NOW + 30_000, 1)
    one.line.admit_one("demo", 0)
    assert crowded_until(one) == [NOW + 30_000]


def test_a_call_whose_turn_has_not_come_is_not_admitted(one: OneCall) -> None:
    wait(one, 1, NOW + 1)
    assert not one.line.admit_one("demo", 0)
    assert (one.dial_queue.sent, get(one, 1).in_line) == ([], True)
    assert one.counted == {}


def test_nobody_waits(one: OneCall) -> None:
    one.dynamodb.requests.clear()
    assert not one.line.admit_one("demo", 0)
    assert (one.dynamodb.requests, one.dial_queue.sent) == (["query"], [])


def test_who_loses_the_first_admits_the_next(one: OneCall) -> None:
    wait_many(one, 3)
    one.before(one.calls, "admit", lambda: one.line.admit_one("demo", 0))
    assert one.line.admit_one("demo", 0)
    assert admitted(one) == [0, 1]
    assert get(one, 2).in_line


def test_who_loses_goes_on_at_a_random_place_among_more_and_more(
    one: OneCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_many(one, 10)
    among: list[int] = []

    def last_of(number: int) -> int:
        among.append(number)
        return number - 1

    monkeypatch.setattr("random.randrange", last_of)
    for at, canceled in ((1, 0), (2, 2), (3, 5)):
        one.before(one.calls, "admit", functools.partial(one.cancel_call, call_id(canceled)), at=at)
    assert one.line.admit_one("demo", 0)
    assert (admitted(one), among) == ([9], [1, 2, 4, 7])


def test_an_entry_of_a_call_that_is_not_queued_is_removed(one: OneCall) -> None:
    for number, status in ((0, "canceled"), (1, "dialing")):
        leave_entry(one, number, status=status)
    wait(one, 2, NOW + 0)
    assert one.line.admit_one("demo", 0)
    assert admitted(one) == [2]
    assert entries(one, LINE) == []
    assert get(one, 0).status == "canceled"


def test_an_index_that_is_stale_admits_nobody_twice(one: OneCall) -> None:
    first = wait(one, 1)
    shown = one.calls.line(LINE, NOW, 9)
    assert one.line.admit_one("demo", 0)
    one.calls.line = lambda *asked: [*shown, ("b" * 24, shown[0][1])]  # type: ignore[method-assign]
    assert not one.line.admit_one("demo", 0)
    assert admitted(one) == [1]
    assert one.calls.get("b" * 24) is None
    assert get(one, 1).turn == first.turn


def test_so_many_are_tried(one: OneCall) -> None:
    wait_many(one, 26)
    asked: list[int] = []
    line = one.calls.line

    def first(line_of: str, until_ms: int, limit: int, from_ms: int = 0) -> list[tuple[str, str]]:
        asked.append(limit)
        return line(line_of, until_ms, limit, from_ms)

    one.calls.line = first  # type: ignore[method-assign]
    one.calls.admit = lambda *given: one.calls.leave_line(given[0], "other")  # type: ignore[method-assign]
    assert not one.line.admit_one("demo", 0)
    assert asked == [25]


@pytest.mark.parametrize("error", [StoreError("throttled"), RuntimeError("a bug")])
@pytest.mark.parametrize("part", ["line", "admit", "send"])
def test_an_admission_that_fails_does_not_fail_its_caller(
    one: OneCall, part: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    wait(one, 1)
    if part == "send":
        one.dial_queue.send_batch = raises(error)  # type: ignore[method-assign]
    else:
        setattr(one.calls, part, raises(error))
    assert not one.line.admit_one("demo", 0)
    assert one.counted["AdmissionErrors"] == 1
    assert [record.__dict__["workspace_id"] for record in caplog.records if record.levelname == "ERROR"] == [
        "demo"
    ]


def test_a_message_that_is_not_confirmed_is_counted(one: OneCall, caplog: pytest.LogCaptureFixture) -> None:
    """The call stays admitted; the reconciler repeats its message."""
    wait(one, 1)
    one.dial_queue.unconfirmed = {0}
    assert one.line.admit_one("demo", 0)
    assert get(one, 1).admitted_at_ms == NOW
    assert one.counted == {"CallsAdmitted": 1, "AdmissionErrors": 1}
    assert [record.__dict__["call_id"] for record in caplog.records if record.levelname == "ERROR"] == [call_id(1)]


# ── a slot is freed ─────────────────────────────────────────────────────────────────────────────────

HOLDER = dataclasses.replace(CALL, call_id="e" * 24, attempts=1)


def hold(one: OneCall, item: int = 0, crowded: int = NOW) -> Call:
    """A call that holds a slot, in an item that is crowded until then."""
    one.limits.take_slot("demo", HOLDER.call_id, 40, item=item)
    one.limits.note_crowded("demo", item, crowded, NOW * 2)
    one.dynamodb.requests.clear()
    return dataclasses.replace(HOLDER, slots_item=item)


@pytest.mark.parametrize("item", [0, 1, 24])
def test_a_freed_slot_admits_one(one: OneCall, item: int) -> None:
    wait_many(one, 2)
    one.line.free_slot(hold(one, item))
    assert one.dial_queue.sent == [message(0, item)]
    assert one.limits.active_calls("demo", 25) == frozenset()


def test_a_slot_that_was_free_already_admits_nobody(one: OneCall) -> None:
    wait_many(one, 3)
    holder = hold(one)
    for _ in range(3):
        one.line.free_slot(holder)
    assert admitted(one) == [0]


def test_a_slot_in_another_item_is_not_this_calls(one: OneCall) -> None:
    wait(one, 1)
    holder = hold(one, item=1)
    one.line.free_slot(dataclasses.replace(holder, slots_item=2))
    assert admitted(one) == []
    assert one.limits.active_calls("demo", 2) == {HOLDER.call_id}


def test_a_slot_that_an_earlier_version_took_is_in_the_first_item(one: OneCall) -> None:
    wait(one, 1)
    holder = hold(one)
    one.line.free_slot(dataclasses.replace(holder, slots_item=None))
    assert one.dial_queue.sent == [message(1)]


@pytest.mark.parametrize(("until", "queries"), [(NOW, 1), (NOW - 1, 0), (0, 0)])
def test_without_calls_that_wait_nothing_is_queried(one: OneCall, until: int, queries: int) -> None:
    holder = hold(one, crowded=until)
    one.line.free_slot(holder)
    assert one.dynamodb.requests == ["update_item", *["query"] * queries]


@pytest.mark.parametrize(("until", "writes"), [(NOW + 29_999, 1), (NOW + 30_000, 0)])
def test_that_calls_wait_is_stored_again_only_where_it_is_needed(one: OneCall, until: int, writes: int) -> None:
    for number in (1, 2):
        wait(one, number)
    holder = hold(one, crowded=until)
    one.dynamodb.requests.clear()
    one.line.free_slot(holder)
    assert one.dynamodb.requests == ["update_item", "query", "update_item", *["update_item"] * writes]
    assert admitted(one) == [1]


def test_a_call_that_no_process_has_leased_holds_no_slot(one: OneCall) -> None:
    hold(one)
    one.line.free_slot(dataclasses.replace(HOLDER, attempts=0))
    assert one.dynamodb.requests == []


def test_a_slot_is_freed_though_nobody_can_be_admitted(one: OneCall) -> None:
    holder = hold(one)
    one.calls.line = raises(StoreError("throttled"))  # type: ignore[method-assign]
    one.line.free_slot(holder)
    assert one.limits.active_calls("demo") == frozenset()


def test_a_slot_that_cannot_be_freed_fails_its_caller(one: OneCall) -> None:
    """The call stays due, and the reconciler frees it."""
    holder = hold(one)
    one.limits.free_slot = raises(StoreError("throttled"))  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        one.line.free_slot(holder)


# ── a call that entered the line although slots are free ────────────────────────────────────────────


def test_a_newcomer_admits_the_first(one: OneCall) -> None:
    wait(one, 1)
    newcomer = wait(one, 2)
    one.line.admit_behind(newcomer, [0, 2])
    assert one.dial_queue.sent == [message(1, item=1)]
    assert get(one, 2).in_line


def test_a_newcomer_that_the_index_does_not_show_admits_itself(one: OneCall) -> None:
    newcomer = wait(one, 2)
    one.calls.line = lambda *asked: []  # type: ignore[method-assign]
    one.line.admit_behind(newcomer, [0, 0, 1])
    assert one.dial_queue.sent == [message(2, item=2)]
    call = get(one, 2)
    assert (call.line_of, call.admitted_at_ms, call.check_at_ms) == (ADMITTED, NOW, NOW + MINUTE)
    one.line.admit_behind(newcomer, [0, 0, 1])
    assert len(one.dial_queue.sent) == 1, "once"


@pytest.mark.parametrize(("free", "admits"), [([1, 0], False), ([1, 1], False), ([1, 2], True)])
def test_a_newcomer_admits_nobody_for_a_slot_that_another_was_admitted_for(
    one: OneCall, free: list[int], admits: bool
) -> None:
    """Two have been admitted and hold no slot yet."""
    wait_many(one, 3)
    one.line.admit_one("demo", 0)
    one.line.admit_one("demo", 0)
    one.dial_queue.sent.clear()
    one.line.admit_behind(wait(one, 9), free)
    assert admitted(one) == ([2] if admits else [])


@pytest.mark.parametrize(("ahead", "admits"), [(5_000, False), (5_001, True)])
def test_a_newcomer_does_not_wait_for_one_that_was_admitted_for_a_later_time(
    one: OneCall, ahead: int, admits: bool
) -> None:
    """Until a message of its turn may have come it takes no slot."""
    wait(one, 1, NOW + ahead)
    one.calls.admit(call_id(1), LINE, get(one, 1).turn or "", ADMITTED, NOW, NOW)
    one.line.admit_behind(wait(one, 3), [1])
    assert admitted(one) == ([3] if admits else [])


def test_a_newcomer_that_must_wait_for_a_time_does_not_admit_itself(one: OneCall) -> None:
    """It has entered the line for its calling window, say, and not for a slot."""
    one.line.admit_behind(wait(one, 1, NOW + 1), [1])
    assert (admitted(one), get(one, 1).in_line) == ([], True)


@pytest.mark.parametrize("part", ["line", "admit"])
def test_a_newcomer_that_cannot_admit_waits(one: OneCall, part: str, caplog: pytest.LogCaptureFixture) -> None:
    newcomer = wait(one, 1)
    setattr(one.calls, part, raises(StoreError("throttled")))
    one.line.admit_behind(newcomer, [1])
    assert (admitted(one), one.counted["AdmissionErrors"]) == ([], 1)
    assert [record.__dict__["call_id"] for record in caplog.records if record.levelname == "ERROR"] == [call_id(1)]


# ── the free slots are filled ───────────────────────────────────────────────────────────────────────


# A fill marks the items until after the next run.
UNTIL = NOW + 2 * MINUTE


def standing(
    one: OneCall, workspace: Workspace = WORKSPACE, trunk: Trunk | None = None, switch: Switch | None = None
) -> Standing:
    slots = one.limits.slots("demo", workspace.slots_items)
    return Standing(workspace, switch or Switch(), trunk or Trunk("ST_1"), slots)


def fill(one: OneCall, workspace: Workspace = WORKSPACE, **changes: Any) -> int:
    found = standing(one, workspace, **changes)
    one.dynamodb.requests.clear()
    return one.line.fill(workspace, found)


def take(one: OneCall, number: int, item: int = 0) -> None:
    for n in range(number):
        assert one.limits.take_slot("demo", f"holder-{item}-{n}", 40, item=item)


@pytest.mark.parametrize(
    ("waiting", "taken", "number"), [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 2), (3, 1, 1), (3, 2, 0)]
)
def test_as_many_are_admitted_as_slots_are_free(one: OneCall, waiting: int, taken: int, number: int) -> None:
    take(one, taken)
    wait_many(one, waiting)
    assert fill(one) == number
    assert one.dial_queue.sent == [message(n) for n in range(number)]
    assert one.counted["CallsAdmitted"] == number
    # Newcomers stay behind those that still wait.
    assert crowded_until(one) == [UNTIL if waiting > number else 0]


@pytest.mark.parametrize(("until", "then"), [(NOW + 89_999, UNTIL), (NOW + 90_000, NOW + 90_000)])
def test_that_others_wait_is_not_stored_anew_by_each_fill(one: OneCall, until: int, then: int) -> None:
    wait_many(one, 3)
    one.limits.note_crowded("demo", 0, until, 1)
    fill(one)
    assert crowded_until(one) == [then]


def test_a_workspace_without_a_line_costs_one_query(one: OneCall) -> None:
    assert fill(one) == 0
    assert one.dynamodb.requests == ["query"]


@pytest.mark.parametrize(("outstanding", "number"), [(1, 1), (2, 0)])
def test_those_that_are_admitted_and_not_leased_yet_count(one: OneCall, outstanding: int, number: int) -> None:
    wait_many(one, 4)
    for _ in range(outstanding):
        one.line.admit_one("demo", 0)
    one.dial_queue.sent.clear()
    assert fill(one) == len(one.dial_queue.sent) == number
    assert crowded_until(one) == [UNTIL]


def test_those_that_were_admitted_and_have_a_lease_hold_a_slot_themselves(one: OneCall) -> None:
    wait_many(one, 4)
    for number in (0, 1):
        one.line.admit_one("demo", 0)
        one.calls.take_lease(call_id(number), "lease", NOW + 9, NOW)
        one.limits.take_slot("demo", call_id(number), 2)
    one.limits.free_slot("demo", call_id(0))
    assert fill(one) == 1


@pytest.mark.parametrize(("lease_until", "number"), [(NOW, 2), (NOW - 1, 1)])
def test_an_entry_with_a_live_lease_is_not_one_that_is_still_to_come(
    one: OneCall, lease_until: int, number: int
) -> None:
    leave_entry(one, 7, ADMITTED, status="queued")
    one.dynamodb.table("calls")[f"CALL#{call_id(7)}", "CALL"]["leaseUntil"] = lease_until
    wait_many(one, 3)
    assert fill(one) == number


def test_entries_of_calls_that_are_not_queued_are_removed(one: OneCall) -> None:
    for number, status in ((7, "canceled"), (8, "dialing")):
        leave_entry(one, number, ADMITTED, status=status)
    wait_many(one, 2)
    assert fill(one) == 2
    assert entries(one, ADMITTED) == [0, 1]


def test_entries_of_records_that_are_gone_do_not_count(one: OneCall) -> None:
    wait_many(one, 2)
    line = one.calls.line

    def stale(line_of: str, until_ms: int, limit: int, from_ms: int = 0) -> list[tuple[str, str]]:
        return [("b" * 24, "1#1#b")] if line_of == ADMITTED else line(line_of, until_ms, limit, from_ms)

    one.calls.line = stale  # type: ignore[method-assign]
    assert fill(one) == 2


def test_slots_are_read_anew(one: OneCall) -> None:
    """The reconciler's scan is a while ago."""
    wait_many(one, 3)
    before = standing(one)
    take(one, 1)
    assert one.line.fill(WORKSPACE, before) == 1


@pytest.mark.parametrize(
    ("trunk", "number"),
    [
        (Trunk("ST_1", faults=frozenset("ab")), 2),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW + 1), 0),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW), 1),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW - 9, probe_until_ms=NOW + 1), 0),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW - 9, probe_until_ms=NOW), 1),
    ],
)
def test_a_stopped_trunk_admits_none_and_then_one(one: OneCall, trunk: Trunk, number: int) -> None:
    wait_many(one, 3)
    assert fill(one, trunk=trunk) == number
    assert len(one.dial_queue.sent) == number
    if trunk.state(NOW) in ("stopped", "probing"):
        assert one.dynamodb.requests == []


def test_one_that_is_to_try_a_trunk_is_admitted_once(one: OneCall) -> None:
    wait_many(one, 3)
    trunk = Trunk("ST_1", stops=1, stopped_until_ms=NOW)
    assert [fill(one, trunk=trunk) for _ in range(3)] == [1, 0, 0]


def test_one_tries_a_trunk_though_a_slot_is_needed(one: OneCall) -> None:
    wait(one, 1)
    take(one, 2)
    fill(one, trunk=Trunk("ST_1", stops=1, stopped_until_ms=NOW))
    assert len(admitted(one)) <= 1


def test_nobody_is_admitted_while_dialling_is_paused(one: OneCall) -> None:
    wait(one, 1)
    assert fill(one, switch=Switch(NOW)) == 0
    assert one.dynamodb.requests == []
    assert fill(one, switch=Switch(None, ((NOW - 5, NOW),))) == 1


@pytest.mark.parametrize(
    ("ahead", "delay"), [(0, 0), (999, 0), (1_000, 1), (1_999, 1), (119_999, 119), (120_000, 120), (120_001, None)]
)
def test_whose_turn_comes_within_two_minutes_gets_a_delayed_message(
    one: OneCall, ahead: int, delay: int | None
) -> None:
    wait(one, 1, NOW + ahead)
    assert fill(one) == (delay is not None)
    assert one.dial_queue.sent == ([] if delay is None else [message(1, delay=delay)])
    if delay is not None:
        assert get(one, 1).check_at_ms == NOW + ahead + MINUTE
        assert fill(one) == 0, "admitted already"


@pytest.mark.parametrize(("coming", "number"), [(3, 3), (4, 3)])
def test_of_those_to_come_one_more_is_admitted_than_there_are_slots(
    one: OneCall, coming: int, number: int
) -> None:
    """Two slots, both taken: they are free when those come, or the third makes each freed slot admit the next."""
    take(one, 2)
    for n in range(coming):
        wait(one, n, NOW + MINUTE + n)
    assert fill(one) == number
    assert one.dial_queue.sent == [message(n, delay=60) for n in range(number)]
    assert fill(one) == 0, "they count until their time"


def test_those_to_come_take_no_slot_of_those_whose_turn_has_come(one: OneCall) -> None:
    for n in range(3):
        wait(one, n, NOW + MINUTE)
    assert fill(one) == 3
    for n in range(3, 6):
        wait(one, n)
    one.dial_queue.sent.clear()
    assert (fill(one), admitted(one)) == (2, [3, 4])


def test_those_to_come_keep_no_newcomer_behind_them(one: OneCall) -> None:
    for n in range(9):
        wait(one, n, NOW + MINUTE)
    fill(one)
    assert crowded_until(one) == [0]


def test_a_trunk_that_is_to_be_tried_gets_one_of_those_to_come(one: OneCall) -> None:
    for n in range(3):
        wait(one, n, NOW + MINUTE)
    assert fill(one, trunk=Trunk("ST_1", stops=1, stopped_until_ms=NOW)) == 1


@pytest.mark.parametrize("per_second", [1, 3])
def test_messages_are_sent_at_the_trunks_pace(one: OneCall, per_second: int) -> None:
    """All at once they would wait in workers, or come back one after the other."""
    wait_many(one, 9)
    assert fill(one, dataclasses.replace(HUNDRED, calls_per_second=per_second)) == 9
    gap = 1000 // per_second
    assert one.dial_queue.sent == [message(n, delay=n * gap // 1000) for n in range(9)]
    assert [get(one, n).check_at_ms for n in range(9)] == [NOW + n * gap + MINUTE for n in range(9)]


def test_a_turn_that_comes_after_its_place_in_the_pace_keeps_its_time(one: OneCall) -> None:
    """Those to come are not delayed beyond their turn: the worker keeps the pace."""
    for n in range(3):
        wait(one, n, NOW + MINUTE)
    fill(one, dataclasses.replace(WORKSPACE, calls_per_second=1))
    assert [delay for _, _, delay in one.dial_queue.sent] == [60, 60, 60]


def test_one_whose_turn_has_long_come_is_looked_at_in_a_minute(one: OneCall) -> None:
    wait(one, 1, NOW - 50 * MINUTE)
    fill(one)
    assert (one.dial_queue.sent, get(one, 1).check_at_ms) == ([message(1)], NOW + MINUTE)


@pytest.mark.parametrize(("per_second", "number"), [(1, 60), (2, 90)])
def test_no_more_are_admitted_than_the_trunk_takes_in_a_minute(one: OneCall, per_second: int, number: int) -> None:
    workspace = dataclasses.replace(HUNDRED, calls_per_second=per_second)
    take(one, 10, item=1)
    wait_many(one, 95)
    assert fill(one, workspace) == number
    assert sorted(admitted(one)) == list(range(number))
    assert crowded_until(one, 3) == [UNTIL] * 3


def test_messages_name_the_items_that_have_free_slots(one: OneCall) -> None:
    take(one, 38, item=0)
    take(one, 40, item=1)
    take(one, 17, item=2)
    wait_many(one, 9)
    assert fill(one, HUNDRED) == 5
    # Two a second, which is the trunk's pace.
    places = [(0, 0), (0, 0), (2, 1), (2, 1), (2, 2)]
    assert one.dial_queue.sent == [message(n, item, delay) for n, (item, delay) in enumerate(places)]
    assert crowded_until(one, 4) == [UNTIL] * 3 + [0]


def test_a_lowered_limit_admits_nobody_until_it_holds(one: OneCall) -> None:
    workspace = dataclasses.replace(WORKSPACE, max_concurrent_calls=10, slots_items_used=3)
    take(one, 3, item=0)
    take(one, 8, item=2)
    wait(one, 1)
    assert fill(one, workspace) == 0
    assert crowded_until(one, 3) == [UNTIL] * 3
    one.limits.free_slot("demo", "holder-2-0", 2)
    one.limits.free_slot("demo", "holder-2-1", 2)
    assert fill(one, workspace) == 1
    assert one.dial_queue.sent == [message(1, 0)]


@pytest.mark.parametrize("number", [1, 100, 101, 160])
def test_a_long_line_is_read_a_part_at_a_time(one: OneCall, number: int) -> None:
    workspace = dataclasses.replace(WORKSPACE, max_concurrent_calls=number, calls_per_second=100)
    wait_many(one, number + 30)
    asked: list[int] = []
    line = one.calls.line

    def noted(line_of: str, until_ms: int, limit: int, from_ms: int = 0) -> list[tuple[str, str]]:
        if line_of == LINE and from_ms == 0:
            asked.append(limit)
        return line(line_of, until_ms, limit, from_ms)

    one.calls.line = noted  # type: ignore[method-assign]
    assert fill(one, workspace) == number
    assert sorted(admitted(one)) == list(range(number))
    assert asked == [1, *([26] if number == 1 else [100] if number == 100 else [100, number - 100 + 25])]


def test_those_that_others_admit_meanwhile_are_passed_over(one: OneCall) -> None:
    wait_many(one, 4)
    one.before(one.calls, "admit", lambda: one.line.admit_one("demo", 0))
    assert fill(one) == 2
    assert admitted(one) == [0, 1, 2]


def test_an_index_that_still_shows_those_that_were_admitted_ends_the_round(one: OneCall) -> None:
    wait_many(one, 1)
    shown = one.calls.line(LINE, NOW, 9)
    line = one.calls.line
    one.calls.line = (  # type: ignore[method-assign]
        lambda name, *asked: shown if name == LINE else line(name, *asked)
    )
    assert fill(one) == 1
    assert admitted(one) == [0]


def test_messages_that_are_not_confirmed_are_counted(one: OneCall, caplog: pytest.LogCaptureFixture) -> None:
    wait_many(one, 2)
    one.dial_queue.unconfirmed = {1}
    assert fill(one) == 2
    assert admitted(one) == [0]
    assert one.counted == {"CallsAdmitted": 2, "AdmissionErrors": 1}
    assert [record.__dict__["call_id"] for record in caplog.records if record.levelname == "ERROR"] == [call_id(1)]


def test_what_was_claimed_before_a_failure_is_sent(one: OneCall) -> None:
    wait_many(one, 2)
    one.before(one.calls, "admit", raises(StoreError("throttled")), at=2)
    with pytest.raises(StoreError):
        fill(one)
    assert admitted(one) == [0]
    assert [get(one, number).in_line for number in (0, 1)] == [False, True]


# ── calls wait for a slot ───────────────────────────────────────────────────────────────────────────


def test_that_calls_wait_is_stored_in_every_item_that_does_not_say_so_for_another_while(one: OneCall) -> None:
    take(one, 2, item=2)
    for item, until in ((0, NOW + 29_999), (1, NOW + 30_000)):
        one.limits.note_crowded("demo", item, until, 1)
    before = standing(one, HUNDRED)
    one.limits.free_slot("demo", "holder-2-0", 2)
    one.dynamodb.requests.clear()
    after = one.line.crowd(HUNDRED, before)
    assert one.dynamodb.requests == ["update_item"] * 2
    assert crowded_until(one, 3) == [NOW + MINUTE, NOW + 30_000, NOW + MINUTE]
    # What was written is as it is now; a slot was freed meanwhile.
    assert after == dataclasses.replace(before, slots=one.limits.slots("demo", 3))
    assert after.slots[2].call_ids == {"holder-2-1"}
    assert after.slots[1] is before.slots[1]


def test_an_item_that_another_has_written_meanwhile_is_as_it_was_read(one: OneCall) -> None:
    before = standing(one)
    one.limits.note_crowded("demo", 0, NOW + 40_000, 1)
    assert one.line.crowd(WORKSPACE, before) == before
    assert crowded_until(one) == [NOW + 40_000]


def test_a_line_of_one_workspace_is_no_others(one: OneCall) -> None:
    wait(one, 1)
    other = dataclasses.replace(WORKSPACE, workspace_id="other")
    assert one.line.fill(other, Standing(other, Switch(), Trunk("ST_1"), (SlotsItem(0),))) == 0
    assert not one.line.admit_one("other", 0)
    assert get(one, 1).in_line


def test_a_canceled_call_is_not_admitted(one: OneCall) -> None:
    seen = wait(one, 1)
    one.calls.end(seen, Outcome("canceled", "canceled_by_api"), NOW, NOW)
    assert entries(one, LINE) == []
    assert fill(one) == 0
