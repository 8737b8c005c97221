"""An account with the tables of a stack, and the operator's command run on it."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from admin.command import main
from shared.call import Call, event, iso
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import Delivery, DeliveryStore
from shared.limits import LimitStore
from shared.line import line_of, turn_of
from shared.numbers import NumberStore, ensure_marker
from shared.table_keys import call_key
from shared.workspaces import Workspace, WorkspaceStore
from tests.mocked_aws import mock_aws

CALLS, NUMBERS = "Calls", "Numbers"
TEMPLATE = yaml_parse((Path(__file__).parents[1] / "template.yaml").read_text())["Resources"]
SCHEMA = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
HOUR = 3_600_000


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """The tables and the queue of dial messages. sent: the operations sent to DynamoDB, by table."""

    calls: CallStore
    deliveries: DeliveryStore
    limits: LimitStore
    numbers: NumberStore
    workspaces: WorkspaceStore
    queue_url: str
    sent: collections.Counter[tuple[str, str]]
    now: int

    def call(self, number: int, hours_ago: float, workspace_id: str = "acme", **changes: Any) -> str:
        """A call with so many events, placed so long ago, whose deliveries do not exist yet."""
        placed = self.now - round(hours_ago * HOUR)
        call = Call(
            call_id=f"{number:024x}",
            workspace_id=workspace_id,
            call_agent_id="agent-1",
            to="+15550000000",
            room_name="agent-1-x7k2m9p4q1",
            job_id="job",
            created_at=iso(placed),
            status="dialing",
            events=tuple(event(kind, placed) for kind in ("call.queued", "call.dialing", "call.answered")),
            ring_timeout_seconds=40,
            max_duration_seconds=1800,
            queue_deadline_ms=placed,
            callback_url="https://hooks.example.com/in",
        )
        call = dataclasses.replace(call, **changes)
        self.calls.create(call)
        return call.call_id

    def waiting(self, number: int, hours_ago: float = 1, workspace_id: str = "acme", **how: Any) -> str:
        """A call that waits in the line of its workspace, as a worker puts it there."""
        queued = (event("call.queued", self.now),)
        call_id = self.call(number, hours_ago, workspace_id, status="queued", events=queued)
        call = self.calls.get(call_id)
        assert call is not None
        turn = turn_of(call, how.get("earliest_ms"))
        why = how.get("waiting_for", "slot")
        assert self.calls.enter_line(call_id, line_of(workspace_id), turn, why, self.now + HOUR, self.now).won
        return call_id

    def admitted(self) -> list[str]:
        """The calls whose dial messages were sent, in this order; they are taken from the queue."""
        sqs = boto3.client("sqs")
        found: list[str] = []
        while messages := sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                found.append(json.loads(message["Body"])["callId"])
                sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
        return found

    def delivery(self, call_id: str, sequence: int, state: str, **left: Any) -> None:
        """One attempt was made, an hour ago, with this result."""
        then = self.now - HOUR
        self.deliveries.create(call_id, "acme", sequence, then, then)
        row = self.deliveries.take(call_id, sequence, "lease", then, left.get("lease_until", then + 45_000))
        assert row is not None
        if state != "under way":
            attempt = {"at": then, "ms": 5, "status": 503}
            kind: Any = "pending" if state == "waiting" else state
            self.deliveries.finish(row, attempt, kind, self.now + 5 * HOUR, self.now + 5 * HOUR)

    def rows(self, call_id: str) -> dict[int, Delivery]:
        return {row.sequence: row for row in self.deliveries.of_call(call_id)}

    def expires_at(self, call_id: str) -> int:
        """0: never."""
        item = self.calls._client.get_item(TableName=CALLS, Key=call_key(call_id))["Item"]
        return int(item.get("expiresAt", {"N": "0"})["N"])

    def copy_calls(self, name: str) -> None:
        """A table of this name with what the calls' table has, as restored from a backup."""
        self._copy("CallsTable", CALLS, name)

    def copy_numbers(self, name: str) -> None:
        """As copy_calls, of the table of numbers."""
        self._copy("NumbersTable", NUMBERS, name)

    def lose_numbers(self) -> None:
        """The table of numbers is there, and empty."""
        client = self.calls._client
        for item in client.scan(TableName=NUMBERS)["Items"]:
            client.delete_item(TableName=NUMBERS, Key={"id": item["id"]})

    def _copy(self, resource: str, table: str, name: str) -> None:
        client = self.calls._client
        schema = TEMPLATE[resource]["Properties"]
        client.create_table(TableName=name, **{key: schema[key] for key in SCHEMA if key in schema})
        for item in client.scan(TableName=table)["Items"]:
            client.put_item(TableName=name, Item=item)

    def due(self) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for shard in range(16):
            for page in self.calls.due(shard, now_ms()):
                found |= {key for key in page if key[1] != "CALL"}
        return found


