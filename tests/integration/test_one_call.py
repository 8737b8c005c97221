"""One call through every handler, over the real wire to LiveKit's stand-in and to a real receiver."""

from __future__ import annotations

import json

import pytest

from shared.table_keys import call_key
from tests.interleaving import change_durations
from tests.system import EXAMPLE, System, demo_workspace


def test_the_contracts_example_gets_the_five_fields(system: System) -> None:
    answer = system.post(EXAMPLE)
    assert answer["statusCode"] == 200
    body = json.loads(answer["body"])
    assert list(body) == ["status", "message", "callId", "roomName", "jobId"]
    assert body["status"] == "success"
    assert body["message"] == (
        "Outbound call job scheduled for agent a1b2c3d4e5f6a7b8c9d0e1f2 to number +1234567890"
    )
    [message] = system.receive("DialQueue")
    assert message["messageId"] == body["jobId"] == system.item(body["callId"])["jobId"]
    assert answer["headers"]["x-request-id"] == "request-1"


def test_an_answered_call_rings_once_ends_once_and_tells_it_all(system: System) -> None:
    call_id = system.place("+15550000000")
    system.run_until(lambda: len(system.received(call_id)) == 4)
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("completed", "hangup")
    assert len(system.calls_placed("+15550000000")) == 1
    received = system.received(call_id)
    assert all(event["verified"] for event in received)
    assert sorted(event["sequence"] for event in received) == [1, 2, 3, 4]
    assert system.limits.active_calls("demo") == frozenset()


@pytest.mark.parametrize(
    ("number", "status", "reason", "sip"),
    [
        ("+15550000001", "busy", "busy", 486),
        ("+15550000002", "no_answer", "no_answer", None),
        ("+15550000003", "rejected", "rejected", 603),
        ("+15550000004", "failed", "invalid_number", 404),
        ("+15550000005", "failed", "carrier_error", 503),
        ("+15550000006", "failed", "agent_unavailable", None),
        ("+15550000013", "no_answer", "no_answer", 480),
        ("+15550000014", "failed", "trunk_error", None),
        ("+15550000015", "failed", "trunk_error", None),
        ("+15550000016", "failed", "carrier_error", 503),
    ],
)
def test_a_call_that_is_not_answered_ends_with_its_reason(
    system: System, monkeypatch: pytest.MonkeyPatch, number: str, status: str, reason: str, sip: int | None
) -> None:
    if reason == "agent_unavailable":
        change_durations(monkeypatch, system, "dial_worker", agent_wait=0.1)
    call_id = system.place(number, ring_timeout_seconds=10)
    system.run_until(lambda: system.ended(call_id))
    item = system.item(call_id)
    end = item["events"][-1]
    assert (item["status"], end["reason"], end.get("sipStatusCode")) == (status, reason, sip)
    assert system.events(call_id)[-1] == "call.ended"
    assert len(system.calls_placed(number)) == (0 if number.endswith(("06", "15")) else 1)
    assert "dueShard" not in item
    assert system.limits.active_calls("demo") == frozenset()


@pytest.mark.parametrize("number", ["+15550000007", "+15550000008", "+15550000011"])
def test_a_cut_connection_never_rings_again(system: System, number: str) -> None:
    """The dial's outcome is unknown: the worker looks, and finds the phone answered."""
    call_id = system.place(number)
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["status"] == "completed"
    assert len(system.calls_placed(number)) == 1


def test_a_dial_that_is_never_answered_by_livekit_ends_truthfully(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_durations(monkeypatch, system, "dial_worker", answer_margin=0)
    call_id = system.place("+15550000018", ring_timeout_seconds=10)
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["events"][-1]["reason"] == "no_answer"
    assert len(system.calls_placed("+15550000018")) == 1


def test_what_is_proved_not_to_have_rung_is_tried_again(system: System) -> None:
    number = "+15550000009"
    call_id = system.place(number)
    system.run_until(lambda: system.ended(call_id))
    assert system.events(call_id) == [
        "call.queued",
        "call.dialing",
        "call.queued",
        "call.dialing",
        "call.answered",
        "call.ended",
    ]
    assert len(system.calls_placed(number)) == 1


def test_a_refused_request_that_may_have_been_a_busy_phone_is_not_tried_again(system: System) -> None:
    call_id = system.place("+15550000017")
    system.run_until(lambda: system.ended(call_id))
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.ended"]
    assert system.item(call_id)["events"][-1]["reason"] == "outcome_unknown"
    assert system.calls_placed("+15550000017") == []


def test_a_message_without_a_record_waits_and_is_then_dropped(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_durations(monkeypatch, system, "dial_worker", orphan_drop=0.5)
    system.sqs.send_message(
        QueueUrl=system.queue_urls["DialQueue"],
        MessageBody=json.dumps({"callId": "0" * 24, "workspaceId": "demo"}),
    )
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert system.calls_placed() == []


def test_a_record_that_comes_after_its_message_is_dialled(system: System) -> None:
    call_id = system.place()
    item = system.dynamodb.get_item(TableName="CallsTable", Key=call_key(call_id))["Item"]
    system.dynamodb.delete_item(TableName="CallsTable", Key=call_key(call_id))
    assert system.dial() == 1
    assert system.calls_placed() == []
    system.dynamodb.put_item(TableName="CallsTable", Item=item)
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_a_call_without_a_free_slot_waits_for_one(system: System) -> None:
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)
    call_id = system.place()
    system.dial()
    item = system.item(call_id)
    assert (item["status"], "leaseId" in item, system.calls_placed()) == ("queued", False, [])
    assert item["waitingFor"] == "slot"
    system.limits.free_slot("demo", "another-call")
    assert system.reconcile()["admitted"] == 1
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_the_agent_gets_its_context_and_the_events_address(system: System) -> None:
    call_id = system.place(dynamic_variables={"firstName": "Zoë"}, metadata={"n": 1.0})
    system.run_until(lambda: system.ended(call_id))
    [dispatch] = system.http.get(f"{system.servers.livekit_url}/_standin/dispatches").json()["dispatches"]
    assert dispatch["agentName"] == "outbound"
    assert json.loads(dispatch["metadata"]) == {
        "callId": call_id,
        "workspaceId": "demo",
        "callAgentId": "agent-1",
        "to": "+15550000000",
        "dynamicVariables": {"firstName": "Zoë"},
        "metadata": {"n": 1.0},
        "eventsUrl": f"{system.servers.api_url}/v1/api/call/{call_id}/events",
    }
    assert '"metadata":{"n": 1.0}' in dispatch["metadata"]


def test_a_message_that_is_not_ours_keeps_no_other_from_being_dialled(system: System) -> None:
    system.sqs.send_message(QueueUrl=system.queue_urls["DialQueue"], MessageBody="nonsense")
    call_id = system.place()
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1
    # It stays, for the dead-letter queue.
    assert system.messages("DialQueue") == 1
