"""The agent: dispatched again after a lost dispatch, and its leaving detected at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.livekit.client import connect
from shared.livekit.secret import LiveKitSecret
from tests.interleaving import change, change_durations, dialling, requests, standin
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET, System

NUMBER = "+15550420001"


def dispatches(system: System) -> int:
    return len(system.http.get(f"{system.servers.livekit_url}/_standin/dispatches").json()["dispatches"])


def agents(system: System) -> int:
    shown = system.http.get(f"{system.servers.livekit_url}/_standin/rooms").json()["rooms"]
    return sum(one.get("kind") == "AGENT" for room in shown for one in room["participants"])


# ── before the dial ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("reason", [None, "NO_CAPACITY"])
def test_a_lost_dispatch_is_repeated_and_one_agent_comes(system: System, lost: int, reason: str | None) -> None:
    """No agent worker had registered yet, or every one was at its limit."""
    system.faults(
        dispatches={"lose": 1, "times": lost, "reason": reason}, numbers={NUMBER: {"outcome": "talks_on"}}
    )
    call_id = system.place(NUMBER)
    system.dial()
    assert system.item(call_id)["status"] == "in_progress"
    assert dispatches(system) == lost + 1
    assert agents(system) == 1
    assert len(system.calls_placed(NUMBER)) == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered"]


def test_a_late_agent_is_waited_for_and_not_dispatched_again(system: System) -> None:
    seconds = 3 * system.durations.agent_redispatch
    system.faults(agentJoinSeconds=seconds, numbers={NUMBER: {"outcome": "talks_on"}})
    system.place(NUMBER)
    system.dial()
    assert requests(system)["ListDispatch"] >= 1
    assert (dispatches(system), agents(system)) == (1, 1)


def test_an_agent_that_livekit_still_tries_to_find_is_not_dispatched_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_durations(monkeypatch, system, "dial_worker", agent_wait=0.5, agent_redispatch=0.1)
    system.faults(dispatches={"lose": 1, "reason": "RETRYING"})
    call_id = system.place(NUMBER)
    system.dial()
    assert system.item(call_id)["events"][-1]["reason"] == "agent_unavailable"


def test_a_dispatch_that_is_always_lost_ends_the_call_within_the_agents_time(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_durations(monkeypatch, system, "dial_worker", agent_wait=1)
    system.faults(dispatches={"lose": 1})
    call_id = system.place(NUMBER)
    system.dial()
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("failed", "agent_unavailable")
    assert 1 < dispatches(system) <= 1 + 1 / system.durations.agent_redispatch
    assert system.calls_placed() == []


# ── after the answer ────────────────────────────────────────────────────────────────────────────────


def talking(system: System) -> str:
    """The id of a call that is answered and goes on."""
    system.faults(numbers={NUMBER: {"outcome": "talks_on"}})
    call_id = system.place(NUMBER)
    system.dial()
    assert system.item(call_id)["status"] == "in_progress"
    return call_id


def agent_dies(system: System, call_id: str, at_once: bool = True) -> None:
    standin(system, "agent-death", number=NUMBER, atOnce=at_once)
    system.wait_until(lambda: "agentMissingSince" in system.item(call_id))


def test_a_callee_left_alone_is_hung_up_by_the_message_that_livekits_event_sends(system: System) -> None:
    call_id = talking(system)
    agent_dies(system, call_id)
    system.run_until(lambda: system.ended(call_id))
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("completed", "agent_left")
    assert system.calls_placed(NUMBER)[0]["disconnectReason"] == "ROOM_DELETED"
    assert call_id not in system.limits.active_calls("demo")
    assert "dueShard" not in item


def test_the_reconciler_hangs_up_where_the_message_was_lost(system: System) -> None:
    call_id = talking(system)
    agent_dies(system, call_id)
    change(system, call_id, agent_missing_since_ms=1, check_at_ms=1)
    system.reconcile()
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("completed", "agent_left")


def test_an_agent_that_came_back_goes_on_with_the_call(system: System) -> None:
    call_id = talking(system)
    agent_dies(system, call_id)
    another_agent(system, call_id)
    system.run_until(lambda: "agentMissingSince" not in system.item(call_id))
    assert system.item(call_id)["status"] == "in_progress"
    assert requests(system).get("DeleteRoom", 0) == 0


def test_two_people_talk_on_without_an_agent(system: System) -> None:
    """The agent has put the callee through to a second phone, and left."""
    call_id = talking(system)
    system.faults(numbers={NUMBER: {"outcome": "talks_on"}, "+15550420002": {"outcome": "talks_on"}})
    second_phone(system, call_id)
    agent_dies(system, call_id)
    system.run_until(lambda: "agentMissingSince" not in system.item(call_id))
    for _ in range(3):
        change(system, call_id, check_at_ms=1)
        system.reconcile()
    assert system.item(call_id)["status"] == "in_progress"
    assert requests(system).get("DeleteRoom", 0) == 0


def test_an_agent_that_left_while_it_rang_is_missed_right_after_the_answer(system: System) -> None:
    system.faults(numbers={NUMBER: {"outcome": "talks_on", "ringSeconds": 0.4}})
    call_id = system.place(NUMBER, ring_timeout_seconds=60)
    with dialling(system):
        system.wait_until(lambda: bool(system.calls_placed(NUMBER)))
        agent_dies(system, call_id)
    assert system.item(call_id)["status"] == "in_progress"
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["events"][-1]["reason"] == "agent_left"


def test_what_the_agent_leaves_for_with_its_room_is_no_reason_to_look(system: System) -> None:
    call_id = talking(system)
    standin(system, "hangup", number=NUMBER)
    system.run_until(lambda: system.ended(call_id))
    system.servers.wait_until_idle()
    assert "agentMissingSince" not in system.item(call_id)


def in_livekit(system: System, work: Any) -> None:
    secret = LiveKitSecret(system.servers.livekit_url, LIVEKIT_KEY, LIVEKIT_SECRET)

    async def run() -> None:
        async with connect(lambda: secret, 10) as livekit:
            await work(livekit)

    asyncio.run(run())


def another_agent(system: System, call_id: str) -> None:
    room = system.item(call_id)["roomName"]
    [first] = system.http.get(f"{system.servers.livekit_url}/_standin/dispatches").json()["dispatches"]
    in_livekit(system, lambda livekit: livekit.dispatch_agent(room, "outbound", first["metadata"]))
    system.wait_until(lambda: agents(system) == 1)


def second_phone(system: System, call_id: str) -> None:
    room = system.item(call_id)["roomName"]
    in_livekit(
        system,
        lambda livekit: livekit.dial(
            room=room,
            identity="second",
            trunk_id="ST_demo",
            to="+15550420002",
            from_number=None,
            ring_seconds=10,
            longest_seconds=600,
            timeout=60,
        ),
    )
