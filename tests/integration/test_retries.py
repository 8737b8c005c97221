"""Retries before the ring: only if nothing can have rung, with backoff, five times; then the call fails."""

from __future__ import annotations

import asyncio

import pytest

from shared.call import Call
from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError
from shared.livekit.client import RoomView
from tests.in_memory import DOWN
from tests.simulation import Simulation
from tests.system import System

UNAVAILABLE, RATE_LIMITED = LiveKitError("unavailable", 503), LiveKitError("resource_exhausted", 429)


@pytest.fixture
def simulation(system: System) -> Simulation:
    return Simulation(dynamodb=system.dynamodb)


def dial_until_ended(simulation: Simulation, call_id: str) -> tuple[Call, list[float]]:
    """Works on each message when its delay is over. The call, and the seconds between the attempts."""
    waits: list[float] = []
    while simulation.dial() and not simulation.call(call_id).ended:
        if not simulation.dial_queue.messages:
            break
        at = min(message.visible_at for message in simulation.dial_queue.messages)
        waits.append((at - simulation.clock.now) / 1000)
        simulation.clock.now = at
    return simulation.call(call_id), waits


def doubled(waits: list[float]) -> bool:
    """Each wait lies in the upper half of 5 s, 10 s, 20 s, 40 s."""
    return all(2.5 * 2**n <= wait <= 5 * 2**n for n, wait in enumerate(waits))


@pytest.mark.parametrize("error", [UNAVAILABLE, LiveKitUnreachableError()])
def test_what_rang_nowhere_is_tried_five_times_with_backoff(simulation: Simulation, error: LiveKitError) -> None:
    simulation.livekit.answers = [error] * 10
    call_id = simulation.place()
    call, waits = dial_until_ended(simulation, call_id)
    assert (call.status, call.events[-1]["reason"], call.events[-1]["retryable"]) == (
        "failed",
        "livekit_unavailable",
        True,
    )
    assert simulation.livekit.requests["CreateSIPParticipant"] == 5
    assert len(waits) == 4
    assert doubled(waits), waits
    assert [entry["type"] for entry in call.events] == [
        "call.queued",
        *(["call.dialing", "call.queued"] * 4),
        "call.dialing",
        "call.ended",
    ]
    assert call.due_shard is None
    assert simulation.limits.active_calls("demo") == frozenset()


@pytest.mark.parametrize(
    "error", [RATE_LIMITED, LiveKitUnclearError(429), LiveKitError("failed_precondition", 412)]
)
def test_what_may_be_a_phone_that_rang_is_tried_once(simulation: Simulation, error: LiveKitError) -> None:
    """A busy phone's 486 reads like a rate limit where its SIP code was lost."""
    simulation.livekit.answers = [error]
    call, waits = dial_until_ended(simulation, simulation.place())
    assert call.status == "failed"
    assert waits == []
    assert simulation.livekit.requests["CreateSIPParticipant"] == 1


def test_two_looks_half_a_minute_apart_come_before_the_next_attempt(simulation: Simulation) -> None:
    simulation.livekit.answers = [UNAVAILABLE]
    call_id = simulation.place()
    begun = simulation.clock.now
    simulation.dial()
    call = simulation.call(call_id)
    assert [entry["type"] for entry in call.events] == ["call.queued", "call.dialing", "call.queued"]
    assert call.events[-1]["at"] - begun >= simulation.durations.second_look * 1000
    # One for the agent, the others for the phone.
    assert simulation.livekit.requests["ListParticipants"] >= 3


def test_the_fifth_attempt_may_still_be_answered(simulation: Simulation) -> None:
    simulation.livekit.answers = [UNAVAILABLE] * 4
    call, _ = dial_until_ended(simulation, simulation.place())
    assert call.status == "in_progress"
    assert simulation.livekit.requests["CreateSIPParticipant"] == 5


