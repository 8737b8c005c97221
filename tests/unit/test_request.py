"""The body of a request to place a call: every bad one of the table, and the edges of what is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from initiate_call.request import CallRequest, canonical, parse_request, read_body
from shared.callback_url import Policy
from shared.errors import RequestRefusedError
from tests.bad_requests import BAD_REQUESTS, BadRequest

# Other codes are about the caller's headers and workspace.
OF_THE_BODY = {
    "invalid_json",
    "too_large",
    "invalid_request",
    "invalid_number",
    "invalid_url",
    "invalid_variables",
}


def parse(body: bytes) -> CallRequest:
    return parse_request(read_body(body), Policy())


def parsed(**fields: Any) -> CallRequest:
    return parse(json.dumps({"to": "+12025550123", "call_agent_id": "agent-1"} | fields).encode())


@pytest.mark.parametrize(
    "bad",
    [
        bad
        for bad in BAD_REQUESTS
        if bad.code in OF_THE_BODY and not bad.headers and not bad.name.startswith("to its own")
    ],
    ids=lambda bad: bad.name,
)
def test_a_bad_body_is_refused_with_every_wrong_field(bad: BadRequest) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        parse(bad.body)
    refused = caught.value
    assert (refused.status, refused.code) == (bad.status, bad.code)
    assert tuple(error.field for error in refused.errors) == bad.fields
    if bad.fields:
        assert refused.message == "; ".join(f"{error.field} {error.message}" for error in refused.errors)


def test_what_is_not_given_has_its_default() -> None:
    assert parsed().model_dump() == {
        "to": "+12025550123",
        "call_agent_id": "agent-1",
        "callback_url": None,
        "dynamic_variables": None,
        "metadata": None,
        "from_number": None,
        "ring_timeout_seconds": 40,
        "max_duration_seconds": 1800,
    }


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("ring_timeout_seconds", 10, 10),
        ("ring_timeout_seconds", 60.0, 60),
        ("ring_timeout_seconds", None, 40),
        ("max_duration_seconds", 30, 30),
        ("max_duration_seconds", 14_400, 14_400),
        ("max_duration_seconds", None, 1800),
        ("callback_url", "", None),
        ("callback_url", None, None),
        ("callback_url", "https://example.com/", "https://example.com/"),
        ("call_agent_id", "A", "A"),
        ("call_agent_id", "z" * 128, "z" * 128),
        ("dynamic_variables", {}, {}),
        ("dynamic_variables", {"k": "a\tb\nc\rd", "k2": None, "k3": True, "k4": 1.5}, ...),
        ("dynamic_variables", {"k" * 128: 1}, ...),
        ("dynamic_variables", {str(n): n for n in range(100)}, ...),
        ("metadata", {"a": [{"b": "\u0000"}]}, ...),
    ],
)
def test_the_edges_of_what_is_taken(field: str, value: Any, read: Any) -> None:
    assert getattr(parsed(**{field: value}), field) == (value if read is ... else read)


@pytest.mark.parametrize("loopback", [True, False])
def test_where_a_callback_may_go_is_the_callers_policy(loopback: bool) -> None:
    url = "http://localhost:8080/in"
    fields = read_body(json.dumps({"to": "+12025550123", "call_agent_id": "a", "callback_url": url}).encode())
    if loopback:
        assert parse_request(fields, Policy(loopback=True)).callback_url == url
    else:
        with pytest.raises(RequestRefusedError, match="callback_url"):
            parse_request(fields, Policy())


@pytest.mark.parametrize(("length", "taken"), [(2048, True), (2049, False)])
def test_the_longest_callback(length: int, taken: bool) -> None:
    url = "https://example.com/".ljust(length, "x")
    if taken:
        assert parsed(callback_url=url).callback_url == url
    else:
        with pytest.raises(RequestRefusedError, match="2,048"):
            parsed(callback_url=url)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({str(n): n for n in range(101)}, "must have at most 100 keys"),
        ({"": 1}, "keys must have 1 to 128 characters"),
        ({"k" * 129: 1}, "keys must have 1 to 128 characters"),
        ({"k": []}, "'k' must be a string, a number, a boolean or null"),
        ({"k": "\u0000"}, "'k' holds a control character"),
        ({"k\u0000": 1}, "'k\u0000' holds a control character"),
    ],
)
def test_what_variables_may_not_hold(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        parsed(dynamic_variables=variables)
    assert (caught.value.code, caught.value.message) == ("invalid_variables", f"dynamic_variables {message}")


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
@pytest.mark.parametrize("more", [0, 1])
def test_context_and_metadata_take_32_kib_together(character: str, more: int) -> None:
    """In bytes, as they are written."""
    size = len(character.encode())
    start, middle, end = '{"to":"+12025550123","call_agent_id":"a","dynamic_variables":', ',"metadata":', "}"
    left = 32 * 1024 - len('{"a":""}{"b":""}') - 1000 * size
    first, rest = (
        character * 1000,
        character * (left // size) + "x" * (left % size + more),
    )
    body = start + f'{{"a":"{first}"}}' + middle + f'{{"b":"{rest}"}}' + end
    if not more:
        assert parse(body.encode()).metadata
        return
    with pytest.raises(RequestRefusedError) as caught:
        parse(body.encode())
    assert [error.field for error in caught.value.errors] == ["dynamic_variables", "metadata"]


def test_an_idempotency_key_covers_values_and_not_their_order_or_white_space() -> None:
    def text(body: bytes) -> str:
        return canonical(read_body(body))

    assert text(b'{"a": {"x":1,"y":2}, "b":3}') == text(b' {"b":3,"a":{"y":2,"x":1}}')
    different = {
        text(b'{"a":%s}' % value) for value in (b"1", b"1.0", b"1e0", b"1e400", b"1e500", b'"1"', b"null")
    }
    assert len(different) == 7
