"""Messages as SQS gets them, and messages that it does not confirm."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from shared.errors import QueueError
from shared.queues import Queue

URL = "https://sqs/queue"
REFUSED = ClientError({"Error": {"Code": "ServiceUnavailable"}}, "SendMessage")
CUT = ConnectTimeoutError(endpoint_url=URL)


class Sqs:
    """Takes messages. fails: by the number of the request (from 0), an error or the bodies that it refuses."""

    def __init__(self, fails: dict[int, Exception | set[int]] | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self._fails = fails or {}

    def send_message(self, **request: Any) -> dict[str, Any]:
        self._note(request)
        return {"MessageId": f"id-{len(self.requests)}"}

    def send_message_batch(self, **request: Any) -> dict[str, Any]:
        refuses = self._note(request)
        bad = [entry for entry in request["Entries"] if json.loads(entry["MessageBody"])["n"] in refuses]
        return {"Failed": [{"Id": entry["Id"]} for entry in bad]} if bad else {}

    def _note(self, request: dict[str, Any]) -> set[int]:
        self.requests.append(request)
        failure = self._fails.get(len(self.requests) - 1, set())
        if isinstance(failure, Exception):
            raise failure
        return failure


def queue(sqs: Sqs) -> Queue:
    return Queue(sqs, URL)  # type: ignore[arg-type]


def test_a_message_is_json_in_its_tenants_group_and_is_named_by_its_id() -> None:
    sqs = Sqs()
    assert queue(sqs).send({"callId": "Zoë"}, group="demo") == "id-1"
    assert sqs.requests == [
        {"QueueUrl": URL, "MessageBody": json.dumps({"callId": "Zoë"}), "MessageGroupId": "demo"}
    ]


@pytest.mark.parametrize(
    ("seconds", "delay"),
    [(-1, None), (0, None), (0.001, 1), (1, 1), (1.2, 2), (899.1, 900), (900, 900), (901, 900), (86_400, 900)],
)
def test_a_delay_is_never_shorter_than_asked_for_but_for_what_sqs_takes(seconds: float, delay: int | None) -> None:
    sqs = Sqs()
    queue(sqs).send({}, delay_seconds=seconds)
    expected = {"QueueUrl": URL, "MessageBody": "{}"}
    assert sqs.requests == [expected if delay is None else expected | {"DelaySeconds": delay}]


@pytest.mark.parametrize(("error", "name"), [(REFUSED, "ClientError"), (CUT, "ConnectTimeoutError")])
def test_a_message_that_sqs_does_not_confirm_is_an_error(error: Exception, name: str) -> None:
    with pytest.raises(QueueError, match=f"^{name}$") as raised:
        queue(Sqs({0: error})).send({})
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(("messages", "sizes"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (30, [10, 10, 10])])
def test_many_messages_take_as_few_requests_as_sqs_allows(messages: int, sizes: list[int]) -> None:
    sqs = Sqs()
    assert queue(sqs).send_batch([({"n": n}, f"group-{n}") for n in range(messages)]) == set()
    assert [len(request["Entries"]) for request in sqs.requests] == sizes
    assert all(request["QueueUrl"] == URL for request in sqs.requests)
    entries = [entry for request in sqs.requests for entry in request["Entries"]]
    assert [json.loads(entry["MessageBody"])["n"] for entry in entries] == list(range(messages))
    assert [entry["MessageGroupId"] for entry in entries] == [f"group-{n}" for n in range(messages)]
    for request in sqs.requests:
        assert len({entry["Id"] for entry in request["Entries"]}) == len(request["Entries"])


@pytest.mark.parametrize("error", [REFUSED, CUT])
def test_what_was_not_confirmed_is_named_by_its_place(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    sqs = Sqs({0: {3, 7}, 1: error, 2: {20, 24}})
    with caplog.at_level(logging.ERROR):
        failed = queue(sqs).send_batch([({"n": n}, "group") for n in range(25)])
    assert failed == {3, 7, *range(10, 20), 20, 24}
    assert [record.getMessage() for record in caplog.records] == ["messages not sent"]
