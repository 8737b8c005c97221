"""An update from the version before the line, under traffic: old and new functions run side by side for minutes.

No call is lost and none rings twice, whichever version takes a step; what only one of them knows is repaired.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.clock import MINUTE, START
from tests.previous_version import Update, Version
from tests.system import System, demo_workspace


@pytest.fixture
def update(system: System) -> Update:
    return Update(system)


def limit(system: System, slots: int, **changes: Any) -> None:
    system.workspaces.put(demo_workspace(max_concurrent_calls=slots, **changes))


def talk(update: Update, version: Version, **fields: Any) -> str:
    """A call that was dialled by this version and talks."""
    call_id = update.place(**fields)
    update.work_on(update.message_of(call_id), version)
    assert update.call(call_id).status == "in_progress"
    return call_id


def run_out(update: Update, calls: list[str], minutes: int = 30) -> None:
    """The present version alone goes on until these calls have ended; each talks for a moment."""
    for _ in range(minutes):
        for _ in range(3 * len(calls)):
            if not update.work("present"):
                break
            for call_id in calls:
                if update.call(call_id).status == "in_progress":
                    update.hang_up(call_id, "present")
        if all(update.call(call_id).ended for call_id in calls):
            return
        update.clock.now += MINUTE
        update.reconcile()
    raise AssertionError([update.call(call_id) for call_id in calls if not update.call(call_id).ended])


def assert_over(update: Update, system: System, calls: list[str], items: int = 1) -> None:
    """Each rang once and ended once; nothing of them is left."""
    for call_id in calls:
        call = update.call(call_id)
        assert (call.status, update.rings(call_id)) == ("completed", 1)
        assert [entry["type"] for entry in call.events].count("call.ended") == 1
        assert call.due_shard is None
    assert system.limits.active_calls("demo", items) == frozenset()
    assert update.in_line() == []


# ── calls that wait in the old way ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("message", ["comes", "is lost"])
def test_a_call_that_waits_for_a_slot_is_taken_over(system: System, update: Update, message: str) -> None:
    limit(system, 1)
    talks = talk(update, "previous")
    waits = update.place()
    update.work_on(update.message_of(waits), "previous")
    old = update.call(waits)
    assert (old.wait_until_ms > START, old.waiting_for, old.line_of) == (True, None, None)
    if message == "is lost":
        update.dial_queue.delete(update.message_of(waits))
    # The update. The call's time comes, and there is still no slot.
    update.clock.now += MINUTE
    update.reconcile()
    while update.work("present"):
        pass
    new = update.call(waits)
    assert (update.in_line(), new.waiting_for, new.wait_until_ms) == ([waits], "slot", 0)
    assert update.dial_queue.messages == []
    update.hang_up(talks, "present")
    run_out(update, [waits])
    assert_over(update, system, [talks, waits])


def test_a_call_that_waits_for_its_trunk_is_taken_over(system: System, update: Update) -> None:
    limit(system, 5)
    waits = update.place()
    update.limits.reserve_trunk("ST_demo", 20_000, update.clock.now, update.clock.now)
    update.work("previous")
    assert update.call(waits).wait_until_ms == START + 20_000
    update.clock.now = START + 20_000
    run_out(update, [waits])
    assert_over(update, system, [waits])


@pytest.mark.parametrize("rounds", [1, 4])
def test_paused_time_that_the_old_version_has_counted_is_not_counted_again(
    system: System, update: Update, rounds: int
) -> None:
    """It moved the deadline while the pause went on; the pause began before the update and ends after it."""
    limit(system, 5)
    began = START + MINUTE
    call_id = update.place()
    ttl_ms = update.call(call_id).queue_deadline_ms - START
    message = update.message_of(call_id)
    message.visible_at = update.clock.now = began
    update.previous.limits.pause(began)
    for _ in range(rounds):
        update.work("previous")
        old = update.call(call_id)
        assert (old.paused_until_ms, old.queue_deadline_ms) == (
            old.wait_until_ms,
            START + ttl_ms + old.wait_until_ms - began,
        )
        update.clock.now = old.wait_until_ms
    # The update.
    update.work("present")
    assert (update.in_line(), update.call(call_id).waiting_for) == ([call_id], "paused")
    update.clock.now = began + 30 * MINUTE
    update.reconcile()
    update.limits.resume(update.clock.now)
    seen = update.call(call_id)
    assert update.limits.switch().deadline_ms(seen, update.clock.now) == START + ttl_ms + 30 * MINUTE
    run_out(update, [call_id])
    assert_over(update, system, [call_id])


def test_a_call_that_waited_out_its_time_expires_at_the_deadline_that_the_old_version_moved(
    system: System, update: Update
) -> None:
    limit(system, 1)
    talks = talk(update, "previous", max_duration_seconds=7200)
    call_id = update.place()
    update.previous.limits.pause(update.clock.now)
    update.work("previous")
    update.clock.now += 10 * MINUTE
    update.limits.resume(update.clock.now)
    update.reconcile()
    while update.work("present"):
        pass
    assert update.in_line() == [call_id]
    deadline = START + 10 * MINUTE + round(update.durations.queue_ttl * 1000)
    update.clock.now = deadline - 1
    update.reconcile()
    assert update.call(call_id).status == "queued"
    update.clock.now = deadline + MINUTE
    update.reconcile()
    assert update.call(call_id).status == "expired"
    assert update.rings(call_id) == 0
    update.hang_up(talks, "present")
    assert_over(update, system, [talks])


# ── the old worker and calls in the line ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("takes", ["previous", "present"])
def test_a_call_of_the_line_that_an_old_worker_dials_rings_once(
    system: System, update: Update, takes: Version
) -> None:
    """It got a second message of the call, and knows nothing of the line: the entry stays behind."""
    limit(system, 1)
    talks = talk(update, "present")
    dialled, waits = update.place(), update.place()
    for call_id in (dialled, waits):
        update.dial_queue.send({"callId": call_id, "workspaceId": "demo"})
    update.work("present")
    assert update.in_line() == [dialled, waits]
    # The old version ends the call, and so admits none.
    update.hang_up(talks, "previous")
    update.dial_queue.send({"callId": dialled, "workspaceId": "demo"})
    update.work_on(update.message_of(dialled), "previous")
    assert (update.call(dialled).status, update.rings(dialled)) == ("in_progress", 1)
    assert update.in_line() == [dialled, waits]
    update.hang_up(dialled, takes)
    update.reconcile()
    assert update.in_line() == []
    run_out(update, [waits])
    assert_over(update, system, [talks, dialled, waits])
    assert update.call(dialled).line_of is None


def test_an_admitted_call_that_an_old_worker_dials_rings_once(system: System, update: Update) -> None:
    limit(system, 1)
    talks, dialled, waits = talk(update, "present"), update.place(), update.place()
    update.work("present")
    update.hang_up(talks, "present")
    update.work_on(update.message_of(dialled), "previous")
    assert (update.call(dialled).status, update.rings(dialled)) == ("in_progress", 1)
    assert update.call(dialled).line_of == "demo#single#admitted"
    # It does not count as one that will take a slot.
    limit(system, 2)
    assert update.reconcile()["admitted"] == 1
    assert update.call(dialled).line_of is None
    run_out(update, [dialled, waits])
    assert_over(update, system, [talks, dialled, waits])


def test_a_call_of_the_line_that_an_old_worker_makes_wait_is_not_lost(system: System, update: Update) -> None:
    """It stands in the line, and its message comes again and again."""
    limit(system, 1)
    talks, waits = talk(update, "present"), update.place()
    update.work("present")
    update.dial_queue.send({"callId": waits, "workspaceId": "demo"})
    update.work("previous")
    seen = update.call(waits)
    assert (seen.wait_until_ms > update.clock.now, update.in_line()) == (True, [waits])
    # Admitted while it waits in the old way.
    update.hang_up(talks, "present")
    run_out(update, [waits])
    assert_over(update, system, [talks, waits])


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def test_slots_of_both_versions_stay_within_the_limit(system: System, update: Update) -> None:
    """The old one keeps all in the first item, also more than the new one would put there."""
    limit(system, 60)
    taken = [f"f{n:023x}" for n in range(55)]
    for call_id in taken:
        assert update.previous.limits.take_slot("demo", call_id, 60)
    calls = [update.place() for _ in range(8)]
    update.work("present")
    first, second = (item.call_ids for item in system.limits.slots("demo", 2))
    assert len(first) == 55
    assert second == {call_id for call_id in calls if update.call(call_id).status == "in_progress"}
    assert len(second) == 5, "all together as many as the limit"
    assert len(update.in_line()) == 3


def test_the_slot_of_an_old_call_is_freed_by_the_new_version(system: System, update: Update) -> None:
    limit(system, 1)
    talks = talk(update, "previous")
    waits = update.place()
    update.work("present")
    assert update.in_line() == [waits]
    update.hang_up(talks, "present")
    # Its end admits the next.
    assert [update.message_of(waits).visible_at] == [update.clock.now]
    run_out(update, [waits])
    assert_over(update, system, [talks, waits])


@pytest.mark.parametrize("repairs", ["present", "previous then present"])
def test_a_slot_in_another_item_is_freed_although_the_old_version_ended_its_call(
    system: System, update: Update, repairs: str
) -> None:
    """It frees what it knows, which is the first item."""
    limit(system, 60)
    for _ in range(40):
        system.limits.take_slot("demo", update.place_answered(check_at_ms=2**42), 40)
    talks = talk(update, "present")
    assert talks in system.limits.slots("demo", 2)[1].call_ids
    update.hang_up(talks, "previous")
    assert talks in system.limits.active_calls("demo", 2)
    for _ in range(6):
        update.clock.now += MINUTE
        if "previous" in repairs:
            update.reconcile_as("previous")
        update.reconcile()
    assert talks not in system.limits.active_calls("demo", 2)
    assert len(system.limits.active_calls("demo", 2)) == 40
    assert update.rings(talks) == 1


# ── everything at once ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(2))
def test_under_traffic_each_call_rings_once_whichever_version_takes_each_step(
    system: System, update: Update, seed: int
) -> None:
    """Ten minutes in which each message, run and event is taken by one of the two; then the new one alone."""
    chance = random.Random(seed)
    limit(system, 3)
    calls: list[str] = []

    def any_version() -> Version:
        return chance.choice(("previous", "present"))

    for minute in range(10):
        for _ in range(chance.randint(0, 5)):
            calls.append(update.place())
            if chance.random() < 0.3:
                update.dial_queue.send({"callId": calls[-1], "workspaceId": "demo"})
        for _ in range(6):
            update.clock.now += MINUTE // 6
            due = update.dial_queue.visible()
            chance.shuffle(due)
            for message in due:
                if chance.random() < 0.1:
                    update.dial_queue.delete(message)
                else:
                    update.work_on(message, any_version())
            for call_id in calls:
                if update.call(call_id).status == "in_progress" and chance.random() < 0.4:
                    update.hang_up(call_id, any_version())
            assert len(system.limits.active_calls("demo")) <= 3
        update.reconcile_as(any_version())
        if minute == 4:
            update.limits.pause(update.clock.now)
        if minute == 6:
            update.limits.resume(update.clock.now)
    run_out(update, calls, minutes=20)
    for _ in range(6):
        # What only a repair or a look finds.
        update.clock.now += MINUTE
        update.reconcile()
    assert_over(update, system, calls)
    # What the old workers left of admitted calls is removed when calls wait again.
    calls = [talk(update, "present"), *(update.place() for _ in range(5))]
    update.work("present")
    update.reconcile()
    assert update.calls.line("demo#single#admitted", 2**42, 100) == []
