"""What an agent reports on the whole stack: over HTTP, through the queue, to the receiver."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.agent.ringonce_agent import signed
from tests.e2e.client import Client
from tests.e2e.launch import END_SECONDS, eventually

REPORTED = ["agent.ringing", "agent.transcript", "agent.summary"]


def test_the_agents_reports_reach_the_callback_signed_in_sequence_with_the_metadata(stack: dict[str, Any]) -> None:
    with Client(stack) as client:
        metadata = {"orderId": "o-1"}
        call_id = client.place("+15550000019", metadata=metadata, dynamic_variables={"firstName": "Zoë"})
        eventually(lambda: len(client.events_received(call_id)) == 7, "seven events were received")
        events = client.call(call_id)["events"]
        assert [event["type"] for event in events if event["type"].startswith("agent.")] == REPORTED
        received = client.events_received(call_id)
        assert all(event["verified"] for event in received)
        bodies = [json.loads(event["body"]) for event in received]
        assert [(body["sequence"], body["type"]) for body in bodies] == [
            (event["sequence"], event["type"]) for event in events
        ]
        assert all(body["metadata"] == metadata for body in bodies)
        [transcript] = [body["data"]["report"] for body in bodies if body["type"] == "agent.transcript"]
        assert transcript["turns"][0]["text"] == "Hello Zoë"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_dies_while_it_takes_a_report_neither_loses_nor_doubles_it(
    stack: dict[str, Any], when: str
) -> None:
    """The agent gets no answer and reports again, under the same key."""
    with Client(stack) as client:
        key = f"report-death-{when}"
        call_id = client.call_id_of(key)
        asked = Path(stack["deaths"]) / f"{key}.json"
        wish = {"function": "CallsApi", "point": "CallStore.append_report", "when": when, "call": call_id}
        asked.with_suffix(".new").write_text(json.dumps(wish))
        asked.with_suffix(".new").rename(asked)
        client.place("+15550000019", key)
        eventually(lambda: len(client.events_received(call_id)) == 7, "seven events were received")
        assert asked.with_suffix(".done").exists()
        types = [event["type"] for event in client.call(call_id)["events"]]
        assert sorted(kind for kind in types if kind.startswith("agent.")) == sorted(REPORTED)


def test_reports_that_come_at_the_same_time_all_land_once_and_a_forged_one_does_not(stack: dict[str, Any]) -> None:
    with Client(stack) as client:
        call_id = client.place("+15550000012", max_duration_seconds=14_400)
        eventually(lambda: client.call(call_id)["status"] == "in_progress", "the call is answered")
        room = client.call(call_id)["roomName"]
        before = len(client.call(call_id)["events"])

        def send(number: int, secret: str = stack["liveKitApiSecret"]) -> httpx.Response:
            body = json.dumps({"type": "agent.note", "data": {"n": number}}).encode()
            token = signed(body, room, stack["liveKitApiKey"], secret)
            url = f"{stack['apiUrl']}/v1/api/call/{call_id}/events"
            return httpx.post(url, content=body, headers={"authorization": f"Bearer {token}"}, timeout=END_SECONDS)

        with ThreadPoolExecutor(8) as threads:
            # Each of the four twice.
            answers = list(threads.map(send, [0, 1, 2, 3] * 2))
        assert [answer.status_code for answer in answers] == [200] * 8
        sequences = [answer.json()["sequence"] for answer in answers]
        assert sequences[:4] == sequences[4:]
        assert sorted(sequences[:4]) == list(range(before + 1, before + 5))
        forged = send(9, "another-secret-of-at-least-thirty-two-characters")
        assert (forged.status_code, forged.json()["code"]) == (401, "invalid_signature")
        assert [event["report"]["n"] for event in client.call(call_id)["events"][before:]] == [
            sequences.index(before + 1 + place) for place in range(4)
        ]
        client.api.post(f"/v1/api/call/{call_id}/cancel").raise_for_status()
        eventually(lambda: client.call(call_id)["status"] == "completed", "the call has ended")
        eventually(lambda: len(client.events_received(call_id)) == before + 5, "every event was received")
