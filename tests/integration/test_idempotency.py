"""Repeating a request with its Idempotency-Key never places a second call, after any fault in between."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

from shared.callback_url import Policy
from tests.system import API_KEY, DEADLINE_SECONDS, EXAMPLE, System, demo_workspace

KEY = {"idempotency-key": "order-1"}
CALL = EXAMPLE | {"to": "+15550000000"}


class DiedError(Exception):
    """The process is gone."""


@contextmanager
def at(client: Any, event: str, handler: Callable[..., Any]) -> Iterator[None]:
    """Runs `handler` at one of botocore's events of a client, before everything else there."""
    client.meta.events.register_first(event, handler)
    try:
        yield
    finally:
        client.meta.events.unregister(event, handler)


def calls_client(system: System) -> Any:
    return system.modules["initiate_call"].acceptor.calls._client


def records(system: System) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = system.dynamodb.scan(TableName="CallsTable", ConsistentRead=True)["Items"]
    return [item for item in items if item["sk"]["S"] == "CALL"]


def body_of(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["statusCode"] == 200, answer
    body = json.loads(answer["body"])
    assert isinstance(body, dict)
    return body


def check_rings_once(system: System, call_id: str) -> None:
    system.run_until(lambda: system.ended(call_id))
    system.run_until(lambda: system.messages("DialQueue") == 0)
    assert len(records(system)) == 1
    assert len(system.calls_placed()) == 1


def test_a_repeated_request_gets_the_same_answer_and_dials_once(system: System) -> None:
    first = system.post(CALL, KEY)
    repeat = system.post(CALL, KEY)
    assert body_of(repeat) == body_of(first)
    assert "idempotency-replayed" not in first["headers"]
    assert repeat["headers"]["idempotency-replayed"] == "true"
    assert system.messages("DialQueue") == 1
    check_rings_once(system, body_of(first)["callId"])
    late = system.post(CALL, KEY)
    assert body_of(late) == body_of(first)
    assert system.messages("DialQueue") == 0


@pytest.mark.parametrize(
    "again", ["order-1,order-1", "order-1, order-1", " order-1 ,order-1,,\torder-1", "order-1,"]
)
def test_a_key_that_a_proxy_sends_twice_is_one_key(system: System, again: str) -> None:
    first = system.post(CALL, KEY)
    repeat = system.post(CALL, {"idempotency-key": again})
    assert body_of(repeat) == body_of(first)
    assert repeat["headers"]["idempotency-replayed"] == "true"
    check_rings_once(system, body_of(first)["callId"])


def test_every_header_that_comes_twice_counts_once(system: System) -> None:
    sent = {"x-workspace-id": "demo,demo", "x-api-key": f"{API_KEY}, {API_KEY}", "content-type": "a/b,a/b"}
    body_of(system.post(CALL, sent | {"content-encoding": "identity,identity"}))
    bearer = {"x-api-key": "", "authorization": f"Bearer {API_KEY},Bearer {API_KEY}"}
    body_of(system.post(CALL, bearer))
    assert system.api("GET /v1/api/call", headers=sent)["statusCode"] == 200
    assert system.api("GET /v1/api/call", headers=bearer)["statusCode"] == 200
    assert (
        system.api("GET /v1/api/call", headers={"x-workspace-id": "demo,x"})["json"]["code"]
        == "conflicting_header"
    )


NARROWED: list[dict[str, Any]] = [
    {"allowed_calling_codes": frozenset({"+44"})},
    {"allowed_calling_codes": frozenset()},
    {"agents": frozenset({"another"})},
    {"from_numbers": ("+15550001111",)},
    {"from_numbers": ("+15550000000",)},
    {"calls_per_minute": 0},
    {"allowed_calling_codes": frozenset(), "agents": frozenset({"x"}), "from_numbers": (), "calls_per_minute": 0},
]


@pytest.mark.parametrize("change", NARROWED, ids=str)
def test_a_repeat_gets_its_first_answer_whatever_the_operator_changed(
    system: System, change: dict[str, Any]
) -> None:
    call = CALL | {"from": "+15550009999"}
    first = body_of(system.post(call, KEY))
    system.workspaces.put(demo_workspace(**change))
    system.forget_workspaces()
    answer = system.post(call, KEY)
    assert body_of(answer) == first
    assert answer["headers"]["idempotency-replayed"] == "true"
    # Only a repeat does.
    assert system.post(call, {"idempotency-key": "order-2"})["statusCode"] in (400, 403, 429)
    assert system.post(call | {"metadata": {}}, KEY)["statusCode"] == 422
    assert len(records(system)) == 1


def test_a_repeat_gets_its_first_answer_though_its_callback_is_not_taken_any_more(system: System) -> None:
    call = CALL | {"callback_url": f"{system.servers.receiver_url}/hook"}
    first = body_of(system.post(call, KEY))
    module = system.modules["initiate_call"]
    before = module.acceptor
    module.acceptor = dataclasses.replace(before, callback_policy=Policy())
    try:
        assert body_of(system.post(call, KEY)) == first
        assert system.post(call)["statusCode"] == 400
    finally:
        module.acceptor = before


@pytest.mark.parametrize(
    ("change", "headers", "status"),
    [
        ({"disabled": True}, {}, 403),
        ({"api_key_hashes": frozenset()}, {}, 401),
        ({}, {"x-api-key": "wrong"}, 401),
        ({}, {"x-workspace-id": "unknown"}, 403),
    ],
)
def test_who_may_not_ask_gets_no_first_answer(
    system: System, change: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    body_of(system.post(CALL, KEY))
    system.workspaces.put(demo_workspace(**change))
    system.forget_workspaces()
    assert system.post(CALL, KEY | headers)["statusCode"] == status


def test_without_a_key_every_request_is_a_call(system: System) -> None:
    one, other = body_of(system.post(CALL)), body_of(system.post(CALL))
    assert one["callId"] != other["callId"]
    assert len(records(system)) == 2


def test_fifty_repeats_at_the_same_time_are_one_call(system: System) -> None:
    system.post(CALL | {"to": "1"})  # The workspace is known from here on.
    together = threading.Barrier(50)

    def post(_: int) -> dict[str, Any]:
        together.wait(DEADLINE_SECONDS)
        return system.post(CALL, KEY)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    bodies = [body_of(answer) for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    assert sum("idempotency-replayed" not in answer["headers"] for answer in answers) == 1
    check_rings_once(system, bodies[0]["callId"])


@pytest.mark.parametrize(
    "change",
    [
        {"to": "+15550000001"},
        {"call_agent_id": "another"},
        {"metadata": {"orderId": "o-2"}},
        {"metadata": EXAMPLE["metadata"] | {"one": 1}},
        {"dynamic_variables": {}},
        {"callback_url": "https://example.com/hook"},
        {"ring_timeout_seconds": 20},
        {"callback_url": None},
    ],
)
def test_another_body_under_the_same_key_is_refused(system: System, change: dict[str, Any]) -> None:
    call_id = body_of(system.post(CALL, KEY))["callId"]
    answer = system.post(CALL | change, KEY)
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (422, "idempotency_key_reused")
    assert [record["callId"]["S"] for record in records(system)] == [call_id]
    assert system.messages("DialQueue") == 1


def test_numbers_that_no_computer_holds_are_still_told_apart(system: System) -> None:
    text = '{"to":"+15550000000","call_agent_id":"a","metadata":{"n":%s}}'
    body_of(system.post((text % "1e400").encode(), KEY))
    assert system.post((text % "1e401").encode(), KEY)["statusCode"] == 422
    assert system.post((text % "1e400").encode(), KEY)["statusCode"] == 200


def test_white_space_and_the_order_of_keys_do_not_make_another_body(system: System) -> None:
    first = body_of(system.post(CALL, KEY))
    turned = dict(reversed(CALL.items())) | {"metadata": dict(reversed(CALL["metadata"].items()))}
    for text in (
        json.dumps(CALL, indent=4),
        json.dumps(turned),
        json.dumps(turned, separators=(",", ":"), ensure_ascii=False) + "\r\n",
    ):
        answer = system.post(text.encode(), KEY)
        assert body_of(answer) == first
        assert answer["headers"]["idempotency-replayed"] == "true"


def test_a_body_in_base64_is_the_same_body(system: System) -> None:
    assert body_of(system.post(CALL, KEY)) == body_of(system.post(CALL, KEY, in_base64=True))


def test_another_workspace_has_keys_of_its_own(system: System) -> None:
    system.workspaces.put(demo_workspace(workspace_id="other"))
    mine = body_of(system.post(CALL, KEY))
    theirs = body_of(system.post(CALL | {"metadata": {}}, KEY | {"x-workspace-id": "other"}))
    assert mine["callId"] != theirs["callId"]
    assert len(records(system)) == 2


def test_workspace_and_key_cannot_be_shifted_into_each_other(system: System) -> None:
    for workspace_id, key in (("a", "b-c"), ("a-b", "c")):
        system.workspaces.put(demo_workspace(workspace_id=workspace_id))
        body_of(system.post(CALL, {"x-workspace-id": workspace_id, "idempotency-key": key}))
    assert len(records(system)) == 2


def test_a_refused_request_does_not_use_up_its_key(system: System) -> None:
    for bad in (b"{", CALL | {"to": "1"}, CALL | {"to": "+442079460000"}):
        assert system.post(bad, KEY)["statusCode"] in (400, 403)
    answer = system.post(CALL, KEY)
    assert "idempotency-replayed" not in answer["headers"]
    check_rings_once(system, body_of(answer)["callId"])


def test_a_death_between_message_and_record_heals_on_repeat(system: System) -> None:
    def die(**_: Any) -> None:
        raise DiedError

    with at(calls_client(system), "before-send.dynamodb.PutItem", die), pytest.raises(DiedError):
        system.post(CALL, KEY)
    assert (len(records(system)), system.messages("DialQueue")) == (0, 1)
    answer = system.post(CALL, KEY)
    assert "idempotency-replayed" not in answer["headers"]
    check_rings_once(system, body_of(answer)["callId"])


def test_a_death_before_the_answer_heals_on_repeat(system: System) -> None:
    def die(**_: Any) -> None:
        raise DiedError

    with at(calls_client(system), "after-call.dynamodb.PutItem", die), pytest.raises(DiedError):
        system.post(CALL, KEY)
    [record] = records(system)
    answer = system.post(CALL, KEY)
    assert answer["headers"]["idempotency-replayed"] == "true"
    assert body_of(answer)["jobId"] == record["jobId"]["S"]
    check_rings_once(system, body_of(answer)["callId"])


@pytest.mark.parametrize("headers", [{}, KEY], ids=["without_a_key", "with_a_key"])
def test_a_write_of_unclear_outcome_that_was_made_is_answered_with_the_call(
    system: System, headers: dict[str, str]
) -> None:
    def lose_the_answer(**_: Any) -> None:
        raise ReadTimeoutError(endpoint_url="https://dynamodb")

    with at(calls_client(system), "after-call.dynamodb.PutItem", lose_the_answer):
        answer = system.post(CALL, headers)
    body = body_of(answer)
    [record] = records(system)
    assert {name: record[name]["S"] for name in ("callId", "roomName", "jobId")} == {
        name: body[name] for name in ("callId", "roomName", "jobId")
    }
    assert "idempotency-replayed" not in answer["headers"]
    check_rings_once(system, body["callId"])


@pytest.mark.parametrize("headers", [{}, KEY], ids=["without_a_key", "with_a_key"])
def test_a_write_that_the_sdk_sent_twice_is_one_call(system: System, headers: dict[str, str]) -> None:
    """The first got through and its answer was lost; the second meets its own record."""
    tries = []

    def write_and_lose_the_answer(request: Any, **_: Any) -> None:
        tries.append(request)
        if len(tries) == 1:
            system.dynamodb.put_item(**json.loads(request.body))
            raise ReadTimeoutError(endpoint_url="https://dynamodb")

    with at(calls_client(system), "before-send.dynamodb.PutItem", write_and_lose_the_answer):
        answer = system.post(CALL, headers)
    assert len(tries) == 2
    assert "idempotency-replayed" not in answer["headers"]
    [record] = records(system)
    assert body_of(answer)["jobId"] == record["jobId"]["S"]
    check_rings_once(system, body_of(answer)["callId"])


def check_unavailable(answer: dict[str, Any]) -> None:
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (503, "unavailable")
    assert answer["headers"]["retry-after"].isdigit()


def test_a_write_that_was_not_made_is_a_503_and_heals_on_repeat(system: System) -> None:
    def lose_the_request(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://dynamodb")

    with at(calls_client(system), "before-send.dynamodb.PutItem", lose_the_request):
        check_unavailable(system.post(CALL, KEY))
    assert records(system) == []
    check_rings_once(system, body_of(system.post(CALL, KEY))["callId"])


def test_a_queue_that_is_down_is_a_503_and_nothing_is_written(system: System) -> None:
    def lose_the_request(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://sqs")

    client = system.modules["initiate_call"].acceptor.dial_queue._client
    with at(client, "before-send.sqs.SendMessage", lose_the_request):
        check_unavailable(system.post(CALL, KEY))
    assert (records(system), system.messages("DialQueue")) == ([], 0)
    check_rings_once(system, body_of(system.post(CALL, KEY))["callId"])


def test_a_table_that_is_down_is_a_503_and_nothing_is_sent(system: System) -> None:
    def lose_the_request(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://dynamodb")

    with at(calls_client(system), "before-send.dynamodb.GetItem", lose_the_request):
        check_unavailable(system.post(CALL, KEY))
    assert (records(system), system.messages("DialQueue")) == ([], 0)
