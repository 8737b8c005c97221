"""A client of the local stack: places calls, and reads their state from the API, the tables and the stand-in."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import boto3
import httpx

from shared.dynamo import from_wire
from shared.limits import LimitStore
from shared.slots import MAXIMUM_SLOTS, items_of
from shared.table_keys import call_key
from tests.e2e.launch import END_SECONDS, eventually


class Client:
    """info: the content of the stack's READY line."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        headers = {"x-workspace-id": info["workspaceId"], "x-api-key": info["apiKey"]}
        self.api = httpx.Client(base_url=info["apiUrl"], headers=headers, timeout=END_SECONDS)
        self.livekit = httpx.Client(base_url=info["liveKitUrl"], timeout=END_SECONDS)
        self.receiver = httpx.Client(base_url=info["receiverUrl"], timeout=END_SECONDS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for client in (self.api, self.livekit, self.receiver):
            client.close()

    def aws(self, service: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.info["awsEndpointUrl"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def call_id_of(self, idempotency_key: str) -> str:
        """The id that a call of this key has, known before it is placed (docs/architecture.md)."""
        text = json.dumps([self.info["workspaceId"], idempotency_key])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def post(self, to: str, key: str | None = None, **fields: Any) -> httpx.Response:
        body = {"to": to, "call_agent_id": "agent-1", "callback_url": f"{self.info['receiverUrl']}/{key}"} | fields
        return self.api.post("/v1/api/call", json=body, headers={"idempotency-key": key} if key else {})

    def place(self, to: str, key: str | None = None, **fields: Any) -> str:
        answer = self.post(to, key, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["callId"])

    def read(self, path: str) -> Any:
        """The answer to a GET. A 503 is repeated, as the API's page says: on a busy machine the emulated
        DynamoDB can take longer to answer than a function waits. Fails the test on any other refusal."""

        def answered() -> httpx.Response | None:
            answer = self.api.get(path)
            return None if answer.status_code == 503 else answer

        answer = eventually(answered, f"GET {path} is answered")
        assert answer is not None
        assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def call(self, call_id: str) -> dict[str, Any]:
        view = self.read(f"/v1/api/call/{call_id}")
        assert isinstance(view, dict)
        return view

    def deliveries(self, call_id: str) -> list[dict[str, Any]]:
        listed = self.read(f"/v1/api/call/{call_id}/deliveries")["deliveries"]
        assert isinstance(listed, list)
        return listed

    def rings(self, number: str) -> int:
        """How often this number was rung, by the stand-in's own count."""
        return len(self.livekit.get("/_standin/calls", params={"number": number}).json()["calls"])

    def received(self, call_id: str) -> list[dict[str, Any]]:
        """Every POST, in the order of their coming: an event may come more than once."""
        events = self.receiver.get("/_receiver/events", params={"callId": call_id}).json()["events"]
        assert isinstance(events, list)
        return events

    def events_received(self, call_id: str) -> list[dict[str, Any]]:
        """Each event's first POST, in the order of the events."""
        first: dict[int, dict[str, Any]] = {}
        for event in self.received(call_id):
            first.setdefault(event["sequence"], event)
        return [first[sequence] for sequence in sorted(first)]

    def make_room(self) -> None:
        """Enough slots, trunk and rate for everything a test places."""
        self.aws("dynamodb").update_item(
            TableName=self.info["resources"]["WorkspacesTable"],
            Key={"workspaceId": {"S": self.info["workspaceId"]}},
            UpdateExpression="SET maxConcurrentCalls = :slots, callsPerSecond = :pace, callsPerMinute = :rate",
            ExpressionAttributeValues={":slots": {"N": "60"}, ":pace": {"N": "20"}, ":rate": {"N": "60000"}},
        )

    def add_workspace(self, workspace_id: str, slots: int) -> Client:
        """Another workspace with the same key, agents and trunk. Returns its client."""
        table = {"TableName": self.info["resources"]["WorkspacesTable"]}
        dynamodb = self.aws("dynamodb")
        item = dynamodb.get_item(**table, Key={"workspaceId": {"S": self.info["workspaceId"]}})["Item"]
        changed = {"workspaceId": {"S": workspace_id}, "maxConcurrentCalls": {"N": str(slots)}}
        dynamodb.put_item(**table, Item=item | changed)
        return Client(self.info | {"workspaceId": workspace_id})

    def stored(self, call_id: str) -> dict[str, Any]:
        """The call's record; empty while there is none."""
        answer = self.aws("dynamodb").get_item(
            TableName=self.info["resources"]["CallsTable"], Key=call_key(call_id), ConsistentRead=True
        )
        return from_wire(answer["Item"]) if "Item" in answer else {}

    def active_calls(self) -> set[str]:
        """The ids that hold a slot of the workspace."""
        limits = LimitStore(self.aws("dynamodb"), self.info["resources"]["WorkspacesTable"])
        return set(limits.active_calls(self.info["workspaceId"], items_of(MAXIMUM_SLOTS)))

    def due(self) -> int:
        """How many items are in the index of what is due."""
        answer = self.aws("dynamodb").scan(
            TableName=self.info["resources"]["CallsTable"], IndexName="due", Select="COUNT"
        )
        return int(answer["Count"])
