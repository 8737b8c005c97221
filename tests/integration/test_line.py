"""Calls that wait in the line, and what takes them out of it: slots, the switch, the trunk, their ends."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.call import event
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.dynamo import to_wire
from shared.line import line_of, turn_of
from shared.queues import Queue
from shared.slots import SLOTS_PER_ITEM
from tests.calls import call_record
from tests.interleaving import change, other_worker, phone_left, standin, tell
from tests.system import System, demo_workspace

WAITS = ["call.queued"]
RANG = ["call.queued", "call.dialing", "call.answered", "call.ended"]
TALKS = ["call.queued", "call.dialing", "call.answered"]
TALKS_ON = {"outcome": "talks_on"}
numbers = itertools.count(1)


def new_numbers(count: int) -> list[str]:
    """Phone numbers that no other call of the test has."""
    return [f"+1555060{next(numbers) % 10_000:04}" for _ in range(count)]


@pytest.fixture
def admitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the calls whose admission was sent, in that order."""
    seen: list[str] = []
    send_batch = Queue.send_batch

    def noted(queue: Queue, messages: Any, *given: Any) -> Any:
        seen.extend(body["callId"] for body, _ in messages if "slotsItem" in body)
        return send_batch(queue, messages, *given)

    monkeypatch.setattr(Queue, "send_batch", noted)
    return seen


def limit(system: System, slots: int, **changes: Any) -> None:
    system.workspaces.put(demo_workspace(max_concurrent_calls=slots, **changes))


def talk(system: System, phones: list[str]) -> list[str]:
    """Calls that are answered and talk until they are hung up; each has a slot."""
    system.faults(numbers={number: TALKS_ON for number in phones})
    calls = []
    for number in phones:
        calls.append(system.place(number))
        system.dial()
        assert system.events(calls[-1]) == TALKS
    return calls


def wait_in_line(system: System, phones: list[str], why: str = "slot") -> list[str]:
    """Calls placed one after the other, each of which enters the line for this reason."""
    calls = []
    for number in phones:
        calls.append(system.place(number))
        system.dial()
        item = system.item(calls[-1])
        assert (item["status"], item["waitingFor"], item["lineOf"]) == ("queued", why, line_of("demo"))
        assert "leaseId" not in item
        assert calls[-1] not in system.limits.active_calls("demo")
    return calls


def hang_up(system: System, call_id: str) -> None:
    """The callee hangs up, and the end is stored."""
    standin(system, "hangup", number=system.item(call_id)["to"])
    system.wait_until(lambda: system.ended(call_id))
    system.servers.wait_until_idle()


def run_out(system: System, calls: list[str], *, reconcile: bool = False) -> None:
    """Everything moves until all these calls have ended and their slots are free."""

    def over() -> bool:
        if reconcile:
            system.reconcile()
        return all(map(system.ended, calls)) and not system.limits.active_calls("demo")

    system.run_until(over)


def assert_rang_once_in_order(system: System, phones: list[str]) -> None:
    rang = [call["number"] for call in system.calls_placed()]
    assert [number for number in rang if number in phones] == phones


def assert_ended_once(system: System, calls: list[str]) -> None:
    for call_id in calls:
        assert system.events(call_id).count("call.ended") == 1
        assert "lineOf" not in system.item(call_id)


def in_line(system: System) -> list[str]:
    store: CallStore = system.modules["dial_worker"].calls
    return [call_id for call_id, _ in store.line(line_of("demo"), now_ms(), 100)]


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def test_twelve_calls_on_two_slots_ring_once_each_in_their_order(system: System, admitted: list[str]) -> None:
    limit(system, 2)
    phones = new_numbers(12)
    talking, waiting = talk(system, phones[:2]), wait_in_line(system, phones[2:])
    assert in_line(system) == waiting
    assert system.messages("DialQueue") == 0, "nothing is sent for a call that waits"
    for call_id in talking:
        hang_up(system, call_id)
    active: list[int] = []

    def all_over() -> bool:
        active.append(len(system.limits.active_calls("demo")))
        return all(map(system.ended, waiting)) and not active[-1]

    system.run_until(all_over)
    assert max(active) <= 2
    # Two calls that end at the same moment admit two; which of them rings first is open.
    assert admitted[0] == waiting[0]
    assert sorted(admitted) == sorted(waiting), "each was admitted once"
    assert sorted(call["number"] for call in system.calls_placed()) == sorted(phones)
    for call_id in waiting:
        assert system.events(call_id) == RANG
        assert system.item(call_id)["attempts"] == 1
    assert_ended_once(system, talking + waiting)
    assert in_line(system) == []


