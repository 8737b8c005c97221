"""A LiveKit server that crashed, or restarted during a call: its stale listing does not prove a phone."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.interleaving import change, change_durations, dialling, requests, rooms, standin
from tests.system import Context, System

NUMBER = "+15550410001"


def under_way(system: System, call_id: str) -> bool:
    """LiveKit has the dial, and has sent the event of the phone's joining."""
    return bool(system.calls_placed(NUMBER)) and "phoneSeenAt" in system.item(call_id)


def dies_while_it_rings(system: System, monkeypatch: pytest.MonkeyPatch, **given: Any) -> str:
    """The id of a call whose worker and LiveKit server (`crash` or `restart`) die while the phone rings."""
    control = given.pop("control")
    system.faults(numbers={NUMBER: {"outcome": "talks_on"} | given})
    call_id = system.place(NUMBER, ring_timeout_seconds=10)
    context = Context(120)
    # It rings for longer than the slowest machine needs.
    change_durations(monkeypatch, system, "dial_worker", scale=1)
    with dialling(system, context):
        system.wait_until(lambda: under_way(system, call_id))
        context.remaining(0)
        standin(
            system, control, **({"phoneRejoinSeconds": 0, "agentRejoinSeconds": 0} if control == "restart" else {})
        )
    assert system.item(call_id)["status"] == "dialing"
    change(system, call_id, lease_until_ms=1, check_at_ms=1)
    return call_id


def past_the_dials_limit(system: System, monkeypatch: pytest.MonkeyPatch, call_id: str) -> None:
    """No dial lasts so long: its ring time is over, and LiveKit's own limit behind that."""
    change_durations(monkeypatch, system, "reconcile_calls", dial_limit=0)
    rung = system.item(call_id)["dialedAt"] + 10_000 * system.durations.scale
    system.wait_until(lambda: time.time() * 1000 > rung)
    change(system, call_id, check_at_ms=1)


def next_look(system: System, call_id: str) -> dict[str, Any]:
    """As one second look later, for what was seen missing before."""
    item = system.item(call_id)
    missing = {"phone_missing_since_ms": 1} if "missingSince" in item else {}
    change(system, call_id, check_at_ms=1, **missing)
    system.reconcile()
    return system.item(call_id)


def ends(item: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in item["events"] if entry["type"] == "call.ended"]


def nothing_left(system: System, call_id: str) -> None:
    def cleared() -> bool:
        if "dueShard" in system.item(call_id):
            next_look(system, call_id)
        return "dueShard" not in system.item(call_id) and rooms(system) == []

    system.wait_until(cleared)
    assert call_id not in system.limits.active_calls("demo")


def test_a_phone_that_rings_in_an_orphan_room_is_over_once_no_dial_can_last_so_long(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = dies_while_it_rings(system, monkeypatch, control="crash", ringSeconds=100)
    system.reconcile()
    assert "missingSince" not in system.item(call_id), "until then LiveKit is believed"
    past_the_dials_limit(system, monkeypatch, call_id)
    system.reconcile()
    assert system.item(call_id)["status"] == "dialing"
    item = next_look(system, call_id)
    assert [(end["status"], end["reason"]) for end in ends(item)] == [("failed", "outcome_unknown")]
    assert call_id not in system.limits.active_calls("demo")
    nothing_left(system, call_id)
    assert len(system.calls_placed(NUMBER)) == 1


def test_a_cancel_of_a_call_in_an_orphan_room_ends_it_on_two_looks(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = dies_while_it_rings(system, monkeypatch, control="crash", ringSeconds=100)
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
    system.reconcile()
    item = next_look(system, call_id)
    assert [(end["status"], end["reason"]) for end in ends(item)] == [("canceled", "canceled_by_api")]
    nothing_left(system, call_id)


def test_an_answered_call_in_an_orphan_room_is_hung_up_at_its_longest_and_claims_no_duration(
    system: System,
) -> None:
    system.faults(numbers={NUMBER: {"outcome": "talks_on"}})
    call_id = system.place(NUMBER, max_duration_seconds=30)
    system.dial()
    assert system.item(call_id)["status"] == "in_progress"
    standin(system, "crash")
    change(system, call_id, answered_at_ms=system.item(call_id)["answeredAt"] - 1501, check_at_ms=1)
    system.reconcile()
    item = system.item(call_id)
    assert [(end["status"], end["reason"]) for end in ends(item)] == [("completed", "max_duration")]
    view = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert view["endedAt"] is not None
    assert view["durationSeconds"] is None
    nothing_left(system, call_id)


def test_the_slot_of_an_ended_call_does_not_wait_for_its_room(system: System) -> None:
    system.faults(deleteRoom={"fail": "unavailable", "times": 2})
    call_id = system.place("+15550000001")
    system.dial()
    assert system.ended(call_id)
    assert call_id not in system.limits.active_calls("demo")
    assert "dueShard" in system.item(call_id), "its room is still to be deleted"
    nothing_left(system, call_id)


@pytest.mark.parametrize("fail", ["internal", "html502", "unauthenticated"])
def test_the_reconcilers_end_frees_the_slot_whatever_livekit_says_to_the_rooms_deletion(
    system: System, fail: str
) -> None:
    # LiveKit's event of the hang-up never arrives: the reconciler detects it.
    system.faults(deleteRoom={"fail": fail}, webhooks={"drop": 1})
    call_id = system.place("+15550000012")
    system.dial()
    standin(system, "hangup", number="+15550000012")
    change(system, call_id, check_at_ms=1, phone_missing_since_ms=1)
    system.reconcile()
    assert system.ended(call_id)
    assert "dueShard" in system.item(call_id), "its room is still to be deleted"
    assert call_id not in system.limits.active_calls("demo")


def test_a_phone_that_talks_on_while_its_server_restarts_is_answered_though_its_status_began_anew(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker died too; the phone was answered while no server was there, and is `dialing` ever since."""
    call_id = dies_while_it_rings(system, monkeypatch, control="restart", ringSeconds=4)
    system.wait_until(lambda: system.calls_placed(NUMBER)[0]["callStatus"] == "active")
    change(system, call_id, phone_seen_at_ms=system.item(call_id)["phoneSeenAt"] - 5000)
    past_the_dials_limit(system, monkeypatch, call_id)
    system.reconcile()
    item = system.item(call_id)
    assert item["status"] == "in_progress"
    assert [entry["type"] for entry in item["events"]] == ["call.queued", "call.dialing", "call.answered"]
    standin(system, "hangup", number=NUMBER)
    system.run_until(lambda: system.ended(call_id))
    assert ends(system.item(call_id))[0]["reason"] == "hangup"
    view = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert view["durationSeconds"] is None, "since when it was answered is not known"


def test_an_answered_call_goes_on_over_a_restart(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.faults(numbers={NUMBER: {"outcome": "talks_on"}})
    call_id = system.place(NUMBER)
    system.dial()
    standin(system, "restart", phoneRejoinSeconds=0, agentRejoinSeconds=0)
    change_durations(monkeypatch, system, "reconcile_calls", second_look=0.001)
    for _ in range(3):
        change(system, call_id, check_at_ms=1)
        system.reconcile()
    assert system.item(call_id)["status"] == "in_progress"
    assert requests(system).get("DeleteRoom", 0) == 0
    standin(system, "hangup", number=NUMBER)
    system.run_until(lambda: system.ended(call_id))
    body = json.loads(json.dumps(system.api("GET /v1/api/call/{callId}", call_id)["json"]))
    assert (body["status"], body["endReason"]) == ("completed", "hangup")
    assert body["durationSeconds"] is not None
