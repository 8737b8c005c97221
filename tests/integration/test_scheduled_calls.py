"""Calls for a later time: they wait at no cost, ring no millisecond early, are canceled and shown like others."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest

from bench.spent import recorded
from shared.call import iso
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.messages import hold_message
from shared.policies import Policy
from tests.clock import MINUTE, START
from tests.ruled import HOUR, IDAHO, NEW_YORK, Ruled
from tests.system import System, demo_workspace

NUMBER = "+15550400001"
DAY = 24 * HOUR


@pytest.fixture
def world(system: System) -> Ruled:
    return Ruled(system)


# ── soon: a delayed message ─────────────────────────────────────────────────────────────────────────


def test_a_call_in_three_seconds_rings_no_millisecond_early_and_by_its_own_message(system: System) -> None:
    """In real time. No reconciler runs: its delayed message brings it."""
    at_ms = now_ms() + 3_000
    call_id = system.place(NUMBER, scheduled_at=iso(at_ms))
    view = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert (view["status"], view["waitingFor"], view["earliestRingAt"]) == ("queued", "scheduled_at", iso(at_ms))
    system.run_until(lambda: system.ended(call_id))
    [rang] = system.calls_placed(NUMBER)
    assert rang["atMs"] >= at_ms
    assert system.item(call_id)["dialedAt"] >= at_ms
    assert system.item(call_id)["attempts"] == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]


@pytest.mark.parametrize("ahead_ms", [1, 999, 1_000, 1_001, 59_999, 14 * MINUTE + 59_999, 15 * MINUTE])
def test_until_a_quarter_of_an_hour_ahead_it_rings_at_its_millisecond_by_one_message(
    world: Ruled, ahead_ms: int
) -> None:
    at_ms = world.clock() + ahead_ms
    call_id = world.accept(scheduled_at=iso(at_ms))
    [message] = world.dial_queue.messages
    assert at_ms - 1_000 < message.visible_at <= at_ms
    assert world.call(call_id).line_of is None
    assert world.waits(call_id) == ("scheduled_at", iso(at_ms))
    world.clock.now = message.visible_at
    assert world.dial() == 1
    assert world.rang() == [iso(at_ms)]
    assert world.dial_queue.messages == []


def test_a_message_that_comes_twice_or_too_early_rings_it_once_and_not_before(world: Ruled) -> None:
    at_ms = world.clock() + 10 * MINUTE
    call_id = world.accept(scheduled_at=iso(at_ms))
    for early_ms in (10 * MINUTE, MINUTE, 6_000):
        world.clock.now = at_ms - early_ms
        world.dial_queue.send({"callId": call_id, "workspaceId": "demo"})
        world.dial()
        assert (world.livekit.rang, world.waits(call_id)[0]) == ([], "scheduled_at")
    world.run_to(at_ms + 2 * MINUTE)
    assert world.rang() == [iso(at_ms)]


def test_a_message_that_is_lost_is_repeated_by_the_reconciler(world: Ruled) -> None:
    at_ms = world.clock() + 10 * MINUTE
    world.accept(scheduled_at=iso(at_ms))
    world.dial_queue.messages.clear()
    world.run_to(at_ms + 3 * MINUTE)
    [(_, rang_ms)] = world.livekit.rang
    assert at_ms <= rang_ms <= at_ms + 2 * MINUTE


# ── later: in the line ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ahead_ms", [15 * MINUTE + 1, 6 * HOUR + 12_345, 89 * DAY + 30_500])
def test_a_call_far_ahead_waits_in_the_line_without_a_message_and_rings_at_its_time(
    world: Ruled, ahead_ms: int
) -> None:
    at_ms = world.clock() + ahead_ms
    call_id = world.accept(scheduled_at=iso(at_ms))
    call = world.call(call_id)
    # Its message gave it its jobId, and says that there is nothing to do.
    [message] = world.dial_queue.messages
    assert message.body == hold(call_id)
    assert call.job_id
    assert world.dial() == 1
    assert (world.dial_queue.messages, world.call(call_id)) == ([], call)
    assert (call.in_line, world.waits(call_id)) == (True, ("scheduled_at", iso(at_ms)))
    world.run_to(at_ms)
    assert world.rang() == [iso(at_ms)]
    assert (world.call(call_id).attempts, world.livekit.requests["CreateRoom"]) == (1, 1)


def hold(call_id: str) -> str:
    return json.dumps(hold_message(call_id, "demo"))


def test_a_call_far_ahead_is_canceled_and_never_rings(system: System) -> None:
    at = iso(now_ms() + 7 * DAY)
    call_id = system.place(NUMBER, scheduled_at=at)
    system.dial()
    view = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert (view["status"], view["waitingFor"], view["earliestRingAt"]) == ("queued", "scheduled_at", at)
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
    system.run_until(lambda: len(system.received(call_id)) == 2)
    item = system.item(call_id)
    assert (item["status"], item.get("lineOf"), "dueShard" in item) == ("canceled", None, False)
    assert system.events(call_id) == ["call.queued", "call.ended"]
    system.reconcile()
    assert (system.messages("DialQueue"), system.calls_placed()) == (0, [])


def test_calls_of_one_second_ring_in_it_as_far_as_slots_and_trunk_allow(world: Ruled) -> None:
    """Twenty at one time, on four slots: four ring at it, the others one after the other as slots get free."""
    world.system.workspaces.put(demo_workspace(max_concurrent_calls=4, calls_per_second=50))
    at_ms = world.clock() + HOUR
    calls = [world.accept(scheduled_at=iso(at_ms)) for _ in range(20)]
    world.run_to(at_ms)
    rang = [at for _, at in world.livekit.rang]
    assert len(rang) == 4
    assert all(at_ms <= at < at_ms + 1_000 for at in rang)
    waiting = [call_id for call_id in calls if world.call(call_id).status == "queued"]
    assert len(waiting) == 16
    while talking := [call_id for call_id in calls if world.call(call_id).status == "in_progress"]:
        for call_id in talking:
            world.hang_up(call_id)
        world.step()
    # Each freed slot is taken at once; what separates them is the trunk's pace.
    assert len(world.livekit.rang) == 20
    assert all(at_ms <= at < at_ms + 1_000 for _, at in world.livekit.rang)


def test_a_time_that_passes_while_dialling_is_paused_is_rung_after_it(world: Ruled) -> None:
    at_ms = world.clock() + 20 * MINUTE
    call_id = world.accept(scheduled_at=iso(at_ms))
    world.limits.pause(world.clock())
    world.run_to(at_ms + 10 * MINUTE)
    assert (world.livekit.rang, world.call(call_id).status) == ([], "queued")
    world.limits.resume(world.clock())
    world.run_to(at_ms + 12 * MINUTE)
    assert len(world.rang()) == 1


def test_what_cannot_ring_before_its_deadline_expires_at_it(world: Ruled) -> None:
    """Dialling is paused over its whole time, which is the client's own and does not move."""
    at_ms = world.clock() + 20 * MINUTE
    call_id = world.accept(scheduled_at=iso(at_ms), expires_at=iso(at_ms + 5 * MINUTE))
    world.limits.pause(world.clock())
    world.run_to(at_ms + 8 * MINUTE)
    assert (world.end(call_id), world.livekit.rang) == (("expired", "expired"), [])
    world.assert_nothing_left(call_id)


