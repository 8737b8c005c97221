"""An update from the version before the gates, under traffic: old and new functions run side by side for minutes.

No call is lost and none rings twice, whichever version takes a step. The old version knows no rule and no opt-out:
what it fences is not held to them, so the fourth promise begins when its last worker is gone. The last tests say
what does not hold until then, and what a pause is good for.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from shared.call import iso
from shared.numbers import MARKER, Suppression
from shared.policies import Cap, Policy
from tests.clock import MINUTE, START
from tests.previous_version import Update, Version
from tests.system import System, demo_workspace

NUMBER = "+12025550123"
CAPPED = {"default": Policy("default", caps=(Cap(1, 3600),))}


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


def suppress(update: Update, number: str = NUMBER) -> None:
    now = update.clock()
    update.numbers.suppress("demo", number, Suppression("all", "opted_out", now), now)


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


def assert_over(update: Update, system: System, calls: list[str]) -> None:
    """Each rang once and ended once; nothing of them is left."""
    for call_id in calls:
        call = update.call(call_id)
        assert (call.status, update.rings(call_id)) == ("completed", 1)
        assert [entry["type"] for entry in call.events].count("call.ended") == 1
        assert call.due_shard is None
    assert system.limits.active_calls("demo") == frozenset()
    assert update.in_line() == []


# ── old records and the new version ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policies", [{}, CAPPED], ids=["no rules", "a cap"])
def test_a_call_that_the_old_version_put_into_the_line_is_dialled_by_the_new_one(
    system: System, update: Update, policies: dict[str, Policy]
) -> None:
    """Its record has none of the new fields, its workspace and its number no item of their own."""
    limit(system, 1, policies=policies)
    talks, waits = talk(update, "previous", to="+12025550100"), update.place()
    update.work_on(update.message_of(waits), "previous")
    assert (update.in_line(), update.call(waits).waiting_for) == ([waits], "slot")
    update.hang_up(talks, "present")
    run_out(update, [waits])
    assert_over(update, system, [talks, waits])
    assert list(update.numbers.get("demo", NUMBER).rings) == ([waits] if policies else [])


def test_a_call_that_an_old_worker_leased_and_left_is_dialled_by_the_new_one(
    system: System, update: Update
) -> None:
    """The old process is stopped by the deployment after it made the room."""
    limit(system, 5)
    call_id = update.place()
    taken = update.previous.calls.take_lease(call_id, "old", START + 3 * MINUTE, START, 0)
    assert taken.won
    update.dial_queue.messages.clear()
    run_out(update, [call_id])
    assert_over(update, system, [call_id])


@pytest.mark.parametrize("status", ["dialing", "in_progress"])
def test_a_call_that_the_old_version_dialled_is_ended_by_the_new_one(
    system: System, update: Update, status: str
) -> None:
    limit(system, 5)
    call_id = talk(update, "previous") if status == "in_progress" else update.place_dialing()
    for _ in range(15):
        update.clock.now += MINUTE
        update.livekit.rooms.pop(update.call(call_id).room_name, None)
        update.reconcile()
    call = update.call(call_id)
    assert call.ended
    assert [entry["type"] for entry in call.events].count("call.ended") == 1
    assert update.rings(call_id) == (status == "in_progress")
    assert system.limits.active_calls("demo") == frozenset()


# ── the old version and new records ─────────────────────────────────────────────────────────────────


def test_an_old_worker_leaves_a_call_in_the_line_that_is_for_later(system: System, update: Update) -> None:
    """It gets the message that says to do nothing, and does not know that word."""
    limit(system, 5)
    at = START + 60 * MINUTE
    call_id = update.place(
        scheduled_at_ms=at,
        queue_deadline_ms=at + 60 * MINUTE,
        line_of="demo#single",
        turn=f"{at}#{START}#{0:024}",
        waiting_for="scheduled_at",
        check_at_ms=at + 60 * MINUTE,
    )
    message = update.message_of(call_id)
    update.dial_queue.messages.clear()
    update.dial_queue.send({"callId": call_id, "workspaceId": "demo", "hold": True})
    update.work("previous")
    for _ in range(3):
        update.clock.now += MINUTE
        update.reconcile_as("previous")
        update.work("previous")
    assert message.number is not None
    assert (update.livekit.rang, update.in_line(), update.call(call_id).status) == ([], [call_id], "queued")
    update.clock.now = at - 2 * MINUTE
    run_out(update, [call_id])
    assert_over(update, system, [call_id])
    assert (update.call(call_id).dialed_at_ms or 0) >= at


@pytest.mark.parametrize("version", ["previous", "present"])
def test_a_call_soon_is_not_dialled_by_a_message_before_its_time(
    system: System, update: Update, version: Version
) -> None:
    limit(system, 5)
    at = START + MINUTE
    call_id = update.place(scheduled_at_ms=at, wait_until_ms=at, waiting_for="scheduled_at", check_at_ms=at)
    update.work(version)
    assert update.livekit.rang == []
    update.clock.now = at
    update.reconcile()
    run_out(update, [call_id])
    assert_over(update, system, [call_id])


# ── the fence of both ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", ["previous", "present"])
def test_two_messages_of_one_call_in_two_versions_ring_it_once(
    system: System, update: Update, first: Version
) -> None:
    limit(system, 5, policies=CAPPED)
    second: Version = "present" if first == "previous" else "previous"
    call_id = update.place()
    update.dial_queue.send({"callId": call_id, "workspaceId": "demo"})
    one, other = update.dial_queue.visible()
    update.work_on(one, first)
    update.work_on(other, second)
    assert update.rings(call_id) == 1
    assert update.previous.calls.get(call_id).status == update.call(call_id).status == "in_progress"


def test_a_call_that_the_new_version_fenced_reads_well_in_the_old_one(system: System, update: Update) -> None:
    limit(system, 5, policies=CAPPED)
    call_id = talk(update, "present")
    update.hang_up(call_id, "previous")
    update.reconcile_as("previous")
    assert_over(update, system, [call_id])


# ── what does not hold while an old worker is alive ─────────────────────────────────────────────────


def test_the_exception_an_old_worker_knows_no_opt_out_and_no_cap(system: System, update: Update) -> None:
    """And what it rings is not counted: it does not know the number's record."""
    limit(system, 5, policies=CAPPED)
    suppress(update)
    call_id = update.place()
    update.work("previous")
    assert update.rings(call_id) == 1
    assert update.numbers.get("demo", NUMBER).rings == {}