def test_a_newcomer_does_not_overtake_a_call_that_was_just_admitted(system: System) -> None:
    limit(system, 1)
    first, second, third = new_numbers(3)
    [talks] = talk(system, [first])
    [waits] = wait_in_line(system, [second])
    hang_up(system, talks)
    # Its admission is sent, and no worker has received it yet.
    [admission] = system.receive("DialQueue")
    newcomer = system.place(third)
    system.dial()
    assert "lineOf" in system.item(newcomer)
    other_worker(system, [admission])
    assert system.events(waits)[1] == "call.dialing"
    system.run_until(lambda: system.ended(waits) and system.ended(newcomer))
    assert_rang_once_in_order(system, [first, second, third])


def test_a_newcomer_that_finds_a_slot_while_others_wait_admits_the_first_of_them(
    system: System, admitted: list[str]
) -> None:
    """The slot was freed by a process that died before it admitted a call."""
    limit(system, 1)
    phones = new_numbers(3)
    system.limits.take_slot("demo", "another-call", 1)
    waiting = wait_in_line(system, phones[:2])
    system.limits.free_slot("demo", "another-call")
    waiting.append(system.place(phones[2]))
    run_out(system, waiting)
    assert_rang_once_in_order(system, phones)
    assert admitted[0] == waiting[0]
    assert len(admitted) <= 2 * len(waiting)


def test_a_limit_that_is_raised_while_calls_wait_lets_more_of_them_ring(system: System) -> None:
    limit(system, 1)
    phones = new_numbers(6)
    [talks] = talk(system, phones[:1])
    waiting = wait_in_line(system, phones[1:])
    system.faults(numbers={number: TALKS_ON for number in phones})
    limit(system, 3)
    assert system.reconcile()["admitted"] == 2
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert system.limits.active_calls("demo") == {talks, *waiting[:2]}
    # Nothing more, however often it looks.
    assert "admitted" not in system.reconcile()
    system.faults(numbers={})
    for call_id in [talks, *waiting[:2]]:
        hang_up(system, call_id)
    run_out(system, waiting)
    assert sorted(call["number"] for call in system.calls_placed()) == sorted(phones)
    assert_ended_once(system, [talks, *waiting])


def test_a_limit_that_is_lowered_while_calls_wait_holds_them_back(system: System) -> None:
    limit(system, 3)
    phones = new_numbers(6)
    talking = talk(system, phones[:3])
    waiting = wait_in_line(system, phones[3:])
    limit(system, 1)
    for call_id in talking[:2]:
        hang_up(system, call_id)
        system.run_until(lambda: system.messages("DialQueue") == 0)
        assert "admitted" not in system.reconcile()
        assert system.limits.active_calls("demo") <= set(talking)
        assert in_line(system) == waiting, "one that was admitted has returned to its turn"
        assert not any(system.item(call_id).get("attempts") for call_id in waiting)
    hang_up(system, talking[2])
    run_out(system, waiting, reconcile=True)
    assert_rang_once_in_order(system, phones)
    assert_ended_once(system, talking + waiting)


def talking_without_a_phone(system: System, count: int, slots: int) -> list[str]:
    """Answered calls of which LiveKit knows nothing, with their slots."""
    store, now = CallStore(system.dynamodb, "CallsTable"), now_ms()
    calls = []
    for n in range(count):
        item = n // SLOTS_PER_ITEM
        call_id = f"{n % 16:x}{n:023x}"
        events = tuple(event(kind, now - 5000) for kind in TALKS)
        store.create(
            call_record(
                now - 5000,
                call_id=call_id,
                to=new_numbers(1)[0],
                room_name=f"agent-1-{n:010}",
                status="in_progress",
                events=events,
                attempts=1,
                lease_id="done",
                lease_until_ms=1,
                slots_item=item,
                room_sid="RM_1",
                dialed_at_ms=now,
                answered_at_ms=now,
                check_at_ms=now + 3_600_000,
            )
        )
        capacity = min(SLOTS_PER_ITEM, slots - item * SLOTS_PER_ITEM)
        assert system.limits.take_slot("demo", call_id, capacity, item=item)
        calls.append(call_id)
    return calls


