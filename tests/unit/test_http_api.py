"""Headers that are repeated by a proxy or a retry, bodies, and the answers for errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.api_gateway import joined
from shared.authorization import api_key, bearer_token
from shared.errors import FieldError, QueueError, RequestRefusedError, StoreError, StoreUnclearError
from shared.http_api import Answer, Event, answer, body_bytes, check_idempotency_key, header, respond

NAMES = ("authorization", "content-encoding", "content-type", "idempotency-key", "x-api-key", "x-workspace-id")


def event(headers: dict[str, Any]) -> dict[str, Any]:
    return {"headers": headers, "body": "", "isBase64Encoded": False}


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ("k", "k"),
        ("k,k", "k"),
        ("k, k", "k"),
        ("k ,\tk,  k", "k"),
        (" k ", "k"),
        ("k,", "k"),
        (",k", "k"),
        ("k,,k", "k"),
        ("order 7,order 7", "order 7"),
        ('"k","k"', '"k"'),
        ("Bearer a,Bearer a", "Bearer a"),
        ("", ""),
        (",", ""),
        (" , ", ""),
    ],
)
def test_equal_values_count_once_and_empty_ones_not_at_all(sent: str, value: str) -> None:
    for name in NAMES:
        assert header(event({name: sent}), name) == value


@pytest.mark.parametrize(
    "sent", ["a,b", "a, b", "a,a,b", "a,A", "a b,a  b", '"a,b"', "Bearer a,Bearer b", "Bearer a,a"]
)
def test_different_values_are_refused_and_the_header_is_named(sent: str) -> None:
    for name in NAMES:
        with pytest.raises(RequestRefusedError) as refused:
            header(event({name: sent}), name)
        assert (refused.value.status, refused.value.code) == (400, "conflicting_header")
        assert name in refused.value.message


def test_a_name_in_another_case_is_the_same_header() -> None:
    assert header(event({"Idempotency-Key": "k"}), "idempotency-key") == "k"
    assert (
        header(
            event({"Idempotency-Key": "k", "IDEMPOTENCY-KEY": "k", "idempotency-key": "k,k"}), "idempotency-key"
        )
        == "k"
    )
    with pytest.raises(RequestRefusedError, match="x-workspace-id"):
        header(event({"X-Workspace-Id": "a", "x-workspace-id": "b"}), "x-workspace-id")


@pytest.mark.parametrize("headers", [{}, None, {"other": "k"}, {"idempotency-key": None}, {"idempotency-key": 1}])
def test_a_header_that_is_not_there_is_none(headers: Any) -> None:
    assert header(event(headers), "idempotency-key") is None


def test_a_header_that_is_not_used_may_hold_what_it_likes() -> None:
    digest = 'Digest username="a", realm="b"'
    assert api_key(event({"x-api-key": "rk_a", "authorization": digest})) == "rk_a"
    assert bearer_token(event({"authorization": "Bearer a, Bearer a"})) == "a"


def test_a_body_with_an_encoding_is_refused_and_any_type_is_read() -> None:
    for name in ("gzip", "br", "GZIP", "gzip, gzip"):
        with pytest.raises(RequestRefusedError, match="Content-Encoding") as refused:
            body_bytes(event({"content-encoding": name}))
        assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")
    for headers in (
        {},
        {"content-encoding": ""},
        {"content-encoding": "Identity,Identity"},
        {"content-type": "text/x"},
    ):
        assert body_bytes(event(headers) | {"body": "{}"}) == b"{}"


@pytest.mark.parametrize(
    ("route", "with_key"),
    [
        ("POST /v1/api/call", True),
        ("POST /v1/api/call/{callId}/events", True),
        ("GET /v1/api/call", False),
        ("GET /v1/api/call/{callId}", False),
        ("POST /v1/api/call/{callId}/cancel", False),
        ("GET /v1/api/call/{callId}/deliveries", False),
        ("POST /v1/api/call/{callId}/deliveries/{sequence}/replay", False),
        ("POST /v1/livekit/events", False),
    ],
)
def test_503_names_the_idempotency_key_only_on_routes_that_take_one(route: str, with_key: bool) -> None:
    def fail(event: Any) -> dict[str, Any]:
        raise StoreError("down")

    answer = respond(event({}) | {"routeKey": route}, fail)
    assert answer["statusCode"] == 503
    assert ("Idempotency-Key" in answer["body"]) is with_key


VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=","), max_size=8)


@given(VALUES, st.lists(st.sampled_from(["idempotency-key", "Idempotency-Key", "IDEMPOTENCY-KEY"]), min_size=1))
def test_copies_joined_by_the_local_front_are_one_value(value: str, names: list[str]) -> None:
    sent = joined([(name, value) for name in names])
    assert len(sent) == 1
    assert header(event(sent), "idempotency-key") == value.strip(" ")


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_copies_are_one_value_or_refused(values: list[str]) -> None:
    different = {value.strip(" ") for value in values} - {""}
    sent = event(joined([("X-Api-Key", value) for value in values]))
    if len(different) > 1:
        with pytest.raises(RequestRefusedError):
            header(sent, "x-api-key")
    else:
        assert header(sent, "x-api-key") == "".join(different)


@pytest.mark.parametrize("key", ["k", "k" * 255, "~", "with a space"])
def test_a_key_may_be_any_printable_ascii_of_1_to_255(key: str) -> None:
    check_idempotency_key(key)


@pytest.mark.parametrize("key", ["", "k" * 256, "\x7f", "k\n", "\u00e9"])
def test_any_other_key_is_refused(key: str) -> None:
    with pytest.raises(RequestRefusedError, match="Idempotency-Key") as refused:
        check_idempotency_key(key)
    assert (refused.value.status, refused.value.code) == (400, "invalid_idempotency_key")


def test_base64_is_read_whole_or_refused() -> None:
    assert body_bytes({"body": "w6k=", "isBase64Encoded": True}) == "é".encode()
    for text in ("w6k", "w6k=\n", "w6k=!", "é"):
        with pytest.raises(RequestRefusedError) as refused:
            body_bytes({"body": text, "isBase64Encoded": True})
        assert (refused.value.status, refused.value.code) == (400, "invalid_body")


REQUEST = {"requestContext": {"requestId": "r-1"}}


def responded(outcome: Answer | Exception) -> tuple[int, dict[str, str], str]:
    """What `respond` makes of a function that returns or raises this: status, headers, body."""

    def function(event: Event) -> Answer:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    result = respond(REQUEST, function)
    return result["statusCode"], result["headers"], result["body"]


def test_an_answer_is_json_with_the_requests_id() -> None:
    headers = {"content-type": "application/json", "x-request-id": "r-1"}
    assert responded(answer(200, {"a": [1, "é"]})) == (200, headers, '{"a":[1,"\\u00e9"]}')
    assert responded(answer(201, '{ "as": "written"}')) == (201, headers, '{ "as": "written"}')
    assert responded(answer(200, {}, {"k": "v"})) == (200, headers | {"k": "v"}, "{}")


def test_a_refusal_tells_code_fields_and_headers() -> None:
    headers = {"content-type": "application/json", "x-request-id": "r-1"}
    refused = RequestRefusedError(422, "wrong", "to is wrong", [FieldError("to", "is wrong")], {"k": "v"})
    status, sent, body = responded(refused)
    assert (status, sent) == (422, headers | {"k": "v"})
    told = {"status": "error", "message": "to is wrong", "code": "wrong"}
    assert json.loads(body) == told | {"errors": [{"field": "to", "message": "is wrong"}]}
    assert json.loads(responded(RequestRefusedError(404, "wrong", "to is wrong"))[2]) == told, "no empty list"


@pytest.mark.parametrize("down", [StoreError("x"), StoreUnclearError("x"), QueueError("x")])
def test_what_cannot_be_stored_or_sent_is_to_be_repeated(down: Exception) -> None:
    status, headers, body = responded(down)
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    assert headers["retry-after"] == "2"
    assert headers["x-request-id"] == "r-1"
