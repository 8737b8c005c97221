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
        "scheduled_at": None,
        "expires_at": None,
        "purpose": None,
        "time_zone": None,
        "consent": None,
        "dtmf": None,
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
        ("scheduled_at", "2027-01-15T10:00:00.5+01:00", ...),
        ("expires_at", None, None),
        ("purpose", "a", ...),
        ("purpose", "az0_-" * 12 + "b_9-", ...),
        ("purpose", None, None),
        ("time_zone", "America/Argentina/Buenos_Aires", ...),
        ("time_zone", "Etc/UTC", ...),
        ("time_zone", None, None),
        ("dtmf", "0123456789*#ABCDw", ...),
        ("dtmf", "w" * 64, ...),
        ("dtmf", None, None),
        ("consent", None, None),
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


TIME = "2026-01-15T09:00:00Z"
FORM = "must be a date and time with an offset"
DTMF = "must be 1 to 64 of 0-9"
PURPOSE = "must be the name of a policy"
ZONE = "must be an IANA time zone"
NOT_TIMES = [
    (1_800_000_000, "must be a string"),
    ("", FORM),
    ("09:00:00Z", FORM),
    ("2027-01-15T09:00:00", FORM),
    ("2027-01-15T09:00:60Z", "must not be a leap second"),
    ("2027-01-15T09:00:00+14:01", "must have an offset of at most 14:00"),
    ("2027-02-30T09:00:00Z", "must be a date and time that exists"),
]
NOT_PURPOSES = ["", "Sales", "1st", "a b", "-", "a" * 65, "sales\n", 7, ["a"]]
NOT_ZONES = ["", "america/new_york", "EST5EDT4", "Factory", "Mars/Base", "+01:00", "../etc/passwd"]
NOT_TONES = ["", "a", "E", "W", "1,2", "1 2", "1" * 65, "1\n", 12, "\u0661"]


@pytest.mark.parametrize(
    ("field", "value", "code", "message"),
    [
        *[("scheduled_at", value, "invalid_request", message) for value, message in NOT_TIMES],
        *[("expires_at", value, "invalid_request", message) for value, message in NOT_TIMES],
        *[("purpose", value, "invalid_request", PURPOSE) for value in NOT_PURPOSES],
        *[("time_zone", value, "invalid_time_zone", ZONE) for value in NOT_ZONES],
        ("time_zone", 7, "invalid_request", "must be a string"),
        *[("dtmf", value, "invalid_request", DTMF) for value in NOT_TONES],
        ("consent", "yes", "invalid_request", "must be an object"),
        ("consent", [], "invalid_request", "must be an object"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(field: str, value: Any, code: str, message: str) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        parsed(**{field: value})
    refused = caught.value
    assert (refused.status, refused.code, [error.field for error in refused.errors]) == (400, code, [field])
    assert refused.message.startswith(f"{field} {message}")


@pytest.mark.parametrize(
    ("consent", "field"),
    [
        ({"obtained_at": TIME}, "consent.basis"),
        ({"basis": "", "obtained_at": TIME}, "consent.basis"),
        ({"basis": "b" * 129, "obtained_at": TIME}, "consent.basis"),
        ({"basis": "b\u0000", "obtained_at": TIME}, "consent.basis"),
        ({"basis": 1, "obtained_at": TIME}, "consent.basis"),
        ({"basis": "b"}, "consent.obtained_at"),
        ({"basis": "b", "obtained_at": None}, "consent.obtained_at"),
        ({"basis": "b", "obtained_at": "2026-01-15"}, "consent.obtained_at"),
        ({"basis": "b", "obtained_at": TIME, "reference": "r" * 513}, "consent.reference"),
        ({"basis": "b", "obtained_at": TIME, "reference": 5}, "consent.reference"),
        ({"basis": "b", "obtained_at": TIME, "by": "x"}, "consent.by"),
    ],
)
def test_what_is_wrong_with_a_consent_is_named(consent: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        parsed(consent=consent)
    assert [error.field for error in caught.value.errors] == [field]
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("reference", [None, "", "r" * 512])
def test_a_consent(reference: str | None) -> None:
    given = {"basis": "b" * 128, "obtained_at": TIME} | ({} if reference is None else {"reference": reference})
    consent = parsed(consent=given).consent
    assert consent is not None
    assert (consent.basis, consent.obtained_at, consent.reference) == ("b" * 128, TIME, reference)