def ended_phone(system: System, call_id: str) -> Callable[[], int]:
    told = phone_left(system, call_id, "CLIENT_INITIATED", "hangup")
    return lambda: tell(system, told)


def test_a_limit_that_grows_beyond_an_item_fills_the_next(system: System) -> None:
    limit(system, SLOTS_PER_ITEM)
    talking = talking_without_a_phone(system, SLOTS_PER_ITEM, SLOTS_PER_ITEM)
    phones = new_numbers(3)
    waiting = wait_in_line(system, phones)
    system.faults(numbers={number: TALKS_ON for number in phones})
    limit(system, SLOTS_PER_ITEM + 2)
    assert system.reconcile()["admitted"] == 2
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert system.limits.slots("demo", 2)[1].call_ids == set(waiting[:2])
    # And back: what is in the second item stays until it ends, and nothing takes its place.
    system.workspaces.update("demo", lambda seen: dataclasses.replace(seen, max_concurrent_calls=SLOTS_PER_ITEM))
    for call_id in waiting[:2]:
        hang_up(system, call_id)
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert "admitted" not in system.reconcile()
    assert system.events(waiting[2]) == WAITS
    assert system.limits.active_calls("demo", 2) == set(talking)


def test_fifty_calls_that_end_at_once_admit_one_each(system: System, admitted: list[str]) -> None:
    slots = 50
    limit(system, slots)
    talking = talking_without_a_phone(system, slots, slots)
    store, now = CallStore(system.dynamodb, "CallsTable"), now_ms()
    phones, waiting = new_numbers(60), []
    system.faults(numbers={number: {"outcome": "busy"} for number in phones})
    for n, number in enumerate(phones):
        call = call_record(
            now + n,
            call_id=f"{n % 16:x}f{n:022x}",
            to=number,
            room_name=f"w{n}",
            queue_deadline_ms=now + 3_600_000,
        )
        store.create(call)
        assert store.enter_line(
            call.call_id, line_of("demo"), turn_of(call), "slot", call.queue_deadline_ms, now
        ).won
        waiting.append(call.call_id)
    for item in range(2):
        system.limits.note_crowded("demo", item, now + 60_000, now)
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda tell_end: tell_end(), [ended_phone(system, call) for call in talking]))
    assert set(statuses) == {200}
    assert system.limits.active_calls("demo", 2) == frozenset()
    assert len(admitted) == len(set(admitted)) <= slots
    # Those that lost every place that they had read leave their slot to the reconciler.
    system.reconcile()
    assert len(admitted) == len(set(admitted)) == slots
    run_out(system, waiting, reconcile=True)
    assert sorted(call["number"] for call in system.calls_placed()) == sorted(phones)
    assert_ended_once(system, waiting)
    assert len(admitted) <= 2 * len(waiting)


# ── the switch, the workspace ───────────────────────────────────────────────────────────────────────


def test_calls_that_were_paused_ring_after_the_pause(system: System, admitted: list[str]) -> None:
    limit(system, 2)
    phones = new_numbers(5)
    system.limits.pause(now_ms())
    waiting = wait_in_line(system, phones, "paused")
    assert "admitted" not in system.reconcile()
    assert system.messages("DialQueue") == 0
    system.limits.resume(now_ms())
    assert system.reconcile()["admitted"] == 2
    assert admitted == waiting[:2]
    run_out(system, waiting)
    assert sorted(admitted) == sorted(waiting)
    assert sorted(call["number"] for call in system.calls_placed()) == sorted(phones)
    assert_ended_once(system, waiting)