Admin = Callable[..., "Said"]


@contextmanager
def account_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account with workspaces acme and other, whose tables and queue the environment names."""
    for name in ("RINGONCE_STACK", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("WORKSPACES_TABLE", "Workspaces")
    monkeypatch.setenv("NUMBERS_TABLE", NUMBERS)
    monkeypatch.setenv("CALLS_TABLE", CALLS)
    with mock_aws():
        client = boto3.client("dynamodb")
        for name, resource in (
            ("Workspaces", "WorkspacesTable"),
            (CALLS, "CallsTable"),
            (NUMBERS, "NumbersTable"),
        ):
            properties = TEMPLATE[resource]["Properties"]
            client.create_table(TableName=name, **{key: properties[key] for key in SCHEMA if key in properties})
        workspaces = WorkspaceStore(client, "Workspaces")
        for workspace_id in ("acme", "other"):
            workspaces.put(Workspace(workspace_id, workspace_id, "outbound", "ST_1", ("+12025550100",)))
        limits, numbers = LimitStore(client, "Workspaces"), NumberStore(client, NUMBERS)
        assert ensure_marker(limits, numbers, now_ms())
        queue_url = boto3.client("sqs").create_queue(QueueName="Dial")["QueueUrl"]
        monkeypatch.setenv("DIAL_QUEUE_URL", queue_url)
        sent: collections.Counter[tuple[str, str]] = collections.Counter()
        original: Any = BaseClient._make_api_call  # type: ignore[attr-defined]

        def counted(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
            for table in arguments.get("RequestItems", [arguments.get("TableName", "")]):
                sent[table, operation] += 1
            return original(self, operation, arguments)

        monkeypatch.setattr(BaseClient, "_make_api_call", counted)
        yield Account(
            CallStore(client, CALLS),
            DeliveryStore(client, CALLS),
            limits,
            numbers,
            workspaces,
            queue_url,
            sent,
            now_ms(),
        )


class Keyboard(io.StringIO):
    """A person at the keyboard who types this text."""

    def isatty(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """A command's exit code and output."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        return json.loads(self.out)


def admin_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    """Runs a command line. typed: what a person types; None when there is no person."""

    def run(line: str, typed: str | None = None) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Keyboard(typed))
        try:
            code = main(shlex.split(line))
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Said(code, *capsys.readouterr())

    return run


def aws_error(code: str, message: str = "", status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetItem",
    )


def stack_of(monkeypatch: pytest.MonkeyPatch, name: str, outputs: dict[str, str]) -> None:
    """An account with one CloudFormation stack, with these outputs."""
    call = BaseClient._make_api_call  # type: ignore[attr-defined]

    def answer(self: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        if operation != "DescribeStacks":
            return call(self, operation, parameters)
        if parameters["StackName"] != name:
            raise aws_error("ValidationError", f"Stack with id {parameters['StackName']} does not exist")
        return {"Stacks": [{"Outputs": [{"OutputKey": k, "OutputValue": v} for k, v in outputs.items()]}]}

    monkeypatch.setattr(BaseClient, "_make_api_call", answer)
