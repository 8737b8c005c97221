"""A cancel while the agent is awaited, and while the phone joins the room."""

from __future__ import annotations

import dataclasses

import pytest

from shared.livekit.client import LiveKit
from tests.interleaving import change_durations, dialling, requests, rooms
from tests.system import System

AGENT_NEVER_JOINS, TALKS_ON, RINGS = "+15550000006", "+15550000012", "+15550000002"


def cancel(system: System, call_id: str) -> None:
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200


def test_a_cancel_while_the_agent_is_awaited_frees_room_and_slot_at_once(system: System) -> None:
    """The worker that holds the lease sees it at its next look for the agent."""
    call_id = system.place(AGENT_NEVER_JOINS)
    with dialling(system):
        system.wait_until(lambda: requests(system).get("ListParticipants", 0) > 0)
        cancel(system, call_id)
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("canceled", "canceled_by_api")
    assert item["leaseUntil"] > item["endedAt"], "its lease is not over yet"
    assert rooms(system) == []
    assert call_id not in system.limits.active_calls("demo")
    assert "dueShard" not in item
    assert system.calls_placed() == []


@pytest.mark.parametrize("number", [TALKS_ON, RINGS])
def test_a_cancel_that_finds_no_phone_yet_looks_again(
    system: System, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    """The dial is on its way to LiveKit; the phone comes into the room a moment after the first look."""
    change_durations(monkeypatch, system, "dial_worker", scale=1)
    system.faults(createSIPParticipant={"delaySeconds": 0.5}, numbers={number: {"ringSeconds": 60}})
    module = system.modules["calls_api"]
    patient = dataclasses.replace(module.canceler.durations, hang_up_patience=60)
    monkeypatch.setattr(module, "canceler", dataclasses.replace(module.canceler, durations=patient))
    call_id = system.place(number, ring_timeout_seconds=60)
    with dialling(system):
        system.wait_until(lambda: requests(system).get("CreateSIPParticipant", 0) == 1)
        cancel(system, call_id)
        assert requests(system)["RemoveParticipant"] >= 2
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("canceled", "canceled_by_api")
    assert system.calls_placed()[0]["disconnectReason"] == "PARTICIPANT_REMOVED"
    assert rooms(system) == []


def test_a_cancel_does_not_look_for_a_phone_for_ever(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker died right before the dial: no phone ever comes."""

    async def dies(livekit: LiveKit, **request: object) -> None:
        raise SystemError("died")

    monkeypatch.setattr(LiveKit, "dial", dies)
    call_id = system.place(TALKS_ON)
    with pytest.raises(AssertionError), dialling(system) as work:
        assert work.result(60) == {"batchItemFailures": []}
    assert system.item(call_id)["status"] == "dialing"
    cancel(system, call_id)
    assert system.item(call_id)["hangup"]["reason"] == "canceled_by_api"
