"""The number of AWS requests of each client request, which determines latency and cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError

from tests.clock import Clock
from tests.system import EXAMPLE, System, demo_workspace


@pytest.fixture(autouse=True)
def clock(system: System) -> Iterator[Clock]:
    """No test runs over the end of a minute."""
    with system.stopped_clock() as clock:
        yield clock


def test_a_warm_call_reads_its_number_sends_a_message_and_writes_a_record(system: System) -> None:
    with system.sent_by_accepting() as cold:
        assert system.post(EXAMPLE)["statusCode"] == 200
    # The workspace and some permits of this minute's rate, once.
    assert cold == ["GetItem", "GetItem", "UpdateItem", "SendMessage", "PutItem"]
    with system.sent_by_accepting() as warm:
        assert system.post(EXAMPLE)["statusCode"] == 200
    assert warm == ["GetItem", "SendMessage", "PutItem"]


@pytest.mark.parametrize(("limit", "calls"), [(60, 6), (200, 20)])
def test_a_tenth_of_the_rate_is_accepted_without_asking_again(system: System, limit: int, calls: int) -> None:
    system.workspaces.put(demo_workspace(calls_per_minute=limit))
    system.post(EXAMPLE)
    with system.sent_by_accepting() as warm:
        for _ in range(calls - 1):
            assert system.post(EXAMPLE)["statusCode"] == 200
    assert warm == ["GetItem", "SendMessage", "PutItem"] * (calls - 1)


def test_with_an_idempotency_key_record_and_number_are_read_together(system: System) -> None:
    system.post(EXAMPLE)
    key = {"idempotency-key": "order-1"}
    with system.sent_by_accepting() as first:
        assert system.post(EXAMPLE, key)["statusCode"] == 200
    assert first == ["BatchGetItem", "SendMessage", "PutItem"]
    with system.sent_by_accepting() as repeat:
        assert system.post(EXAMPLE, key)["statusCode"] == 200
    assert repeat == ["BatchGetItem"]
    with system.sent_by_accepting() as other:
        assert system.post(EXAMPLE | {"to": "+12025550123"}, key)["statusCode"] == 422
    assert other == ["BatchGetItem"]


def test_a_refused_request_costs_nothing(system: System) -> None:
    system.post(EXAMPLE)
    with system.sent_by_accepting() as sent:
        assert system.post(b"{")["statusCode"] == 400
        assert system.post(EXAMPLE | {"to": "1"})["statusCode"] == 400
        assert system.post(EXAMPLE | {"to": "+442079460000"})["statusCode"] == 403
        assert system.post(EXAMPLE, {"x-api-key": "wrong"})["statusCode"] == 401
        assert system.post(EXAMPLE, {"x-workspace-id": "demo#slots"})["statusCode"] == 403
    assert sent == []


def test_over_the_rate_nothing_is_written_and_only_the_number_is_read(system: System, clock: Clock) -> None:
    system.workspaces.put(demo_workspace(calls_per_minute=2))
    for _ in range(2):
        assert system.post(EXAMPLE)["statusCode"] == 200
    clock.now += 17_400
    key = {"idempotency-key": "order-1"}
    assert system.post(EXAMPLE, key)["statusCode"] == 429
    with system.sent_by_accepting() as sent:
        answers = [system.post(EXAMPLE) for _ in range(3)]
    # A suppressed number is refused at any rate.
    assert sent == ["GetItem"] * 3
    for answer in answers:
        assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (429, "rate_limited")
        assert answer["headers"]["retry-after"] == "43"
        assert answer["headers"]["ratelimit"] == '"calls";r=0;t=43'
        assert answer["headers"]["ratelimit-policy"] == '"calls";q=2;w=60'
    assert system.dynamodb.scan(TableName="CallsTable", Select="COUNT")["Count"] == 2
    assert system.messages("DialQueue") == 2
    clock.now += 43_000
    again = system.post(EXAMPLE, key)
    assert (again["statusCode"], "idempotency-replayed" in again["headers"]) == (200, False)


def test_only_calls_that_are_accepted_count_towards_the_rate(system: System) -> None:
    system.workspaces.put(demo_workspace(calls_per_minute=2, agents=frozenset({EXAMPLE["call_agent_id"]})))
    key = {"idempotency-key": "order-1"}
    assert system.post(EXAMPLE, key)["statusCode"] == 200
    refused: list[tuple[Any, dict[str, str], int]] = [
        (b"{", {}, 400),
        (EXAMPLE | {"to": "1"}, {}, 400),
        (EXAMPLE, {"idempotency-key": ""}, 400),
        (EXAMPLE, {"x-api-key": "wrong"}, 401),
        (EXAMPLE | {"to": "+442079460000"}, {}, 403),
        (EXAMPLE | {"call_agent_id": "another"}, {}, 403),
        (EXAMPLE | {"metadata": {}}, key, 422),
        (EXAMPLE, key, 200),
    ]
    for body, headers, status in refused * 3:
        assert system.post(body, headers)["statusCode"] == status
    assert system.post(EXAMPLE)["statusCode"] == 200
    assert system.post(EXAMPLE)["statusCode"] == 429
    # What was accepted is answered again, over the rate or not.
    assert system.post(EXAMPLE, key)["statusCode"] == 200


def test_a_repeat_that_lost_against_the_first_gives_its_permit_back(system: System) -> None:
    system.workspaces.put(demo_workspace(calls_per_minute=2))
    key = {"idempotency-key": "order-1"}
    first: list[dict[str, Any]] = []
    client = system.modules["initiate_call"].acceptor.dial_queue._client

    def post_first(**_: Any) -> None:
        if not first:
            first.append({})
            first[0] = system.post(EXAMPLE, key)

    client.meta.events.register_first("before-send.sqs.SendMessage", post_first)
    try:
        answer = system.post(EXAMPLE, key)
    finally:
        client.meta.events.unregister("before-send.sqs.SendMessage", post_first)
    assert answer["body"] == first[0]["body"]
    assert answer["headers"]["idempotency-replayed"] == "true"
    assert system.post(EXAMPLE)["statusCode"] == 200
    assert system.post(EXAMPLE)["statusCode"] == 429


def test_a_rate_that_cannot_be_told_is_a_503_and_nothing_is_sent(system: System) -> None:
    client = system.modules["initiate_call"].acceptor.workspaces._store._table.client
    system.post(EXAMPLE | {"to": "1"})  # The workspace is known from here on.

    def lose(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://dynamodb")

    client.meta.events.register_first("before-send.dynamodb.UpdateItem", lose)
    try:
        answer = system.post(EXAMPLE)
    finally:
        client.meta.events.unregister("before-send.dynamodb.UpdateItem", lose)
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (503, "unavailable")
    assert system.messages("DialQueue") == 0
    assert system.post(EXAMPLE)["statusCode"] == 200


def test_an_unknown_workspace_is_looked_up_once(system: System) -> None:
    with system.sent_by_accepting() as sent:
        for _ in range(3):
            assert system.post(EXAMPLE, {"x-workspace-id": "unknown"})["statusCode"] == 403
    assert sent == ["GetItem"]


def test_the_message_holds_ids_only(system: System) -> None:
    """A message contains neither the number nor the context."""
    call_id = json.loads(system.post(EXAMPLE)["body"])["callId"]
    [message] = system.receive("DialQueue")
    assert json.loads(message["body"]) == {"callId": call_id, "workspaceId": "demo"}
    assert message["attributes"]["MessageGroupId"] == "demo"
