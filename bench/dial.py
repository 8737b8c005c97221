"""From a warm POST until LiveKit is asked to ring, from an event until its webhook is received, and what ringing
costs in Lambda time.

All on the local stack. The first runs at its usual pace; nothing is waited for there but the request path. The
second runs in real time: phones ring for 5 s, alone or ten to a batch, and the invocation's duration is what AWS
would bill. The same with ten phones that ring as docs/prices.toml says, each for a tenth of its time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import capacity
from bench.table import Figure, report
from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

CALLS = 200
# The first calls find processes that have not served one yet.
WARM_UP = 3
RING_SECONDS = 5.0
ALONE = 3
BATCH = 10
# A batch's time for each of its phones, of the time of one alone.
SHARE = 0.125


def main() -> None:
    taken, told = _request_path()
    alone, batch, mixed_alone, mixed_batch = _lambda_time()
    report(
        "dial",
        [
            Figure("POST to CreateSIPParticipant, median", statistics.median(taken), "ms"),
            Figure("POST to CreateSIPParticipant, 99th percentile", statistics.quantiles(taken, n=100)[98], "ms"),
            Figure("event in the record to its webhook received, median", statistics.median(told), "ms"),
            Figure("... 99th percentile", statistics.quantiles(told, n=100)[98], "ms"),
            Figure("Lambda time per dial of a 5 s ring, alone", alone, "ms"),
            Figure("Lambda time per dial of a 5 s ring, ten to a batch", batch, "ms"),
            Figure("ten to a batch, of alone", batch / alone, "x", SHARE),
            Figure("Lambda time per dial of a mix, a tenth as long, alone", mixed_alone, "ms"),
            Figure("Lambda time per dial of a mix, a tenth as long, ten to a batch", mixed_batch, "ms"),
            Figure("... ten to a batch, of alone", mixed_batch / mixed_alone, "x"),
        ],
    )


def _request_path() -> tuple[list[float], list[float]]:
    """Milliseconds from each POST to its INVITE, and from each event to its webhook."""
    with (
        tempfile.TemporaryDirectory() as folder,
        launched(Path(folder) / "state") as running,
        Client(running.info()) as client,
    ):
        client.livekit.put("/_standin/faults", json={"agentJoinSeconds": 0.0}).raise_for_status()
        taken, told = [], []
        for n in range(CALLS + WARM_UP):
            number = f"+1555030{n:04d}"
            started = time.time() * 1000
            call_id = client.place(number)
            eventually(lambda number=number: client.rings(number), "the phone rings", 30)  # type: ignore[misc]
            [placed] = client.livekit.get("/_standin/calls", params={"number": number}).json()["calls"]
            taken.append(placed["atMs"] - started)
            client.api.post(f"/v1/api/call/{call_id}/cancel").raise_for_status()
            eventually(lambda call_id=call_id: _ended(client, call_id), "its webhooks come", 60)  # type: ignore[misc]
            told += [_delay(event) for event in client.received(call_id)] if n >= WARM_UP else []
    return taken[WARM_UP:], told


def _ended(client: Client, call_id: str) -> bool:
    return any(event["type"] == "call.ended" for event in client.received(call_id))


def _delay(event: dict[str, Any]) -> float:
    written = datetime.datetime.fromisoformat(json.loads(event["body"])["timestamp"])
    return float(event["receivedAtMs"]) - 1000 * written.timestamp()


def _mix() -> list[float]:
    """For how many seconds each of ten phones rings: the middle of each tenth of the outcomes, by their shares."""
    outcomes, rings = capacity.load()[1]["outcome"], []
    for n in range(BATCH):
        place = (n + 0.5) / BATCH
        for outcome in outcomes:
            if place < outcome["share"]:
                break
            place -= outcome["share"]
        least, most = outcome["rings"]
        rings.append((least + (most - least) * place / outcome["share"]) / 10)
    return rings


def _lambda_time() -> tuple[float, float, float, float]:
    """Milliseconds per dial of invocations with one message, and with ten; of a steady ring, and of a mix."""
    with (
        tempfile.TemporaryDirectory() as folder,
        launched(Path(folder) / "state", {"TIME_SCALE": "1"}) as running,
        Client(running.info()) as client,
        dialling_stopped(client),
    ):
        client.livekit.put(
            "/_standin/faults", json={"agentJoinSeconds": 0.0, "ringSeconds": RING_SECONDS}
        ).raise_for_status()
        _set_pace(client, 50)
        alone = statistics.median(_invoke(client, [f"+155504000{n:02d}"]) for n in range(ALONE))
        batch = _invoke(client, [f"+155504100{n:02d}" for n in range(BATCH)]) / BATCH
        numbers = {f"+155504200{n:02d}": {"ringSeconds": rings} for n, rings in enumerate(_mix())}
        client.livekit.put(
            "/_standin/faults", json={"agentJoinSeconds": 0.0, "talkSeconds": 60.0, "numbers": numbers}
        ).raise_for_status()
        mixed = statistics.mean(_invoke(client, [number]) for number in numbers)
        return alone, batch, mixed, _invoke(client, [*numbers]) / BATCH


def _set_pace(client: Client, calls_per_second: int) -> None:
    """How many INVITEs the trunk takes: so many that waiting for one's turn is not what is measured."""
    client.aws("dynamodb").update_item(
        TableName=client.info["resources"]["WorkspacesTable"],
        Key={"workspaceId": {"S": client.info["workspaceId"]}},
        UpdateExpression="SET callsPerSecond = :pace",
        ExpressionAttributeValues={":pace": {"N": str(calls_per_second)}},
    )


def _invoke(client: Client, numbers: list[str]) -> float:
    """Places the calls, hands their messages to one invocation of dial_worker, and returns its milliseconds."""
    call_ids = [client.place(number) for number in numbers]
    queue, sqs = client.info["resources"]["DialQueue"], client.aws("sqs")
    messages: list[dict[str, Any]] = []
    while len(messages) < len(numbers):
        received = sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=5, AttributeNames=["SentTimestamp"]
        )
        messages += received.get("Messages", [])
    records = [
        {"messageId": one["MessageId"], "body": one["Body"], "attributes": one["Attributes"]} for one in messages
    ]
    began = time.perf_counter()
    answer = client.aws("lambda").invoke(
        FunctionName=client.info["resources"]["DialWorker"], Payload=json.dumps({"Records": records}).encode()
    )
    taken = 1000 * (time.perf_counter() - began)
    assert json.loads(answer["Payload"].read()) == {"batchItemFailures": []}
    for message in messages:
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    assert all(client.call(call_id)["answeredAt"] for call_id in call_ids)
    return taken


@contextlib.contextmanager
def dialling_stopped(client: Client) -> Iterator[None]:
    """Disables the dial queue's event source mapping, so that only the caller receives its messages."""
    functions = client.aws("lambda")
    [mapping] = functions.list_event_source_mappings(FunctionName=client.info["resources"]["DialWorker"])[
        "EventSourceMappings"
    ]
    functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    yield
    functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True)
