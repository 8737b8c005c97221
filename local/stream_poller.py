"""The event source of a DynamoDB stream: reads the table's stream and invokes the function, as AWS does.

The emulator's own mapping ignores retries, bisection and partial failures, so the local stack implements it with
the public Streams and Invoke APIs, as AWS documents it:
https://docs.aws.amazon.com/lambda/latest/dg/services-dynamodb-eventsourcemapping.html and the pages below it
(batch item failures, errors, parameters), https://docs.aws.amazon.com/lambda/latest/dg/invocation-eventfiltering.html.

In one shard, batches are processed in order, one at a time. (AWS works on as many as `ParallelizationFactor`
says, the records of one item in order and those of different items in any: this is one of its orders.) A batch
that fails is tried again until it succeeds, its retries are used up or its records are too old; what is given up
goes, as metadata only, to the OnFailure queue, and the shard goes on. A partial failure is tried again from its
first failed record. Bisection halves a failed batch and costs no retry. Where AWS leaves something open (the
pace of retries; whether progress resets their count), the choice is in `Batches`.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

log = logging.getLogger("stream")

IDLE_SECONDS = 0.075
# The pause after an error of the stream itself.
AGAIN_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0

Record = dict[str, Any]


class FunctionFailedError(Exception):
    """The invocation ended with a function error. `args[0]` is the error of the function or the runtime."""


class NotInvokedError(Exception):
    """The function was not reached (throttled, no connection): the next try does not count as a retry."""


# ── filter criteria ─────────────────────────────────────────────────────────────────────────────


def matches(pattern: Mapping[str, Any], value: object) -> bool:
    """Whether `value` fits an EventBridge pattern of nested keys, exact values and `{"exists": true|false}`.

    Raises ValueError for a comparison that is not one of these.
    """
    fields = value if isinstance(value, Mapping) else {}
    for key, inner in pattern.items():
        if isinstance(inner, Mapping):
            if not matches(inner, fields.get(key)):
                return False
        elif not any(_leaf_matches(condition, fields, key) for condition in inner):
            return False
    return True


def _leaf_matches(condition: object, fields: Mapping[str, Any], key: str) -> bool:
    if isinstance(condition, Mapping):
        if condition.keys() != {"exists"}:
            raise ValueError(f"the stream poller does not know the comparison {condition!r}")
        # "Exists matching only works on leaf nodes."
        return (key in fields and not isinstance(fields[key], Mapping)) is condition["exists"]
    if key not in fields:
        return False
    value = fields[key]
    candidates = value if isinstance(value, list) else [value]
    return any(candidate == condition and type(candidate) is type(condition) for candidate in candidates)


# ── the mapping's settings ──────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The properties of an AWS::Lambda::EventSourceMapping, with AWS's defaults. -1 means without end.

    maximum_record_age: seconds.
    """

    starting_position: str
    patterns: tuple[Mapping[str, Any], ...] = ()
    batch_size: int = 100
    report_item_failures: bool = False
    bisect: bool = False
    maximum_retries: int = -1
    maximum_record_age: float = -1

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any]) -> Settings:
        filters = properties.get("FilterCriteria", {}).get("Filters", [])
        return cls(
            starting_position=properties["StartingPosition"],
            patterns=tuple(json.loads(entry["Pattern"]) for entry in filters),
            batch_size=properties.get("BatchSize", 100),
            report_item_failures="ReportBatchItemFailures" in properties.get("FunctionResponseTypes", ()),
            bisect=properties.get("BisectBatchOnFunctionError", False),
            maximum_retries=properties.get("MaximumRetryAttempts", -1),
            maximum_record_age=properties.get("MaximumRecordAgeInSeconds", -1),
        )

    def scaled(self, factor: float) -> Settings:
        """The same with all durations multiplied by `factor`."""
        if self.maximum_record_age < 0:
            return self
        return dataclasses.replace(self, maximum_record_age=self.maximum_record_age * factor)

    def wants(self, record: Record) -> bool:
        """Whether one of the filters matches; without filters every record does."""
        return not self.patterns or any(matches(pattern, record) for pattern in self.patterns)


# ── one shard's records, in order ───────────────────────────────────────────────────────────────


