"""The counts behind docs/capacity.md: one call's requests to AWS and LiveKit, compared with bench/one_call.toml.

Counted at low traffic, where nothing shares a batch: the dearest case. The call is accepted, answered and ended;
once with a callback URL, and so with a webhook for each of its four events, once without. A call that waited in
the line is counted together with the one whose slot it gets.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
import json
import logging
import queue
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.spent import Request, recorded
from bench.units import STORED_BESIDE, index_entry, index_units, size, write_units
from shared.call_store import CallStore
from shared.telemetry import logger
from tests.system import DEADLINE_SECONDS, TEMPLATE, Context, System, demo_workspace

COUNTS = tomllib.loads((Path(__file__).parents[2] / "bench" / "one_call.toml").read_text())
INDEXES = TEMPLATE["Resources"]["CallsTable"]["Properties"]["GlobalSecondaryIndexes"]


@dataclasses.dataclass(slots=True)
class Seen:
    """invocations: by function. livekit: requests by name. written: units by table or index. logged and
    stored: bytes."""

    requests: list[Request]
    invocations: collections.Counter[str]
    livekit: dict[str, int]
    written: collections.Counter[str]
    logged: int
    stored: int


class OneAtATime:
    """Hands the stream's records to fan_out one by one, as AWS does when there are few, and keeps them all."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.records: list[Any] = []
        stream = system.streams.list_streams(TableName="CallsTable")["Streams"][0]["StreamArn"]
        shard = system.streams.describe_stream(StreamArn=stream)["StreamDescription"]["Shards"][0]["ShardId"]
        self.iterator = system.streams.get_shard_iterator(
            StreamArn=stream, ShardId=shard, ShardIteratorType="LATEST"
        )["ShardIterator"]

    def pump(self) -> None:
        """Each record's fan_out, and what it sent delivered before the next."""
        answer = self.system.streams.get_records(ShardIterator=self.iterator)
        self.iterator = answer["NextShardIterator"]
        self.records += answer["Records"]
        for record in answer["Records"]:
            change = record["dynamodb"]
            if change["Keys"]["sk"]["S"] == "CALL" and "callbackUrl" in change.get("NewImage", {}):
                self.system.handlers["fan_out"]({"Records": [record]}, Context(30))
                self.system.pump_queue("WebhookQueue", "deliver")


