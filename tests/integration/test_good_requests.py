"""Valid requests in every form are accepted, and their values come back unchanged."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
from typing import Any

import pytest

from shared.callback_url import Policy
from tests.system import API_KEY, Context, System, demo_workspace, http_event

CREDENTIALS = {"x-workspace-id": "demo", "x-api-key": API_KEY}
SMALL = {"to": "+12025550123", "call_agent_id": "agent-1"}


def accepted(answer: dict[str, Any]) -> str:
    """The call's id."""
    body = json.loads(answer["body"])
    assert (answer["statusCode"], body["status"]) == (200, "success"), body
    assert list(body) == ["status", "message", "callId", "roomName", "jobId"]
    call_id = body["callId"]
    assert isinstance(call_id, str)
    return call_id


@pytest.mark.parametrize(
    "number",
    [
        "+1 202 555 0123",
        "+1-202-555-0123",
        "+1.202.555.0123",
        "+1 (202) 555-0123",
        "(+1) 202 555 0123",
        " +12025550123 ",
        "+12025550123",
    ],
)
def test_punctuation_in_a_number_is_taken_away(system: System, number: str) -> None:
    call_id = accepted(system.post(SMALL | {"to": number}))
    assert system.item(call_id)["to"] == "+12025550123"


@pytest.mark.parametrize("text", ["+12025550123", " 12025550123", "+1 (202) 555-0123", " +1.202.555.0123 "])
def test_the_list_takes_a_number_as_a_call_does(system: System, text: str) -> None:
    """A plus that was not written %2B arrives as a space."""
    call_id = accepted(system.post(SMALL))
    accepted(system.post(SMALL | {"to": "+12025550124"}))
    found = system.api("GET /v1/api/call", query={"to": text})["json"]["calls"]
    assert [call["callId"] for call in found] == [call_id]


@pytest.mark.parametrize("number", ["+1234567890", "+1234567", "+123456789012345"])
def test_numbers_from_seven_to_fifteen_digits_are_accepted(system: System, number: str) -> None:
    call_id = accepted(system.post(SMALL | {"to": number}))
    assert system.item(call_id)["to"] == number


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "",
        "nonsense",
    ],
)
@pytest.mark.parametrize("in_base64", [False, True])
def test_the_content_type_is_not_looked_at(system: System, content_type: str | None, in_base64: bool) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    accepted(system.post(SMALL | {"metadata": {"name": "Zoë"}}, headers, in_base64=in_base64))


@pytest.mark.parametrize(
    "optional",
    [
        {
            "callback_url": None,
            "dynamic_variables": None,
            "metadata": None,
            "from": None,
            "ring_timeout_seconds": None,
            "max_duration_seconds": None,
        },
        {"callback_url": ""},
        {},
    ],
)
def test_null_and_an_empty_url_mean_absent(system: System, optional: dict[str, Any]) -> None:
    call_id = accepted(system.post(SMALL | optional))
    item = system.item(call_id)
    assert (item["ringTimeoutSeconds"], item["maxDurationSeconds"]) == (40, 1800)
    shown = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert [shown[name] for name in ("callbackUrl", "dynamicVariables", "metadata", "from")] == [None] * 4


@pytest.mark.parametrize(
    ("field", "text", "stored"),
    [
        ("ring_timeout_seconds", "10", 10),
        ("ring_timeout_seconds", "60", 60),
        ("ring_timeout_seconds", "40.0", 40),
        ("ring_timeout_seconds", "4e1", 40),
        ("max_duration_seconds", "30", 30),
        ("max_duration_seconds", "14400", 14_400),
        ("max_duration_seconds", "1.8e3", 1800),
    ],
)
def test_bounds_are_included_and_a_whole_number_may_be_written_in_any_way(
    system: System, field: str, text: str, stored: int
) -> None:
    body = f'{{"to":"+12025550123","call_agent_id":"agent-1","{field}":{text}}}'.encode()
    item = system.item(accepted(system.post(body)))
    assert item["ringTimeoutSeconds" if field.startswith("ring") else "maxDurationSeconds"] == stored


