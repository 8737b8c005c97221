"""What a client is told of a request that does not fit its model."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import pytest
from pydantic import Field

from calls_api.reports import parse_report
from initiate_call.request import parse_request, read_body
from shared.callback_url import Policy
from shared.errors import FieldError, RequestRefusedError
from shared.request_model import NullIsAbsent, RequestModel, validate


class Part(RequestModel):
    count: int


class Example(RequestModel, extra="forbid"):
    parts: list[Part]
    word: Annotated[str, Field(pattern="^[a-z]+$")] = "none"
    limit: Annotated[int, NullIsAbsent()] = 7


def told(refused: RequestRefusedError) -> list[tuple[str, str]]:
    return [(error.field, error.message) for error in refused.errors]


def test_all_wrong_fields_come_at_once_in_the_models_order_and_unknown_ones_last_in_the_requests() -> None:
    body = {
        "z": 1,
        "max_duration_seconds": "1800",
        "ring_timeout_seconds": 9,
        "from": "x",
        "from_number": "+12025550123",
        "metadata": [],
        "dynamic_variables": {"a{b}'": []},
        "callback_url": 7,
        "a" * 129: None,
        "call_agent_id": None,
    }
    with pytest.raises(RequestRefusedError) as caught:
        parse_request(read_body(json.dumps(body).encode()), Policy())
    assert told(caught.value) == [
        ("to", "is required"),
        ("call_agent_id", "must be a string of 1 to 128 of A-Z, a-z, 0-9, _ and -"),
        ("callback_url", "must be a string"),
        ("dynamic_variables", "'a{b}'' must be a string, a number, a boolean or null"),
        ("metadata", "must be an object"),
        ("from", "must be a phone number in E.164: +, then 7 to 15 digits, the first not 0"),
        ("ring_timeout_seconds", "must be a whole number from 10 to 60"),
        ("max_duration_seconds", "must be a whole number from 30 to 14400"),
        ("z", "is not a field of this request"),
        ("from_number", "is not a field of this request"),
        ("a" * 128, "is not a field of this request"),
    ]
    assert caught.value.message == "; ".join(f"{field} {message}" for field, message in told(caught.value))


def test_what_is_wrong_inside_a_report_is_named_by_its_path() -> None:
    turns: list[Any] = [1, {"speaker": "other", "text": ""}, {"speaker": "agent", "text": "a", "more": 1}, {}]
    with pytest.raises(RequestRefusedError) as caught:
        parse_report(json.dumps({"type": "agent.transcript", "data": {"turns": turns}}).encode())
    assert told(caught.value) == [
        ("data.turns.0", "must be an object"),
        ("data.turns.1.speaker", "must be one of agent, callee"),
        ("data.turns.1.text", "must not be empty"),
        ("data.turns.3.speaker", "is required"),
        ("data.turns.3.text", "is required"),
    ]


def test_a_report_of_a_wrong_type_is_not_told_of_its_data() -> None:
    """Its data is checked by the type that it names, if that is all right."""
    with pytest.raises(RequestRefusedError) as caught:
        parse_report(b'{"type":"agent.summary","data":{},"more":1}')
    assert told(caught.value) == [("more", "is not a field of a report")]


@pytest.mark.parametrize("values", [{"parts": []}, {"parts": [], "limit": None}])
def test_null_gives_a_field_its_default(values: dict[str, Any]) -> None:
    model, errors = validate(Example, values)
    assert errors == []
    assert model == Example(parts=[], limit=7)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"parts": ()}, "parts"),
        ({"parts": [{"count": "1"}]}, "parts.0.count"),
        ({"parts": [{"count": 1.0}]}, "parts.0.count"),
        ({"parts": [{"count": True}]}, "parts.0.count"),
        ({"parts": [], "word": 1}, "word"),
        ({"parts": [], "word": None}, "word"),
        ({"parts": [], "limit": "7"}, "limit"),
    ],
)
def test_no_value_is_converted(values: dict[str, Any], field: str) -> None:
    model, errors = validate(Example, values)
    assert (model, [error.field for error in errors]) == (None, [field])


def test_an_error_that_has_no_message_of_ours_is_told_in_pydantics_words() -> None:
    _, [error] = validate(Example, {"parts": [], "word": "A"})
    assert error == FieldError("word", "String should match pattern '^[a-z]+$'")


def test_a_field_is_named_from_outside_and_not_at_length() -> None:
    _, [error] = validate(Example, {"parts": [], "x" * 200: 1}, unknown="is unknown", below="data")
    assert dataclasses.astuple(error) == ("data." + "x" * 123, "is unknown", "invalid_request")