def test_two_rules_and_a_time_are_waited_for_together(world: Ruled) -> None:
    """The number rang just now and may not again for two hours; the call is for one hour from now."""
    world.set_policies(Policy("default", min_gap_seconds=2 * 3600))
    world.accept()
    world.step()
    call_id = world.accept(scheduled_at=iso(START + HOUR), expires_at=iso(START + DAY))
    assert world.waits(call_id) == ("scheduled_at", iso(START + 2 * HOUR))
    world.run_to(START + 2 * HOUR)
    assert world.rang(NEW_YORK) == [iso(START), iso(START + 2 * HOUR)]


# ── the cost ────────────────────────────────────────────────────────────────────────────────────────


def reconciled(system: System) -> list[tuple[str, str]]:
    """The requests of one run of the reconciler, in any order."""
    with recorded({"reconcile_calls": system.modules["reconcile_calls"]}) as requests:
        system.reconcile()
    return sorted((request.operation, request.table) for request in requests)


def test_a_thousand_calls_that_wait_for_their_time_cost_a_run_of_the_reconciler_nothing(system: System) -> None:
    system.reconcile()
    without = reconciled(system)
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    store: CallStore = system.modules["dial_worker"].calls
    one = store.get(system.place(NUMBER, scheduled_at=tomorrow.isoformat(timespec="seconds")))
    assert one is not None
    assert one.turn is not None
    for n in range(1, 1_001):
        call_id = f"{n % 16:x}{n:023x}"
        turn = one.turn.replace(one.call_id, call_id)
        store.create(dataclasses.replace(one, call_id=call_id, turn=turn))
    assert len(store.line("demo#single", now_ms() + 2 * DAY, 2_000)) == 1_001
    assert reconciled(system) == without
    assert system.messages("DialQueue") == 1, "only the message of the one that was asked for by POST"


def test_what_waits_for_its_time_keeps_no_newcomer_waiting(world: Ruled) -> None:
    """Ten wait in the line; a call that may ring now does, at once."""
    for _ in range(10):
        world.accept(IDAHO, scheduled_at=iso(START + DAY))
    world.run_to(START + MINUTE)
    world.accept()
    world.dial()
    assert world.rang() == [iso(START + MINUTE)]