def test_what_was_admitted_before_a_pause_returns_to_its_turn(system: System) -> None:
    limit(system, 1)
    phones = new_numbers(3)
    [talks] = talk(system, phones[:1])
    waiting = wait_in_line(system, phones[1:])
    turn = system.item(waiting[0])["turn"]
    hang_up(system, talks)
    system.limits.pause(now_ms())
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert in_line(system) == waiting
    assert (system.item(waiting[0])["turn"], system.item(waiting[0])["waitingFor"]) == (turn, "paused")
    system.limits.resume(now_ms())
    system.reconcile()
    run_out(system, waiting)
    assert_rang_once_in_order(system, phones)


@pytest.mark.parametrize("changed", [{"disabled": True}, {"allowed_calling_codes": frozenset({"+44"})}])
def test_calls_whose_workspace_may_not_place_them_any_more_end_one_after_the_other(
    system: System, changed: dict[str, Any]
) -> None:
    limit(system, 1)
    phones = new_numbers(5)
    [talks] = talk(system, phones[:1])
    waiting = wait_in_line(system, phones[1:])
    limit(system, 1, **changed)
    hang_up(system, talks)
    run_out(system, waiting)
    for call_id in waiting:
        assert system.events(call_id) == ["call.queued", "call.ended"]
        assert system.item(call_id)["events"][-1]["reason"] == "not_allowed"
    assert_rang_once_in_order(system, phones[:1])
    assert_ended_once(system, waiting)


# ── the end of a call that waits ────────────────────────────────────────────────────────────────────


def test_a_call_that_expires_in_the_line_gives_its_turn_to_the_next(system: System) -> None:
    limit(system, 1)
    phones = new_numbers(3)
    [talks] = talk(system, phones[:1])
    expires, waits = wait_in_line(system, phones[1:])
    assert system.item(expires)["checkAt"] == system.item(expires)["queueDeadline"]
    change(system, expires, queue_deadline_ms=1, check_at_ms=1)
    system.reconcile()
    assert system.events(expires) == ["call.queued", "call.ended"]
    assert (system.item(expires)["status"], "dueShard" in system.item(expires)) == ("expired", False)
    hang_up(system, talks)
    run_out(system, [waits])
    assert_rang_once_in_order(system, [phones[0], phones[2]])
    assert_ended_once(system, [expires, waits])


@pytest.mark.parametrize("when", ["in the line", "admitted"])
def test_a_call_that_is_canceled_gives_its_turn_to_the_next(system: System, when: str) -> None:
    limit(system, 1)
    phones = new_numbers(3)
    [talks] = talk(system, phones[:1])
    canceled, waits = wait_in_line(system, phones[1:])
    if when == "admitted":
        hang_up(system, talks)
        assert in_line(system) == [waits]
    assert system.api("POST /v1/api/call/{callId}/cancel", canceled)["statusCode"] == 200
    assert system.events(canceled) == ["call.queued", "call.ended"]
    if when == "in the line":
        hang_up(system, talks)
    run_out(system, [waits])
    assert_rang_once_in_order(system, [phones[0], phones[2]])
    assert_ended_once(system, [canceled, waits])
    assert "dueShard" not in system.item(canceled)


# ── what is lost, and what the index does not show ──────────────────────────────────────────────────


def test_an_admission_whose_message_is_lost_is_repeated(system: System, admitted: list[str]) -> None:
    limit(system, 1)
    phones = new_numbers(3)
    [talks] = talk(system, phones[:1])
    waiting = wait_in_line(system, phones[1:])
    hang_up(system, talks)
    [lost] = system.receive("DialQueue")
    system.sqs.delete_message(QueueUrl=system.queue_urls["DialQueue"], ReceiptHandle=lost["receiptHandle"])
    # The call counts as one that will take the slot: no other is admitted for it.
    assert "admitted" not in system.reconcile()
    change(system, waiting[0], check_at_ms=1)
    assert system.reconcile()["sent_again"] == 1
    run_out(system, waiting)
    assert_rang_once_in_order(system, phones)
    assert admitted == waiting