def test_each_attempt_has_a_fresh_room(simulation: Simulation) -> None:
    """The agents of a room are dispatched once, when it is made."""
    simulation.livekit.answers = [UNAVAILABLE] * 2
    call, _ = dial_until_ended(simulation, simulation.place())
    assert call.status == "in_progress"
    assert simulation.livekit.requests["CreateRoom"] == 3
    assert simulation.livekit.requests["DeleteRoom"] == 2


def test_the_backoff_has_jitter(simulation: Simulation) -> None:
    first = set()
    for _ in range(8):
        simulation.livekit.answers = [UNAVAILABLE]
        call_id = simulation.place()
        simulation.dial()
        first.add(simulation.call(call_id).wait_until_ms - simulation.clock.now)
        simulation.dial_queue.messages.clear()
    assert len(first) > 1


@pytest.mark.parametrize("down", [DOWN, LiveKitUnreachableError(), LiveKitError("unauthenticated", 401)])
def test_a_livekit_that_fails_before_the_dial_is_tried_again_and_nothing_is_fenced(
    simulation: Simulation, down: LiveKitError
) -> None:
    simulation.livekit.down = down
    call, waits = dial_until_ended(simulation, simulation.place())
    assert (call.status, call.events[-1]["reason"]) == ("failed", "livekit_unavailable")
    assert doubled(waits), waits
    assert [entry["type"] for entry in call.events] == ["call.queued", "call.ended"]
    assert simulation.livekit.requests["CreateRoom"] <= 5
    assert "CreateSIPParticipant" not in simulation.livekit.requests


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_a_carriers_own_failure_ends_the_call(simulation: Simulation, code: int) -> None:
    """Even under a Twirp code that would be tried again: the carrier had the INVITE."""
    simulation.livekit.answers = [LiveKitError("unavailable", 503, code)]
    call, waits = dial_until_ended(simulation, simulation.place())
    assert (call.status, call.events[-1]["reason"], call.events[-1]["sipStatusCode"]) == (
        "failed",
        "carrier_error",
        code,
    )
    assert waits == []
    assert simulation.livekit.requests["CreateSIPParticipant"] == 1


def test_a_refusal_with_a_phone_in_the_room_is_not_taken_at_its_word(simulation: Simulation) -> None:
    """The participant joins before the INVITE: where it is, something may ring."""
    call_id = simulation.place()
    room = simulation.call(call_id).room_name

    async def joins_and_refuses(**request: object) -> None:
        simulation.livekit.requests["CreateSIPParticipant"] = 1
        simulation.livekit.rooms[room] = RoomView("active", True)
        raise UNAVAILABLE

    simulation.livekit.dial = joins_and_refuses  # type: ignore[method-assign]
    simulation.dial()
    assert simulation.call(call_id).status == "in_progress"
    assert simulation.dial_queue.messages == []


def test_a_refusal_that_cannot_be_checked_is_left_to_the_reconciler(simulation: Simulation) -> None:
    call_id = simulation.place()

    async def refuses(**request: object) -> None:
        simulation.livekit.down = LiveKitUnclearError(502)
        raise UNAVAILABLE

    simulation.livekit.dial = refuses  # type: ignore[method-assign]
    simulation.dial()
    call = simulation.call(call_id)
    assert (call.status, simulation.dial_queue.messages) == ("dialing", [])
    simulation.livekit.down = None
    ended = simulation.minutes_until_ended(call_id, 6)
    assert (ended.status, ended.events[-1]["reason"]) == ("failed", "outcome_unknown")


def test_a_refusal_after_the_phone_was_seen_to_leave_is_an_end(simulation: Simulation) -> None:
    call_id = simulation.place()

    async def refuses(**request: object) -> None:
        left = {"reason": "USER_REJECTED", "callStatus": "ringing", "at": simulation.clock.now}
        await asyncio.to_thread(simulation.calls.note_left, simulation.call(call_id), left)
        raise UNAVAILABLE

    simulation.livekit.dial = refuses  # type: ignore[method-assign]
    simulation.dial()
    call = simulation.call(call_id)
    assert (call.status, call.events[-1]["reason"]) == ("rejected", "rejected")