@pytest.mark.parametrize("agent", ["a", "A-1_b", "-", "0" * 128])
def test_agent_ids_of_every_allowed_shape(system: System, agent: str) -> None:
    answer = system.post(SMALL | {"call_agent_id": agent})
    accepted(answer)
    room = json.loads(answer["body"])["roomName"]
    suffix = room.removeprefix(f"{agent}-")
    assert (len(room), len(suffix)) == (len(agent) + 11, 10)
    assert suffix.isalnum()
    assert suffix == suffix.lower()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "https://example.com:443/hook",
        "HTTPS://Example.COM/Hook",
        "https://hooks.example.co.uk/a/b?c=d&e=%20f#g",
        "https://xn--bcher-kva.example/hook",
        "https://my_host.example.com/hook",
        "https://1e100.net/",
        "https://example.com/grüße?größe=ß",
        "https://example.com/user@host",
        "https://example.com/" + "x" * (2048 - len("https://example.com/")),
    ],
)
def test_public_https_urls_are_accepted_where_loopback_is_not(system: System, url: str) -> None:
    module = system.modules["initiate_call"]
    before = module.acceptor
    module.acceptor = dataclasses.replace(before, callback_policy=Policy())
    try:
        call_id = accepted(system.post(SMALL | {"callback_url": url}))
    finally:
        module.acceptor = before
    assert system.item(call_id)["callbackUrl"] == url


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": API_KEY},
        {"authorization": f"Bearer {API_KEY}"},
        {"authorization": f"bearer {API_KEY}"},
        {"authorization": f"BEARER   {API_KEY} "},
        {"x-api-key": API_KEY, "authorization": "Bearer another"},
        {"x-api-key": API_KEY, "authorization": "Basic another"},
    ],
)
def test_the_key_may_come_in_either_header(system: System, headers: dict[str, str]) -> None:
    event = http_event("POST /v1/api/call", json.dumps(SMALL).encode(), {"x-workspace-id": "demo"} | headers)
    accepted(system.handlers["initiate_call"](event, Context(10)))


@pytest.mark.parametrize("key", ["k", "~" * 255, 'a;b;c="d"', "order 7/2026", ",".join(["k" * 255] * 3)])
def test_idempotency_keys_of_every_allowed_shape(system: System, key: str) -> None:
    accepted(system.post(SMALL, {"idempotency-key": key}))


def test_a_body_of_exactly_64_kib_with_a_context_of_exactly_32_kib(system: System) -> None:
    variables = '{"a":"' + "v" * (16 * 1024 - len('{"a":""}')) + '"}'
    metadata = '{"b":"' + "m" * (16 * 1024 - len('{"b":""}')) + '"}'
    head = f'{{"to":"+12025550123","call_agent_id":"a","dynamic_variables":{variables},"metadata":{metadata}}}'
    body = head.encode() + b" " * (64 * 1024 - len(head))
    call_id = accepted(system.post(body))
    item = system.item(call_id)
    assert (item["dynamicVariables"], item["metadata"]) == (variables, metadata)


def test_32_levels_are_accepted(system: System) -> None:
    nested = "[" * 30 + "]" * 30
    text = '{"a":' + nested + "}"
    call_id = accepted(
        system.post(f'{{"to":"+12025550123","call_agent_id":"a","metadata":{text}}}'.encode(), in_base64=True)
    )
    assert system.item(call_id)["metadata"] == text


