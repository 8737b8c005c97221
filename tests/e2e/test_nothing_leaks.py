"""After calls of every kind: no secret, no whole phone number and nothing of a call's content is in any log line,
and in the tables each is only where it has to be."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.dynamo import from_wire
from tests.e2e.client import Client
from tests.e2e.launch import eventually

# Of a range that no other test dials, and whose last digits answer.
NUMBERS = [f"+1555019{n:04d}" for n in range(4)]
# Where a number is needed to dial the call and to report it.
NUMBER_ATTRIBUTES = {"to", "fromNumber", "from"}


@pytest.fixture(scope="module")
def client(stack: dict[str, Any]) -> Iterator[Client]:
    with Client(stack) as client:
        yield client


@pytest.fixture(scope="module")
def marker() -> str:
    """What only these calls' variables, metadata and callback URLs hold."""
    return "private-" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def calls(client: Client, marker: str) -> list[str]:
    """Calls with several outcomes, ended and reported, and requests that are refused."""
    content: dict[str, Any] = {"dynamic_variables": {"firstName": marker}, "metadata": {"customer": marker}}
    url = f"{client.info['receiverUrl']}/hook?token={marker}"
    placed = [client.place(number, callback_url=url, **content) for number in NUMBERS[:3]]
    placed.append(client.place("+15550000001", callback_url=url, **content))
    # A name that does not resolve, so that an error is logged at every attempt.
    placed.append(
        client.place(NUMBERS[3], callback_url=f"https://no-such-name.invalid/hook?token={marker}", **content)
    )
    refused = [
        client.post(NUMBERS[0], **content, unknown=marker),
        client.post(NUMBERS[0], callback_url=f"http://10.0.0.1/{marker}"),
        client.api.post("/v1/api/call", content=b"{" + marker.encode(), headers={"x-api-key": marker}),
        client.api.get(f"/v1/api/call/{placed[0]}", headers={"x-api-key": client.info["apiKey"][:-1]}),
        client.api.post("/v1/livekit/events", json={}, headers={"authorization": f"Bearer {marker}"}),
    ]
    assert all(400 <= answer.status_code < 500 for answer in refused), [answer.text for answer in refused]
    assert all(client.info["apiKey"] not in answer.text for answer in refused)
    for call_id in placed:
        client.api.post(f"/v1/api/call/{call_id}/cancel")
        eventually(lambda call_id=call_id: client.call(call_id)["endedAt"], "the call ends")  # type: ignore[misc]
    for call_id in placed[:4]:
        eventually(
            lambda call_id=call_id: "call.ended" in {event["type"] for event in client.received(call_id)},  # type: ignore[misc]
            "the end is told",
        )
    return placed


def forbidden(client: Client, marker: str) -> dict[str, str]:
    """What must be in no log line, by what it is."""
    info = client.info
    return {
        "the API key": info["apiKey"],
        "the webhook secret": info["webhookSecret"].removeprefix("whsec_"),
        "LiveKit's API secret": info["liveKitApiSecret"],
        "a signed token": "eyJ",
        "variables, metadata or a callback URL's token": marker,
        **{f"the number {number}": number for number in NUMBERS},
        **{f"the number {number} without its plus": number[1:] for number in NUMBERS},
    }


def test_no_log_line_holds_a_secret_a_number_or_a_calls_content(
    client: Client, calls: list[str], marker: str
) -> None:
    lines = [
        (log.name, line)
        for log in Path(client.info["logs"]).glob("[A-Z]*.log")
        for line in log.read_text(errors="replace").splitlines()
    ]
    assert {call_id for call_id in calls for _, line in lines if call_id in line} == set(calls)
    for what, text in forbidden(client, marker).items():
        found = [(name, line) for name, line in lines if text in line]
        assert not found, f"{what} is in the log: {found[0]}"


def items(client: Client, table: str) -> list[dict[str, Any]]:
    pages = (
        client.aws("dynamodb")
        .get_paginator("scan")
        .paginate(TableName=client.info["resources"][table], ConsistentRead=True)
    )
    return [from_wire(item) for page in pages for item in page["Items"]]


def without(value: Any, names: set[str]) -> Any:
    match value:
        case dict():
            return {key: without(inner, names) for key, inner in value.items() if key not in names}
        case list() | set() | frozenset():
            return [without(inner, names) for inner in value]
    return value


def test_calls_hold_numbers_and_content_only_where_they_must_and_no_secret(
    client: Client, calls: list[str], marker: str
) -> None:
    found = [item for item in items(client, "CallsTable") if item["pk"].removeprefix("CALL#") in calls]
    assert len([item for item in found if item["sk"] == "CALL"]) == len(calls)
    text = json.dumps(found)
    for secret in ("apiKey", "liveKitApiSecret"):
        assert client.info[secret] not in text
    assert client.info["webhookSecret"].removeprefix("whsec_") not in text
    rest = json.dumps(
        [without(item, NUMBER_ATTRIBUTES | {"dynamicVariables", "metadata", "callbackUrl"}) for item in found]
    )
    # The receiver's answer is stored with each attempt; these receivers do not echo the request.
    assert marker not in rest
    assert not [number for number in NUMBERS if number[1:] in rest]


def test_workspaces_hold_hashes_of_keys_and_the_secret_they_sign_with(client: Client) -> None:
    found = items(client, "WorkspacesTable")
    text = json.dumps([without(item, set()) for item in found])
    assert client.info["apiKey"] not in text
    assert client.info["liveKitApiSecret"] not in text
    rest = json.dumps([without(item, {"webhookSecrets"}) for item in found])
    assert client.info["webhookSecret"].removeprefix("whsec_") not in rest


def test_no_functions_environment_holds_a_secret(client: Client) -> None:
    lambdas = client.aws("lambda")
    for function in lambdas.list_functions()["Functions"]:
        variables = json.dumps(function["Environment"]["Variables"])
        for secret in ("apiKey", "webhookSecret", "liveKitApiSecret"):
            assert client.info[secret] not in variables, function["FunctionName"]
