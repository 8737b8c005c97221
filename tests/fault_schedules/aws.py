"""AWS for the schedules: moto's DynamoDB without HTTP around it, queues in the loop's time, one secret.

What the product's clients send goes to moto's own handlers as it is, expressions and all; botocore's serialising,
signing and parsing is left out, because it takes ten times as long as the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import ClientError
from moto.dynamodb.exceptions import ConditionalCheckFailed, TransactionCanceledException
from moto.dynamodb.models import dynamodb_backends
from moto.dynamodb.models.table import StreamShard, Table
from moto.dynamodb.responses import DynamoHandler

from shared.dynamo import from_wire, to_wire
from simulate import invocation, virtual_time
from tests.fault_schedules.line_index import LineIndex
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET

ACCOUNT, REGION = "123456789012", "us-east-1"
# Redrive policy and visibility of both queues' consumers are template.yaml's.
MAXIMUM_RECEIVES = 5
# For so long DynamoDB knows the ClientRequestToken of a transaction that it has carried out, milliseconds.
TOKEN_MS = 600_000
WRITES = ("put_item", "update_item", "transact_write_items")


def request(operation: str, work: Callable[[], Any], *, conflicts: bool = False) -> Any:
    """What a client sends: an outside call of the process it belongs to."""
    sender = invocation.current.get()
    if sender is None or not virtual_time.in_thread():
        return work()
    return virtual_time.wait_for(sender.aws(operation, work, conflicts=conflicts))


class DynamoDB:
    """A boto3 client as far as the product uses one, on moto's tables. clock: milliseconds. wrote: called with the
    parameters of each write, those of a transaction too. line_index: what the index `line` shows. tokens: of the
    transactions that were carried out, when and what they were.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.tokens: dict[str, tuple[int, str]] = {}
        self.wrote: Callable[[dict[str, Any]], None] = lambda parameters: None
        self.line_index: LineIndex
        self._handler = DynamoHandler()
        self._handler.current_account, self._handler.region = ACCOUNT, REGION

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def send(**parameters: Any) -> Any:
            conflicts = operation in WRITES and parameters.get("TableName") != "WorkspacesTable"
            return request(operation, lambda: self._handle(operation, parameters), conflicts=conflicts)

        return send

    def _handle(self, operation: str, parameters: dict[str, Any]) -> Any:
        if parameters.get("IndexName") == "line" and self.line_index.is_stale():
            return {"Items": self._line(parameters)}
        if operation == "transact_write_items":
            return self._transact(parameters)
        try:
            answer = self._answer(operation, parameters)
        except ConditionalCheckFailed as exc:
            told = json.loads(exc.description or "{}")
            raise client_error("ConditionalCheckFailedException", operation, Item=told.get("Item")) from exc
        if operation in ("put_item", "update_item"):
            self.wrote(parameters)
        if parameters.get("IndexName") == "line":
            shown = [{name: item[name] for name in ("pk", "turn")} for item in answer["Items"]]
            assert shown == self._line(parameters), (shown, parameters)
        return answer

    def _answer(self, operation: str, parameters: dict[str, Any]) -> Any:
        self._handler.body = self._handler.params = parameters
        return getattr(self._handler, operation)().result

    def _transact(self, parameters: dict[str, Any]) -> Any:
        """TransactWriteItems: all conditions, then all writes; a repeat of what was carried out writes nothing."""
        token, items = parameters["ClientRequestToken"], parameters["TransactItems"]
        assert len(token) <= 36, token
        text = json.dumps(items, sort_keys=True)
        at_ms, done = self.tokens.get(token, (-TOKEN_MS, ""))
        if self._clock() - at_ms < TOKEN_MS:
            if done != text:
                raise client_error("IdempotentParameterMismatchException", "transact_write_items")
            return {}
        conditions = [{"ConditionCheck": part} for item in items for part in item.values()]
        try:
            # moto would write each item before it checks the next, and copy all tables to undo that.
            dynamodb_backends[ACCOUNT][REGION].transact_write_items(conditions)
        except TransactionCanceledException as exc:
            reasons = json.loads(exc.description)["CancellationReasons"]
            raise canceled(*reasons) from exc
        answer = self._answer("transact_write_items", parameters)
        self.tokens[token] = (self._clock(), text)
        for item in items:
            if "ConditionCheck" not in item:
                self.wrote(*item.values())
        return answer

    def _line(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """The answer to CallStore.line."""
        values = from_wire(parameters["ExpressionAttributeValues"])
        entries = self.line_index.entries(values[":line"], values[":start"], values[":end"])
        found = itertools.islice(entries, parameters["Limit"])
        return [to_wire({"pk": f"CALL#{call_id}", "turn": turn}) for call_id, turn in found]


def client_error(code: str, operation: str, **more: Any) -> ClientError:
    """What boto3 raises for one of DynamoDB's refusals."""
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}, **more},  # type: ignore[typeddict-item]
        operation,
    )