VARIABLES = {
    "the names of the example": (
        '{"firstName":"Ada","lastName":"Lovelace","Zipcode":"02139","address":"1 Main St","email":"a@example.com"}'
    ),
    "every type": '{"text":"a","whole":1,"one":1.0,"small":-1.5e-7,"yes":true,"no":false,"nothing":null}',
    "odd keys": '{" ":1,"a.b":2,"{x}":3,"$ref":4,"🔑":5,"__proto__":6,"key with spaces":7}',
    "line breaks and tabs": '{"note":"one\\ntwo\\r\\n\\tthree"}',
    "numbers too large for a computer": '{"huge":1e400,"long":' + "9" * 4000 + "}",
    "a hundred": "{" + ",".join(f'"k{n}":{n}' for n in range(100)) + "}",
    "a key of 128 characters": '{"' + "k" * 128 + '":""}',
    "nothing": "{}",
    "with white space": '{ "a" : 1 ,\n\t"b" : 2 }',
}

METADATA = {
    "nothing": "{}",
    "empty things": '{"a":{},"b":[],"c":"","d":null,"":0}',
    "white space": ' {\n\t"a" : [ 1 , 2 ] \r\n} ',
    "big integers": '{"a":12345678901234567890123456789,"b":-9007199254740993,"c":' + "7" * 3000 + "}",
    "one is not 1.0": '{"a":1,"b":1.0,"c":1.00,"d":1e0,"e":1E+0,"f":-0,"g":-0.0}',
    "too large and too small": '{"a":1e400,"b":-1e400,"c":1e-400,"d":0.1000000000000000055511151231257827}',
    "the order of keys": '{"z":1,"a":2,"m":{"10":1,"9":2,"1":3}}',
    "emoji": '{"a":"📞👩🏽‍🚀","🔑":"é"}',
    "the same, escaped": '{"a":"\\ud83d\\udcde","\\ud83d\\udd11":"\\u00e9"}',
    "escapes": '{"a":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f"}',
    "a plain DEL and line separators": '{"a":"\x7f\u2028\u2029\u0085"}',
    "other scripts": '{"人":"こんにちは","el":"ελληνικά","עב":"שלום"}',
    "HTML and templates": '{"a":"<script>alert(1)</script>","b":"{{firstName}} ${x} %s {0}"}',
    "keys of ours": '{"callId":"x","status":"y","metadata":{"metadata":{}},"data":null,"id":1}',
    "nested": '{"a":[[[[{"b":[{"c":{"d":[null,true,false]}}]}]]]]}',
}


def test_metadata_comes_back_byte_for_byte(system: System) -> None:
    """In GET, in every webhook's body, in the webhook's header, and at the agent's."""
    check_verbatim(system, [('{"firstName":"Ada"}', metadata) for metadata in METADATA.values()], in_base64=True)


def test_dynamic_variables_come_back_byte_for_byte(system: System) -> None:
    check_verbatim(system, [(variables, '{"n":1}') for variables in VARIABLES.values()], in_base64=False)


@pytest.mark.parametrize("number", ["9" * 4300, "-" + "9" * 4300, "0." + "9" * 4300, "1e400", "9" * 4300 + ".5"])
def test_the_longest_numbers_are_kept_and_every_reader_reads_them(system: System, number: str) -> None:
    text = f'{{"a":[{{"{"9" * 5000}":{number}}},"{"9" * 5000}"]}}'
    body = f'{{"to":"+12025550123","call_agent_id":"a","metadata":{text},"dynamic_variables":{{"a":{number}}}}}'
    call_id = accepted(system.post(body.encode()))
    item = system.item(call_id)
    assert (item["metadata"], item["dynamicVariables"]) == (text, f'{{"a":{number}}}')
    shown = system.api("GET /v1/api/call/{callId}", call_id)
    assert shown["json"]["metadata"] == json.loads(text)
    assert f'"metadata":{text},' in shown["body"]