def test_after_the_last_old_worker_an_opt_out_holds_for_what_it_left(system: System, update: Update) -> None:
    """It put the call into the line; the new version takes it from there."""
    limit(system, 1)
    talks, waits = talk(update, "previous", to="+12025550100"), update.place()
    update.work_on(update.message_of(waits), "previous")
    suppress(update)
    update.hang_up(talks, "previous")
    run_out(update, [waits])
    assert (update.rings(waits), update.call(waits).status) == (0, "failed")


@pytest.mark.parametrize("version", ["previous", "present"])
def test_while_dialling_is_paused_neither_version_rings(system: System, update: Update, version: Version) -> None:
    """So a roll-back, or an update that must not miss an opt-out, is made under a pause."""
    limit(system, 5)
    update.limits.pause(update.clock())
    call_id = update.place()
    update.work(version)
    assert (update.livekit.rang, update.in_line()) == ([], [call_id])


def test_before_the_first_run_of_the_new_reconciler_the_new_worker_lets_calls_wait(
    system: System, update: Update
) -> None:
    """The marker of the numbers' table is made by it, once, so a minute after the deployment at the latest."""
    limit(system, 5)
    for table, key in (("NumbersTable", "id"), ("WorkspacesTable", "workspaceId")):
        system.dynamodb.delete_item(TableName=table, Key={key: {"S": MARKER}})
    call_id = update.place()
    update.work("present")
    assert (update.livekit.rang, update.call(call_id).waiting_for) == ([], "paused")
    update.reconcile_as("previous")
    assert update.livekit.rang == []
    run_out(update, [call_id])
    assert_over(update, system, [call_id])
    assert (update.call(call_id).dialed_at_ms or 0) <= START + 2 * MINUTE, iso(update.clock())


# ── everything at once ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(2))
def test_under_traffic_each_call_rings_once_whichever_version_takes_each_step(
    system: System, update: Update, seed: int
) -> None:
    """Ten minutes in which each message, run and event is taken by one of the two; then the new one alone."""
    chance = random.Random(seed)
    limit(system, 3, policies={"default": Policy("default", caps=(Cap(99, 3600),))})
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
    # Each ring of the new version is counted, and none twice.
    rings = update.numbers.get("demo", NUMBER).rings
    assert rings.items() <= {call_id: update.call(call_id).dialed_at_ms for call_id in calls}.items()