def canceled(*reasons: dict[str, Any]) -> ClientError:
    """A transaction's refusal, with a reason for each of its items."""
    return client_error("TransactionCanceledException", "transact_write_items", CancellationReasons=list(reasons))


def table(name: str) -> Table:
    return dynamodb_backends[ACCOUNT][REGION].get_table(name)


def empty(name: str) -> None:
    """Takes everything out of a table and out of its stream."""
    emptied = table(name)
    emptied.items.clear()
    if emptied.stream_shard is not None:
        emptied.stream_shard = StreamShard(ACCOUNT, emptied)


def stream(name: str, start: int, most: int) -> list[dict[str, Any]]:
    """Records of a table's stream as Lambda hands them over, from the place `start` (0: the first)."""
    shard = table(name).stream_shard
    assert shard is not None
    return shard.get(shard.starting_sequence_number + start, most)


def stream_length(name: str) -> int:
    shard = table(name).stream_shard
    assert shard is not None
    return len(shard.items)


def items(name: str) -> Iterator[dict[str, Any]]:
    """What a table holds now."""
    for found in table(name).all_items():
        yield from_wire(found.to_json()["Attributes"])


@dataclasses.dataclass
class Message:
    """visible_at: milliseconds. received: how often it was handed out."""

    id: str
    body: str
    sent_at: int
    visible_at: int
    received: int = 0

    def record(self) -> dict[str, Any]:
        """As Lambda hands it over."""
        return {
            "messageId": self.id,
            "receiptHandle": self.id,
            "body": self.body,
            "attributes": {"SentTimestamp": str(self.sent_at), "ApproximateReceiveCount": str(self.received)},
        }


class SQS:
    """Queues by URL. Messages may be handed out at any time; `visible` are those that SQS would hand out now."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self.queues: dict[str, list[Message]] = {}
        # Called with each message's body, and whether it was sent in a batch; not for the copies of a request.
        self.sent: Callable[[str, bool], Any] = lambda body, in_batch: None

    def send_message(self, **parameters: Any) -> dict[str, str]:
        copies = itertools.count()
        answer: dict[str, str] = request(
            "SendMessage", lambda: self._send(parameters["QueueUrl"], parameters, first=not next(copies))
        )
        return answer

    def send_message_batch(self, **parameters: Any) -> dict[str, Any]:
        copies = itertools.count()

        def send() -> dict[str, Any]:
            first = not next(copies)
            sent = [self._send(parameters["QueueUrl"], entry, first=first) for entry in parameters["Entries"]]
            return {"Successful": sent, "Failed": []}

        answer: dict[str, Any] = request("SendMessageBatch", send)
        return answer

    def _send(self, url: str, entry: dict[str, Any], *, first: bool) -> dict[str, str]:
        """first: not a copy of a request that the SDK has sent before."""
        now = self._clock()
        message = Message(
            f"message-{next(self._ids)}", entry["MessageBody"], now, now + 1000 * entry.get("DelaySeconds", 0)
        )
        self.queues.setdefault(url, []).append(message)
        if first:
            # An entry of a batch has an id in it.
            self.sent(message.body, "Id" in entry)
        return {"MessageId": message.id}

    def waiting(self, url: str) -> list[Message]:
        return self.queues.setdefault(url, [])

    def visible(self, url: str) -> list[Message]:
        return [message for message in self.waiting(url) if message.visible_at <= self._clock()]

    def receive(self, url: str, messages: list[Message], visibility: int) -> list[dict[str, Any]]:
        """Hands these out; they are hidden for so many seconds. What came back too often is a dead letter."""
        for message in messages:
            message.received += 1
            message.visible_at = self._clock() + 1000 * visibility
            if message.received > MAXIMUM_RECEIVES:
                self.queues[url].remove(message)
        return [message.record() for message in messages if message.received <= MAXIMUM_RECEIVES]

    def delete(self, url: str, ids: set[str]) -> None:
        self.queues[url] = [message for message in self.waiting(url) if message.id not in ids]


class SecretsManager:
    def get_secret_value(self, **parameters: Any) -> dict[str, str]:
        secret = {"url": "http://livekit", "apiKey": LIVEKIT_KEY, "apiSecret": LIVEKIT_SECRET}
        return {"SecretString": json.dumps(secret)}