class Held:
    """LiveKit's events, kept back and handed over in order, so that two runs are the same."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()

    def keep(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        assert function == "livekit_events"
        told = json.loads(base64.b64decode(event["body"]))
        if told["event"] == "participant_joined" and told["participant"]["kind"] == "SIP":
            # It comes while the phone rings.
            return self.system.handlers["livekit_events"](event, Context(10))
        self.requests.put(event)
        return {"statusCode": 200, "body": ""}

    def hand_over(self, count: int) -> None:
        """Raises queue.Empty when so many do not come in time."""
        for _ in range(count):
            answer = self.system.handlers["livekit_events"](
                self.requests.get(timeout=DEADLINE_SECONDS), Context(10)
            )
            assert answer["statusCode"] == 200, answer


def counted(
    system: System, capsys: pytest.CaptureFixture[str], *, webhooks: int, another_waits: bool = False
) -> Seen:
    """One call on warm functions, from its POST until nothing of it is due any more. another_waits: and another,
    for its slot.
    """
    held = Held(system)
    answered = CallStore.answered

    def once_the_phone_was_seen(store: CallStore, call_id: str, *given: Any, **named: Any) -> Any:
        system.wait_until(lambda: "phoneSeenAt" in system.item(call_id))
        return answered(store, call_id, *given, **named)

    # In one minute: the first call of each takes permits.
    with pytest.MonkeyPatch.context() as patch, system.stopped_clock():
        patch.setattr(CallStore, "answered", once_the_phone_was_seen)
        patch.setattr(system.servers, "handle", held.keep)
        # LiveKit leaves an empty room open for twenty seconds.
        patch.setattr("local.livekit.state.DEPARTURE_TIMEOUT", 0)
        return _counted(system, capsys, held, webhooks, another_waits)


def _counted(
    system: System, capsys: pytest.CaptureFixture[str], held: Held, webhooks: int, another_waits: bool
) -> Seen:
    # All but the one that is not held.
    events = COUNTS["invocations"]["livekit_events"] - 1
    warm = system.place()
    system.run_until(lambda: system.item(warm)["status"] == "in_progress")
    held.hand_over(events)
    system.run_until(lambda: system.dial() + system.deliver() == 0)
    assert "dueShard" not in system.item(warm)
    if another_waits:
        system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    stream = OneAtATime(system)
    invocations: collections.Counter[str] = collections.Counter()

    def counting(name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        def call(event: dict[str, Any], context: Context) -> Any:
            invocations[name] += 1
            return handler(event, context)

        return call

    handlers = dict(system.handlers)
    before = livekit_requests(system)
    capsys.readouterr()
    # Metrics are printed; log lines go where the logger was pointed when it was made.
    lines = io.StringIO()
    log = logger.registered_handler
    assert isinstance(log, logging.StreamHandler)
    stdout = log.setStream(lines)
    try:
        system.handlers.update({name: counting(name, handler) for name, handler in handlers.items()})
        with recorded(system.modules) as requests:
            fields: dict[str, Any] = {} if webhooks else {"callback_url": None}
            calls = []
            for _ in range(1 + another_waits):
                calls.append(system.place(**fields))
                stream.pump()
                system.dial()
                stream.pump()
            assert [system.item(call_id).get("waitingFor") for call_id in calls[1:]] == ["slot"] * another_waits
            held.hand_over(events)
            stream.pump()
            if another_waits:
                system.dial()
                stream.pump()
                held.hand_over(events)
                stream.pump()
            # What the last delivery wrote: not counted for any handler.
            stream.pump()
    finally:
        system.handlers.update(handlers)
        log.setStream(stdout)
    logged = len(capsys.readouterr().out) + len(lines.getvalue())
    for call_id in calls:
        assert "dueShard" not in system.item(call_id)
        assert len(system.received(call_id)) == webhooks
    assert system.limits.active_calls("demo") == frozenset()
    livekit = {name: count - before.get(name, 0) for name, count in livekit_requests(system).items()}
    return Seen(requests, invocations, livekit, written(stream.records, requests), logged, stored(stream.records))


def livekit_requests(system: System) -> dict[str, int]:
    counts = system.http.get(f"{system.servers.livekit_url}/_standin/requests").json()["counts"]
    assert isinstance(counts, dict)
    return counts


def written(records: list[dict[str, Any]], requests: list[Request]) -> collections.Counter[str]:
    units: collections.Counter[str] = collections.Counter()
    for record in records:
        old, new = record["dynamodb"].get("OldImage"), record["dynamodb"].get("NewImage")
        # A transaction writes each item twice, also one that it only checks; an index once.
        times = 2 if fenced(old, new) else 1
        units["CallsTable"] += times * write_units(old, new)
        for index in INDEXES:
            units[index["IndexName"]] += index_units(index, ("pk", "sk"), old, new)
    writes = [request for request in requests if request.operation in ("PutItem", "UpdateItem")]
    # Slots of few calls and a trunk's moment: small items. A write that was refused is paid for too.
    units["WorkspacesTable"] = sum(request.table == "WorkspacesTable" for request in writes)
    units["CallsTable"] += sum(request.table == "CallsTable" and request.failed is not None for request in writes)
    # A number that was never called: less than a kilobyte.
    units["NumbersTable"] = 2 * sum(request.operation == "TransactWriteItems" for request in requests)
    return units


def fenced(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
    """Whether this write was the fence."""
    dialing = {"S": "dialing"}
    return (new or {}).get("status") == dialing != (old or {}).get("status")


def stored(records: list[dict[str, Any]]) -> int:
    """What stays, in the table and in its indexes."""
    last = {json.dumps(record["dynamodb"]["Keys"]): record["dynamodb"]["NewImage"] for record in records}
    kept = [*last.values()]
    kept += [index_entry(index, ("pk", "sk"), image) for index in INDEXES for image in last.values()]
    return sum(size(image) + STORED_BESIDE for image in kept if image is not None)


def by_function(requests: list[Request]) -> dict[str, dict[str, int]]:
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for request in requests:
        found[request.function][request.operation] += 1
    return {function: dict(sorted(counts.items())) for function, counts in sorted(found.items())}


def difference(told: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    return f"bench/one_call.toml says {json.dumps(told, indent=1)}\nbut there were {json.dumps(seen, indent=1)}"


def test_one_call_with_its_webhooks_asks_as_much_of_aws_as_is_told(
    system: System, capsys: pytest.CaptureFixture[str], report_table: list[tuple[str, ...]]
) -> None:
    seen = counted(system, capsys, webhooks=COUNTS["webhooks"])
    # How often the agent is looked for depends on when it comes; each look after the first reads the call too.
    looks = COUNTS["livekit_requests"]["ListParticipants"]
    more_looks = seen.livekit["ListParticipants"] - looks
    requests = by_function(seen.requests)
    requests["dial_worker"]["GetItem"] -= more_looks
    found = {
        "requests": requests,
        "invocations": dict(sorted(seen.invocations.items())),
        "livekit_requests": dict(sorted(seen.livekit.items())),
        "write_units": dict(sorted(seen.written.items())),
        "read_units": sum(request.read for request in seen.requests) - more_looks,
    }
    told = {name: COUNTS[name] for name in found}
    found["livekit_requests"] = seen.livekit | {"ListParticipants": looks}
    assert found == told, difference(told, found)
    assert COUNTS["logged_kilobytes"] * 800 <= seen.logged <= COUNTS["logged_kilobytes"] * 1000
    assert COUNTS["stored_kilobytes"] * 800 <= seen.stored <= COUNTS["stored_kilobytes"] * 1000, seen.stored
    told_units = f"{sum(seen.written.values())} write units, {found['read_units']:g} read units"
    report_table.append(("one call, 4 webhooks", f"{len(seen.requests)} requests to AWS", told_units))


def test_a_call_without_a_callback_pays_for_no_webhook(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    seen = counted(system, capsys, webhooks=0)
    requests = by_function(seen.requests)
    requests["dial_worker"]["GetItem"] -= (
        seen.livekit["ListParticipants"] - COUNTS["livekit_requests"]["ListParticipants"]
    )
    assert requests == {
        function: counts
        for function, counts in COUNTS["requests"].items()
        if function not in ("fan_out", "deliver")
    }
    assert "fan_out" not in seen.invocations


def test_a_call_that_waited_in_the_line_asks_for_little_more(
    system: System, capsys: pytest.CaptureFixture[str], report_table: list[tuple[str, ...]]
) -> None:
    """The call before it gives it its slot: what both ask for, less what one asks for that does not wait."""
    seen = counted(system, capsys, webhooks=COUNTS["webhooks"], another_waits=True)
    more_looks = seen.livekit["ListParticipants"] - 2 * COUNTS["livekit_requests"]["ListParticipants"]
    requests = by_function(seen.requests)
    requests["dial_worker"]["GetItem"] -= more_looks
    found = {
        "requests": {
            function: more
            for function, counts in requests.items()
            if (more := beside_two_calls(counts, COUNTS["requests"].get(function, {})))
        },
        "invocations": beside_two_calls(seen.invocations, COUNTS["invocations"]),
        "write_units": beside_two_calls(seen.written, COUNTS["write_units"]),
    }
    told: dict[str, Any] = COUNTS["waited"]
    assert found == told, difference(told, found)
    for what in ("requests", "write_units"):
        without = total(COUNTS[what])
        waited = without + total(told[what])
        report_table.append((f"{what} of a call that waited", f"{waited}", f"{waited / without:.2f} times"))
        assert waited / without <= 1.3


def beside_two_calls(seen: Mapping[str, int], of_a_call: Mapping[str, int]) -> dict[str, int]:
    """What two calls asked for beside twice what a call asks for that does not wait."""
    names = sorted(seen.keys() | of_a_call.keys())
    return {name: more for name in names if (more := seen.get(name, 0) - 2 * of_a_call.get(name, 0))}


def total(counts: Mapping[str, Any]) -> int:
    return sum(total(count) if isinstance(count, dict) else count for count in counts.values())