def first_failure(answer: object, records: Sequence[Record]) -> int | None:
    """The index of the first record that `answer`, a batch response, reports as failed; None for success.

    An empty, null or malformed identifier, or one that is not in the batch, means that all failed.
    """
    if answer is None or answer == {}:
        return None
    if not isinstance(answer, Mapping):
        return 0
    failures = answer.get("batchItemFailures")
    if failures is None or failures == []:
        return None
    places = {record["dynamodb"]["SequenceNumber"]: place for place, record in enumerate(records)}
    try:
        return min(places[failure["itemIdentifier"]] for failure in failures)
    except (KeyError, TypeError):
        return 0


@dataclasses.dataclass(slots=True)
class Batches:
    """Passes records to a function until each has been processed or given up.

    invoke: takes {"Records": [...]}, returns the function's answer, raises FunctionFailedError.
    give_up: takes the records, the condition and the number of invocations.
    wait: sleeps for the given seconds; returns True when the poller must stop.
    clock: epoch seconds.
    """

    settings: Settings
    invoke: Callable[[dict[str, Any]], object]
    give_up: Callable[[Sequence[Record], str, int], None]
    wait: Callable[[float], bool]
    clock: Callable[[], float] = time.time

    def process(self, records: Sequence[Record]) -> None:
        wanted = [record for record in records if self.settings.wants(record)]
        for start in range(0, len(wanted), self.settings.batch_size):
            if not self._finish(wanted[start : start + self.settings.batch_size]):
                return

    def _finish(self, batch: Sequence[Record]) -> bool:
        """Tries `batch` until no record of it is left; False when the poller must stop before that.

        Progress inside a batch resets the count of retries.
        """
        attempts = failures = 0
        while batch := self._without_too_old(batch, attempts):
            attempts += 1
            failures += 1
            reported = False
            try:
                answer = self.invoke({"Records": list(batch)})
                failed = first_failure(answer, batch) if self.settings.report_item_failures else None
                if failed is None:
                    return True
                reported = True
                log.warning(
                    "a batch of %d failed from its record %d on, says the function", len(batch), failed + 1
                )
            except FunctionFailedError as exc:
                log.warning("a batch of %d failed: %s", len(batch), exc)
                failed = 0
            except NotInvokedError as exc:
                log.warning("a batch of %d waits: %s", len(batch), exc)
                attempts -= 1
                if self.wait(_pause(failures)):
                    return False
                continue
            if failed:
                batch, attempts, failures = batch[failed:], 0, 0
                continue
            # A function that reports its failed record has split the batch already.
            if self.settings.bisect and not reported and len(batch) > 1:
                middle = len(batch) // 2
                if not self._finish(batch[:middle]):
                    return False
                batch, attempts, failures = batch[middle:], 0, 0
                continue
            if 0 <= self.settings.maximum_retries < attempts:
                self.give_up(batch, "RetryAttemptsExhausted", attempts)
                return True
            if self.wait(_pause(failures)):
                return False
        return True

    def _without_too_old(self, batch: Sequence[Record], attempts: int) -> Sequence[Record]:
        limit = self.settings.maximum_record_age
        if limit < 0:
            return batch
        oldest = self.clock() - limit
        old = [r for r in batch if r["dynamodb"]["ApproximateCreationDateTime"] < oldest]
        if old:
            self.give_up(old, "RecordAgeExceeded", attempts)
        return [r for r in batch if r["dynamodb"]["ApproximateCreationDateTime"] >= oldest]


