"""Invalid requests are refused with every wrong field named, and write nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared.callback_url import Policy
from tests.bad_requests import BAD_CALL_IDS, BAD_QUERIES, BAD_REQUESTS, SECRET, BadQuery, BadRequest
from tests.system import API_KEY, Context, System, http_event


@pytest.fixture(scope="module")
def strict_system(whole_system: System) -> Iterator[System]:
    """As on AWS: webhooks go to public addresses only. One serves all these tests, and is at last as it was."""
    whole_system.reset()
    module = whole_system.modules["initiate_call"]
    before, untouched = module.acceptor, state(whole_system)
    module.acceptor = dataclasses.replace(before, callback_policy=Policy())
    yield whole_system
    module.acceptor = before
    assert state(whole_system) == untouched


def state(system: System) -> Any:
    """Every item of every table, and how many messages each queue holds."""
    tables = {
        name: system.dynamodb.scan(TableName=name, ConsistentRead=True)["Items"]
        for name in ("CallsTable", "WorkspacesTable")
    }
    return tables, {name: system.messages(name) for name in system.queue_urls}


def send(system: System, request: BadRequest) -> dict[str, Any]:
    headers = {"x-workspace-id": "demo", "x-api-key": API_KEY} | dict(request.headers)
    event = http_event(
        "POST /v1/api/call",
        request.body,
        {name: value for name, value in headers.items() if value is not None},
        in_base64=True,
    )
    return system.handlers["initiate_call"](event, Context(10))


def check_refusal(answer: dict[str, Any], status: int, code: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """The answer's body, if it is the contract's, with exactly these fields and a sentence on each."""
    body: dict[str, Any] = json.loads(answer["body"])
    errors = body.get("errors", [])
    assert (answer["statusCode"], body["status"], body["code"]) == (status, "error", code), body
    assert sorted(error["field"] for error in errors) == sorted(fields)
    assert list(body) == ["status", "message", "code"] + (["errors"] if errors else [])
    assert answer["headers"]["content-type"] == "application/json"
    assert answer["headers"]["x-request-id"] == "request-1"
    for error in errors:
        assert error["message"].startswith(("must ", "is ", "'", "belongs ", "keys ")), error
        assert f"{error['field']} {error['message']}" in body["message"]
    assert len(body["message"]) > 10
    return body


@pytest.mark.parametrize("request_", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_and_leaves_nothing(strict_system: System, request_: BadRequest) -> None:
    with strict_system.sent_by_accepting() as asked:
        answer = send(strict_system, request_)
    check_refusal(answer, request_.status, request_.code, request_.fields)
    assert SECRET not in answer["body"]
    assert set(asked) <= {"GetItem"}


def test_the_table_is_a_table() -> None:
    names = [bad.name for bad in BAD_REQUESTS]
    assert len(names) >= 120
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda bad: bad.name)
def test_a_bad_query_is_refused(strict_system: System, query: BadQuery) -> None:
    answer = strict_system.api("GET /v1/api/call", query=dict(query.query))
    check_refusal(answer, 400, "invalid_request", query.fields)


@pytest.mark.parametrize("call_id", BAD_CALL_IDS, ids=lambda text: ascii(text)[:40])
@pytest.mark.parametrize("route", ["GET /v1/api/call/{callId}", "POST /v1/api/call/{callId}/cancel"])
def test_an_id_of_no_call_is_not_found(strict_system: System, route: str, call_id: str) -> None:
    answer = strict_system.api(route, path={"callId": call_id})
    check_refusal(answer, 404, "call_not_found", ())


def test_a_body_that_is_not_what_its_flag_says_is_refused(strict_system: System) -> None:
    for text in ("not base64!", "é", "e30", "====", "\udc80"):
        event = http_event("POST /v1/api/call", headers={"x-workspace-id": "demo", "x-api-key": API_KEY})
        answer = strict_system.handlers["initiate_call"](
            event | {"body": text, "isBase64Encoded": True}, Context(10)
        )
        check_refusal(answer, 400, "invalid_body", ())


def test_half_a_character_in_a_text_body_is_refused(strict_system: System) -> None:
    event = http_event("POST /v1/api/call", headers={"x-workspace-id": "demo", "x-api-key": API_KEY})
    answer = strict_system.handlers["initiate_call"](event | {"body": '{"to":"\udc80"}'}, Context(10))
    check_refusal(answer, 400, "invalid_json", ())


def test_no_body_at_all_is_refused(strict_system: System) -> None:
    event = http_event("POST /v1/api/call", headers={"x-workspace-id": "demo", "x-api-key": API_KEY})
    del event["body"]
    check_refusal(strict_system.handlers["initiate_call"](event, Context(10)), 400, "invalid_json", ())


def test_messages_tell_a_developer_what_to_do(strict_system: System) -> None:
    """A few in full, as a developer reads them."""
    said = {bad.name: json.loads(send(strict_system, bad)["body"])["message"] for bad in BAD_REQUESTS}
    assert said["empty"] == "The body is empty; a JSON object is expected"
    assert said["cut in a string"] == (
        "The body is not a valid JSON object: Unterminated string starting at character 6"
    )
    assert said["a field twice"] == 'The body is not a valid JSON object: duplicate key "to"'
    assert said["two objects"] == "The body is not a valid JSON object: unexpected data after the object"
    assert said["an empty object"] == "to is required; call_agent_id is required"
    assert said["ring_timeout_seconds '9'"] == "ring_timeout_seconds must be a whole number from 10 to 60"
    assert said["call_agent_id 'a b'"] == ("call_agent_id must be a string of 1 to 128 of A-Z, a-z, 0-9, _ and -")
    assert said["variables: a nested object"] == (
        "dynamic_variables 'firstName' must be a string, a number, a boolean or null"
    )
    assert said["a field 'callAgentId'"] == "callAgentId is not a field of this request"