def test_a_slot_that_was_freed_for_nobody_is_filled_by_the_reconciler(system: System, admitted: list[str]) -> None:
    """The index did not show the call that waits yet."""
    limit(system, 1)
    phones = new_numbers(2)
    [talks] = talk(system, phones[:1])
    [waits] = wait_in_line(system, phones[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallStore, "line", lambda *given: [])
        hang_up(system, talks)
    assert admitted == []
    assert system.reconcile()["admitted"] == 1
    run_out(system, [waits])
    assert_rang_once_in_order(system, phones)


def test_a_call_that_the_index_does_not_show_yet_is_admitted_for_a_free_slot(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It entered the line as calls waited, and a slot was free."""
    limit(system, 1)
    system.limits.note_crowded("demo", 0, 2**42, 2**42)
    monkeypatch.setattr(CallStore, "line", lambda *given: [])
    [number] = new_numbers(1)
    call_id = system.place(number)
    run_out(system, [call_id])
    assert_rang_once_in_order(system, [number])


def test_entries_that_the_index_still_shows_hold_up_no_other(
    system: System, monkeypatch: pytest.MonkeyPatch, admitted: list[str]
) -> None:
    """Of calls that have ended, that talk, that do not exist, that were admitted meanwhile."""
    limit(system, 2)
    phones = new_numbers(5)
    talking = talk(system, phones[:2])
    ended, first, last = wait_in_line(system, phones[2:])
    entries = system.modules["dial_worker"].calls.line(line_of("demo"), now_ms(), 10)
    assert system.api("POST /v1/api/call/{callId}/cancel", ended)["statusCode"] == 200
    line = CallStore.line
    stale = [(talking[1], entries[0][1]), ("0" * 24, entries[0][1]), *entries[:1]]

    def shows_more(store: CallStore, partition: str, until_ms: int, most: int) -> list[tuple[str, str]]:
        found = line(store, partition, until_ms, most)
        return [*stale, *entries[1:2], *found][:most] if partition == line_of("demo") else found

    monkeypatch.setattr(CallStore, "line", shows_more)
    for call_id in talking:
        hang_up(system, call_id)
    run_out(system, [first, last])
    assert admitted.count(first) == 1
    assert_rang_once_in_order(system, phones[:2])
    assert sorted(call["number"] for call in system.calls_placed()) == sorted([*phones[:2], *phones[3:]])
    assert_ended_once(system, [first, last])


# ── the trunk ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("refusal", ["sip_403", "trunk_auth", "trunk_dns"])
def test_a_trunk_with_a_wrong_password_holds_the_line(system: System, refusal: str) -> None:
    limit(system, 5)
    phones = new_numbers(20)
    system.faults(rates={refusal: 1.0})
    system.limits.pause(now_ms())
    calls = wait_in_line(system, phones, "paused")
    system.limits.resume(now_ms())
    system.reconcile()
    system.run_until(lambda: system.messages("DialQueue") == 0)
    failed = [call_id for call_id in calls if system.ended(call_id)]
    assert 3 <= len(failed) <= 10
    waiting = [call_id for call_id in calls if call_id not in failed]
    assert {system.item(call_id)["events"][-1]["reason"] for call_id in failed} == {"trunk_error"}
    assert set(in_line(system)) == set(waiting)
    # A newcomer sees it too, and the reconciler admits none.
    phones += new_numbers(1)
    waiting += wait_in_line(system, phones[-1:], "trunk")
    assert "admitted" not in system.reconcile()
    # One call at a time tries it once the stop is over, and stops it again.
    end_the_stop(system)
    assert system.reconcile()["admitted"] == 1
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert len([call_id for call_id in waiting if system.ended(call_id)]) == 1
    waiting = [call_id for call_id in waiting if not system.ended(call_id)]
    assert system.limits.trunk("ST_demo").stops == 2
    # The password is right again.
    system.faults(rates={})
    end_the_stop(system)
    run_out(system, waiting, reconcile=True)
    rang = [call["number"] for call in system.calls_placed()]
    assert len(rang) == len(set(rang)) == len(phones)
    for call_id in waiting:
        assert system.events(call_id) == RANG
    assert_ended_once(system, calls)
    assert not system.limits.trunk("ST_demo").faulty


def end_the_stop(system: System) -> None:
    """As if the minute, or the hour, had passed."""
    system.dynamodb.update_item(
        TableName="WorkspacesTable",
        Key={"workspaceId": {"S": "trunk#ST_demo"}},
        UpdateExpression="SET stoppedUntil = :now",
        ConditionExpression="stoppedUntil > :now",
        ExpressionAttributeValues=to_wire({":now": now_ms()}),
    )