@pytest.mark.parametrize(
    "text", ["+49 (0) 30 12345678", "+49030 12345678", "+49 30 12345678", "+49(030)123456-78", "+493012345678"]
)
def test_every_spelling_of_a_number_is_one_number(system: System, text: str) -> None:
    system.workspaces.put(
        demo_workspace(
            allowed_calling_codes=frozenset({"+1", "+49"}), from_numbers=("+493087654321", "+15550009999")
        )
    )
    answer = system.post(SMALL | {"to": text, "from": "+49 (0)30 87654321"})
    item = system.item(accepted(answer))
    assert (item["to"], item["fromNumber"]) == ("+493012345678", "+493087654321")
    assert json.loads(answer["body"])["message"].endswith("to number +493012345678")
    # The list's filter takes them all, with the plus as it is and as a space.
    for spelled in (text, "+493012345678", " 49 (0)30 12345678", " 49030 12345678"):
        found = system.api("GET /v1/api/call", query={"to": spelled})["json"]["calls"]
        assert [call["to"] for call in found] == ["+493012345678"], spelled


def test_a_call_from_another_number_than_its_own_is_placed(system: System) -> None:
    system.workspaces.put(demo_workspace(from_numbers=("+15550009999", "+15550008888")))
    for to, sender in (("+15550009999", "+15550008888"), ("+15550008888", None)):
        accepted(system.post(SMALL | {"to": to, "from": sender}))
    system.workspaces.put(demo_workspace(workspace_id="none", from_numbers=()))
    accepted(system.post(SMALL | {"to": "+15550009999"}, {"x-workspace-id": "none"}))


def check_verbatim(system: System, contexts: list[tuple[str, str]], *, in_base64: bool) -> None:
    """Places a call with each of these variables and metadata, and looks wherever they come back."""
    system.workspaces.put(demo_workspace(max_concurrent_calls=100))
    calls = {}
    for variables, metadata in contexts:
        body = (
            f'{{"to":"+15550000001","call_agent_id":"agent-1","callback_url":"{system.servers.receiver_url}/hook",'
            f'"metadata":{metadata},"dynamic_variables":{variables}}}'
        )
        call_id = accepted(system.post(body.encode(), in_base64=in_base64))
        calls[call_id] = (variables.strip(" \n\r\t"), metadata.strip(" \n\r\t"))
    system.run_until(lambda: all(len(system.received(call_id)) == 3 for call_id in calls))
    found = system.http.get(f"{system.servers.livekit_url}/_standin/dispatches").json()["dispatches"]
    dispatches = {json.loads(dispatch["metadata"])["callId"]: dispatch["metadata"] for dispatch in found}
    for call_id, (variables, metadata) in calls.items():
        shown = system.api("GET /v1/api/call/{callId}", call_id)["body"]
        assert f'"metadata":{metadata},' in shown
        assert f'"dynamicVariables":{variables},' in shown
        assert f'"metadata":{metadata},' in dispatches[call_id]
        assert f'"dynamicVariables":{variables},' in dispatches[call_id]
        for event in system.received(call_id):
            assert event["verified"]
            assert event["body"].endswith(f',"metadata":{metadata}}}')
            assert "dynamic_variables" not in event["body"]
            header = event["headers"]["metadata"]
            assert header.isascii()
            assert header.isprintable()
            assert same_json(header, metadata)


def same_json(one: str, other: str) -> bool:
    """Same values, numbers by their digits."""
    read = [json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=tuple) for text in (one, other)]
    return bool(read[0] == read[1])


def test_a_header_of_metadata_that_fits_is_sent_and_one_that_does_not_is_not(system: System) -> None:
    for size, there in ((4096, True), (4097, False)):
        metadata = {"a": "m" * (size - len('{"a":""}'))}
        call_id = system.place("+15550000001", metadata=metadata)
        system.run_until(functools.partial(told_all, system, call_id))
        assert all(("metadata" in event["headers"]) is there for event in system.received(call_id))
        assert all(json.loads(event["body"])["metadata"] == metadata for event in system.received(call_id))


def told_all(system: System, call_id: str) -> bool:
    return len(system.received(call_id)) == 3


def test_base64_as_api_gateway_writes_it_is_read(system: System) -> None:
    event = http_event("POST /v1/api/call", headers=CREDENTIALS)
    body = base64.b64encode(json.dumps(SMALL).encode()).decode()
    accepted(system.handlers["initiate_call"](event | {"body": body, "isBase64Encoded": True}, Context(10)))