def _pause(failures: int) -> float:
    """Seconds until the next try."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_RETRY_SECONDS)


def failure_record(
    records: Sequence[Record],
    condition: str,
    attempts: int,
    *,
    function_arn: str,
    stream_arn: str,
    shard_id: str,
) -> dict[str, Any]:
    """The message to the OnFailure destination: the position of the records in the stream, without their
    content."""

    def stamp(seconds: float) -> str:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    changes = [record["dynamodb"] for record in records]
    return {
        "requestContext": {
            "requestId": str(uuid.uuid4()),
            "functionArn": function_arn,
            "condition": condition,
            "approximateInvokeCount": attempts,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": stamp(time.time()),
        "DDBStreamBatchInfo": {
            "shardId": shard_id,
            "startSequenceNumber": changes[0]["SequenceNumber"],
            "endSequenceNumber": changes[-1]["SequenceNumber"],
            "approximateArrivalOfFirstRecord": stamp(changes[0]["ApproximateCreationDateTime"]),
            "approximateArrivalOfLastRecord": stamp(changes[-1]["ApproximateCreationDateTime"]),
            "batchSize": len(records),
            "streamArn": stream_arn,
        },
    }


# ── the stream ──────────────────────────────────────────────────────────────────────────────────


def as_event(record: Mapping[str, Any], stream_arn: str) -> Record:
    """A record in Lambda's event: JSON, so times are epoch seconds and bytes are base64."""

    def plain(value: Any) -> Any:
        match value:
            case datetime.datetime():
                return value.timestamp()
            case bytes():
                return base64.b64encode(value).decode()
            case dict():
                return {key: plain(inner) for key, inner in value.items()}
            case list():
                return [plain(inner) for inner in value]
        return value

    return {**plain(dict(record)), "eventSourceARN": stream_arn}


def poll(
    client: DynamoDBStreamsClient,
    stream_arn: str,
    settings: Settings,
    batches_of: Callable[[str], Batches],
    stop: threading.Event,
    idle_seconds: float = IDLE_SECONDS,
) -> None:
    """Reads every shard of the stream until `stop` is set, each shard in a thread of its own.

    batches_of: returns the handler of a shard's records, given the shard's id.
    """
    known: dict[str, threading.Thread] = {}
    while not stop.is_set():
        try:
            shards = list(_shards(client, stream_arn))
        except Exception:
            if not stop.is_set():
                log.exception("listing the shards failed; trying again")
                stop.wait(AGAIN_SECONDS)
            continue
        for shard_id in shards:
            if shard_id not in known:
                # Later shards contain later records, none of which may be skipped.
                start = settings.starting_position if not known else "TRIM_HORIZON"
                arguments = (client, stream_arn, shard_id, start, batches_of(shard_id), stop, idle_seconds)
                known[shard_id] = threading.Thread(target=_read_shard, args=arguments, daemon=True)
                known[shard_id].start()
        stop.wait(10)
    for thread in known.values():
        thread.join(timeout=5)


def _shards(client: DynamoDBStreamsClient, stream_arn: str) -> Iterator[str]:
    start: dict[str, Any] = {}
    while True:
        description = client.describe_stream(StreamArn=stream_arn, **start)["StreamDescription"]
        yield from (shard["ShardId"] for shard in description.get("Shards", []))
        if "LastEvaluatedShardId" not in description:
            return
        start = {"ExclusiveStartShardId": description["LastEvaluatedShardId"]}


def _read_shard(
    client: DynamoDBStreamsClient,
    stream_arn: str,
    shard_id: str,
    starting_position: str,
    batches: Batches,
    stop: threading.Event,
    idle_seconds: float,
) -> None:
    iterator: str | None = None
    place: Any = {"ShardIteratorType": "LATEST" if starting_position == "LATEST" else "TRIM_HORIZON"}
    while not stop.is_set():
        try:
            if iterator is None:
                given = client.get_shard_iterator(StreamArn=stream_arn, ShardId=shard_id, **place)
                iterator = given["ShardIterator"]
            answer = client.get_records(ShardIterator=iterator, Limit=1000)
            records = [as_event(record, stream_arn) for record in answer["Records"]]
            batches.process(records)
        except client.exceptions.ExpiredIteratorException:
            iterator = None
            if place["ShardIteratorType"] == "LATEST":
                # No record since then may be skipped.
                place = {"ShardIteratorType": "TRIM_HORIZON"}
            continue
        except Exception:
            if stop.is_set():
                return
            log.exception("reading %s failed; trying again", shard_id)
            stop.wait(AGAIN_SECONDS)
            continue
        iterator = answer.get("NextShardIterator")
        if records:
            last = records[-1]["dynamodb"]["SequenceNumber"]
            place = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": last}
        if not iterator:
            return
        if not records:
            stop.wait(idle_seconds)
