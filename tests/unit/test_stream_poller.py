"""The stream poller against what AWS documents about DynamoDB event sources; clock and waits are replaced.

https://docs.aws.amazon.com/lambda/latest/dg/services-dynamodb-errors.html
https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from local.stream_poller import (
    Batches,
    FunctionFailedError,
    NotInvokedError,
    Record,
    Settings,
    as_event,
    failure_record,
    first_failure,
    matches,
    poll,
)

NOW = 1_800_000_000.0
SETTINGS = Settings("TRIM_HORIZON")


def record(number: int, age: float = 0) -> Record:
    return {
        "eventName": "MODIFY",
        "dynamodb": {
            "SequenceNumber": f"{number:021}",
            "ApproximateCreationDateTime": NOW - age,
            "Keys": {"sk": {"S": "CALL"}},
            "NewImage": {"n": {"N": str(number)}},
        },
    }


def numbers(records: Sequence[Record]) -> list[int]:
    return [int(one["dynamodb"]["NewImage"]["n"]["N"]) for one in records]


@dataclasses.dataclass
class Shard:
    """A shard's handler with a scripted function. `answer` gets a batch's numbers, returns or raises."""

    settings: Settings
    answer: Callable[[list[int]], object]
    invoked: list[list[int]] = dataclasses.field(default_factory=list)
    given_up: list[tuple[list[int], str, int]] = dataclasses.field(default_factory=list)
    waits: list[float] = dataclasses.field(default_factory=list)
    stop_after_waits: int = 1000

    def process(self, *records: Record) -> None:
        def invoke(event: dict[str, Any]) -> object:
            batch = numbers(event["Records"])
            self.invoked.append(batch)
            return self.answer(batch)

        def give_up(batch: Sequence[Record], condition: str, attempts: int) -> None:
            self.given_up.append((numbers(batch), condition, attempts))

        def wait(seconds: float) -> bool:
            self.waits.append(seconds)
            return len(self.waits) >= self.stop_after_waits

        Batches(self.settings, invoke, give_up, wait, clock=lambda: NOW + sum(self.waits)).process(records)


def records(count: int) -> list[Record]:
    return [record(number) for number in range(count)]


def failing(*bad: int, times: int = 1_000_000) -> Callable[[list[int]], object]:
    """A function that raises for a batch with one of `bad`, so many times."""
    left = [times]

    def answer(batch: list[int]) -> object:
        if left[0] and set(bad) & set(batch):
            left[0] -= 1
            raise FunctionFailedError("boom")
        return None

    return answer


def reporting(*bad: int, times: int = 1_000_000) -> Callable[[list[int]], object]:
    """A function that reports the `bad` ones of a batch as failed items, so many times."""
    left = [times]

    def answer(batch: list[int]) -> object:
        found = [number for number in batch if number in bad]
        if not left[0] or not found:
            return {"batchItemFailures": []}
        left[0] -= 1
        return {"batchItemFailures": [{"itemIdentifier": f"{number:021}"} for number in found]}

    return answer


# ── filters ──


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ({"a": {"b": ["x"]}}, {"a": {"b": "x"}}, True),
        ({"a": {"b": ["x", "y"]}}, {"a": {"b": "y"}}, True),
        ({"a": {"b": ["x"]}}, {"a": {"b": "z"}}, False),
        ({"a": {"b": ["x"]}}, {"a": "x"}, False),
        ({"a": {"b": ["x"]}}, {}, False),
        ({"a": [1]}, {"a": 1}, True),
        ({"a": [1]}, {"a": True}, False),
        ({"a": [None]}, {"a": None}, True),
        ({"a": [None]}, {}, False),
        ({"a": ["x"]}, {"a": ["w", "x"]}, True),
        ({"a": [{"exists": True}]}, {"a": ""}, True),
        ({"a": [{"exists": True}]}, {"b": ""}, False),
        ({"a": [{"exists": True}]}, {"a": {"b": "not a leaf"}}, False),
        ({"a": [{"exists": False}]}, {"b": ""}, True),
        ({"a": [{"exists": False}]}, {"a": ""}, False),
        ({"a": {"b": [{"exists": False}]}}, {}, True),
        ({"a": ["x"], "b": ["y"]}, {"a": "x", "b": "n"}, False),
    ],
)
def test_a_pattern_matches_as_in_eventbridge(pattern: dict[str, Any], value: object, fits: bool) -> None:
    assert matches(pattern, value) is fits


def test_an_unknown_comparison_is_refused_rather_than_ignored() -> None:
    with pytest.raises(ValueError, match="prefix"):
        matches({"a": [{"prefix": "x"}]}, {"a": "xy"})


def test_records_that_no_filter_matches_do_not_reach_the_function() -> None:
    patterns = tuple({"dynamodb": {"NewImage": {"n": {"N": [number]}}}} for number in ("1", "3"))
    shard = Shard(dataclasses.replace(SETTINGS, patterns=patterns), failing())
    shard.process(*records(5))
    assert shard.invoked == [[1, 3]]


def test_a_batch_without_matching_records_is_not_sent() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, patterns=({"eventName": ["REMOVE"]},)), failing())
    shard.process(*records(3))
    assert shard.invoked == []


# ── the mapping's settings ─


def test_settings_are_read_from_the_mapping() -> None:
    settings = Settings.from_properties(
        {
            "StartingPosition": "LATEST",
            "BatchSize": 25,
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "BisectBatchOnFunctionError": True,
            "MaximumRetryAttempts": 3,
            "MaximumRecordAgeInSeconds": 600,
            "FilterCriteria": {"Filters": [{"Pattern": json.dumps({"a": ["x"]})}]},
        }
    )
    assert settings == Settings("LATEST", ({"a": ["x"]},), 25, True, True, 3, 600)
    assert settings.scaled(0.5).maximum_record_age == 300


def test_missing_settings_have_the_documented_defaults() -> None:
    settings = Settings.from_properties({"StartingPosition": "TRIM_HORIZON"})
    assert settings == Settings("TRIM_HORIZON", (), 100, False, False, -1, -1)
    assert settings.scaled(0.5) == settings


# ── batches ──


def test_batches_are_at_most_the_batch_size_and_in_order() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, batch_size=2), failing())
    shard.process(*records(5))
    assert shard.invoked == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}])
def test_these_answers_mean_that_all_succeeded(answer: object) -> None:
    assert first_failure(answer, records(3)) is None


@pytest.mark.parametrize(
    "answer",
    [
        {"batchItemFailures": [{"itemIdentifier": ""}]},
        {"batchItemFailures": [{"itemIdentifier": None}]},
        {"batchItemFailures": [{"wrongKey": f"{1:021}"}]},
        {"batchItemFailures": [{"itemIdentifier": "not in the batch"}]},
        {"batchItemFailures": "not a list"},
        "not an object",
    ],
)
def test_these_answers_mean_that_all_failed(answer: object) -> None:
    assert first_failure(answer, records(3)) == 0


def test_a_partial_failure_is_retried_from_the_lowest_failed_record() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, report_item_failures=True), reporting(3, 2, times=1))
    shard.process(*records(5))
    assert shard.invoked == [[0, 1, 2, 3, 4], [2, 3, 4]]


def test_without_the_response_type_an_answer_is_ignored() -> None:
    shard = Shard(SETTINGS, reporting(1))
    shard.process(*records(2))
    assert shard.invoked == [[0, 1]]


def test_a_failed_batch_is_retried_whole_and_blocks_the_shard() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, batch_size=2), failing(1, times=2))
    shard.process(*records(4))
    assert shard.invoked == [[0, 1], [0, 1], [0, 1], [2, 3]]
    assert shard.waits == [1, 2]


def test_bisection_halves_a_failed_batch_in_order() -> None:
    settings = dataclasses.replace(SETTINGS, bisect=True, maximum_retries=0)
    shard = Shard(settings, failing(2))
    shard.process(*records(4))
    assert shard.invoked == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert [given[0] for given in shard.given_up] == [[2]]


def test_bisection_does_not_count_as_a_retry() -> None:
    settings = dataclasses.replace(SETTINGS, bisect=True, maximum_retries=1)
    shard = Shard(settings, failing(0))
    shard.process(*records(2))
    assert shard.invoked == [[0, 1], [0], [0], [1]]
    assert shard.given_up == [([0], "RetryAttemptsExhausted", 2)]


def test_a_batch_is_split_at_a_reported_failure_and_not_halved() -> None:
    settings = dataclasses.replace(SETTINGS, bisect=True, report_item_failures=True)
    shard = Shard(settings, reporting(1, times=2))
    shard.process(*records(4))
    assert shard.invoked == [[0, 1, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_a_batch_is_given_up_after_its_retries_and_the_shard_continues() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, batch_size=2, maximum_retries=2), failing(0))
    shard.process(*records(4))
    assert shard.invoked == [[0, 1]] * 3 + [[2, 3]]
    assert shard.given_up == [([0, 1], "RetryAttemptsExhausted", 3)]


def test_progress_inside_a_batch_resets_the_count_of_retries() -> None:
    settings = dataclasses.replace(SETTINGS, report_item_failures=True, maximum_retries=1)
    shard = Shard(settings, reporting(1, 2))
    shard.process(*records(3))
    assert shard.invoked == [[0, 1, 2], [1, 2], [1, 2]]
    assert shard.given_up == [([1, 2], "RetryAttemptsExhausted", 2)]


def test_a_record_that_is_too_old_is_given_up_without_an_invocation() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, maximum_record_age=60), failing())
    shard.process(record(0, age=61), record(1, age=59))
    assert shard.given_up == [([0], "RecordAgeExceeded", 0)]
    assert shard.invoked == [[1]]


def test_retries_end_when_the_records_have_become_too_old() -> None:
    shard = Shard(dataclasses.replace(SETTINGS, maximum_record_age=10), failing(0))
    shard.process(record(0))
    assert shard.given_up == [([0], "RecordAgeExceeded", len(shard.invoked))]
    assert sum(shard.waits) > 10


def test_a_throttled_invocation_does_not_count_as_a_retry() -> None:
    left = [3]

    def answer(batch: list[int]) -> object:
        if left[0]:
            left[0] -= 1
            raise NotInvokedError("TooManyRequestsException")
        return None

    shard = Shard(dataclasses.replace(SETTINGS, maximum_retries=0), answer)
    shard.process(record(0))
    assert shard.invoked == [[0]] * 4
    assert shard.given_up == []


def test_a_poller_that_stops_leaves_the_rest_unprocessed() -> None:
    settings = dataclasses.replace(SETTINGS, batch_size=2, bisect=True)
    shard = Shard(settings, failing(0), stop_after_waits=1)
    shard.process(*records(4))
    assert shard.invoked == [[0, 1], [0]]


# ── records and the stream ──


def test_a_record_is_passed_as_json_with_base64_and_epoch_seconds() -> None:
    moment = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
    raw = {
        "eventID": "1",
        "dynamodb": {"ApproximateCreationDateTime": moment, "NewImage": {"b": {"B": b"\x00\xff"}, "l": {"L": []}}},
    }
    event = as_event(raw, "arn:stream")
    assert json.loads(json.dumps(event)) == {
        "eventID": "1",
        "eventSourceARN": "arn:stream",
        "dynamodb": {
            "ApproximateCreationDateTime": moment.timestamp(),
            "NewImage": {"b": {"B": "AP8="}, "l": {"L": []}},
        },
    }


def test_records_given_up_are_reported_as_metadata_only() -> None:
    told = failure_record(
        [record(1, age=5), record(2)],
        "RetryAttemptsExhausted",
        3,
        function_arn="arn:function",
        stream_arn="arn:stream",
        shard_id="shardId-1",
    )
    assert told["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert told["requestContext"]["approximateInvokeCount"] == 3
    assert told["DDBStreamBatchInfo"] == {
        "shardId": "shardId-1",
        "startSequenceNumber": f"{1:021}",
        "endSequenceNumber": f"{2:021}",
        "approximateArrivalOfFirstRecord": "2027-01-15T07:59:55.000Z",
        "approximateArrivalOfLastRecord": "2027-01-15T08:00:00.000Z",
        "batchSize": 2,
        "streamArn": "arn:stream",
    }
    assert "NewImage" not in json.dumps(told)


class ExpiredError(Exception):
    pass


class FakeStreams:
    """A stream of two shards on two pages, each read by a thread of its own; iterators are `shard:place`.

    The iterator behind the first record of shard `one` expires once: of that shard, whichever thread reads first.
    faults: the operations that fail, each once.
    """

    exceptions = SimpleNamespace(ExpiredIteratorException=ExpiredError)

    def __init__(self, shards: dict[str, list[dict[str, Any]]], *faults: str) -> None:
        self.shards = shards
        self.faults = set(faults)
        self.iterators: list[tuple[str, str]] = []
        self.expire_once = True

    def fail_once(self, operation: str) -> None:
        if operation in self.faults:
            self.faults.remove(operation)
            raise ConnectionError(operation)

    def describe_stream(self, **request: str) -> dict[str, Any]:
        self.fail_once("describe_stream")
        names = list(self.shards)
        if "ExclusiveStartShardId" in request:
            return {"StreamDescription": {"Shards": [{"ShardId": name} for name in names[1:]]}}
        return {
            "StreamDescription": {"Shards": [{"ShardId": names[0]}], "LastEvaluatedShardId": names[0]},
        }

    def get_shard_iterator(self, **request: str) -> dict[str, str]:
        self.fail_once("get_shard_iterator")
        self.iterators.append((request["ShardId"], request["ShardIteratorType"]))
        after = int(request.get("SequenceNumber", "-1"))
        return {"ShardIterator": f"{request['ShardId']}:{after + 1}"}

    def get_records(self, ShardIterator: str, Limit: int) -> dict[str, Any]:
        name, place = ShardIterator.split(":")
        self.fail_once("get_records")
        if ShardIterator == "one:1" and self.expire_once:
            self.expire_once = False
            raise ExpiredError
        found = self.shards[name][int(place) : int(place) + 1]
        return {"Records": found, "NextShardIterator": f"{name}:{int(place) + len(found)}"}


@pytest.mark.parametrize("faults", [(), ("describe_stream", "get_shard_iterator", "get_records")])
def test_every_shard_is_read_to_its_end_even_when_an_iterator_expires_or_the_stream_fails(
    monkeypatch: pytest.MonkeyPatch, faults: tuple[str, ...]
) -> None:
    monkeypatch.setattr("local.stream_poller.AGAIN_SECONDS", 0.001)
    stop = threading.Event()
    shards = {"one": [record(0), record(1)], "two": [record(0)]}
    streams = FakeStreams(shards, *faults)
    seen: list[tuple[str, int]] = []

    def batches(shard_id: str) -> Batches:
        def invoke(event: dict[str, Any]) -> object:
            seen.extend((shard_id, number) for number in numbers(event["Records"]))
            if len(seen) == 3:
                stop.set()
            return None

        return Batches(SETTINGS, invoke, lambda *given: None, wait=stop.wait)

    poll(streams, "arn:stream", SETTINGS, batches, stop, idle_seconds=0.001)  # type: ignore[arg-type]
    assert sorted(seen) == [("one", 0), ("one", 1), ("two", 0)]
    assert ("one", "AFTER_SEQUENCE_NUMBER") in streams.iterators
    assert not streams.faults
