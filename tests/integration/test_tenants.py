"""One workspace never sees, changes or counts what is another's, by any route."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.system import API_KEY, EXAMPLE, TEMPLATE, System, demo_workspace

OTHER_KEY = "rk_other_key"
OTHER = {"x-workspace-id": "other", "x-api-key": OTHER_KEY}


@pytest.fixture
def two_tenants(system: System) -> System:
    system.workspaces.put(
        demo_workspace(
            workspace_id="other", api_key_hashes=frozenset({hashlib.sha256(OTHER_KEY.encode()).hexdigest()})
        )
    )
    return system


# Every route that names a call; the path of each as a client of another workspace would use it.
ROUTES_OF_A_CALL = sorted(
    f"{event['Properties']['Method']} {event['Properties']['Path']}"
    for resource in TEMPLATE["Resources"].values()
    for event in resource.get("Properties", {}).get("Events", {}).values()
    if event["Type"] == "HttpApi" and "{callId}" in event["Properties"]["Path"]
)
# Signed by the call's own room, not by a workspace: covered where the agent's reports are tested.
ROUTES_OF_A_CLIENT = [route for route in ROUTES_OF_A_CALL if not route.endswith("/events")]


def test_the_routes_are_known() -> None:
    assert {"GET /v1/api/call/{callId}", "POST /v1/api/call/{callId}/cancel"} <= set(ROUTES_OF_A_CLIENT)


@pytest.mark.parametrize("route", ROUTES_OF_A_CLIENT)
def test_anothers_call_is_as_one_that_never_was(two_tenants: System, route: str) -> None:
    system = two_tenants
    call_id = system.place("+15550000001")
    system.run_until(lambda: len(system.received(call_id)) == 3)
    before = everything(system)
    path = {"callId": call_id, "sequence": "1"}
    theirs = system.api(route, path=path, headers=OTHER)
    unknown = system.api(route, path=path | {"callId": "0" * 24}, headers=OTHER)
    assert (theirs["statusCode"], theirs["json"]["code"]) == (404, "call_not_found")
    assert theirs["body"] == unknown["body"]
    assert everything(system) == before


def test_another_cannot_cancel_a_call(two_tenants: System) -> None:
    system = two_tenants
    waiting = system.place("+15550000012")
    answer = system.api("POST /v1/api/call/{callId}/cancel", waiting, headers=OTHER)
    assert answer["statusCode"] == 404
    assert system.item(waiting)["status"] == "queued"
    system.run_until(lambda: system.item(waiting)["status"] == "in_progress")
    assert system.api("POST /v1/api/call/{callId}/cancel", waiting, headers=OTHER)["statusCode"] == 404
    assert "hangup" not in system.item(waiting)


def test_the_list_holds_ones_own_calls_only(two_tenants: System) -> None:
    system = two_tenants
    mine = [system.place() for _ in range(2)]
    body = json.dumps(EXAMPLE).encode()
    theirs = [json.loads(system.post(body, OTHER)["body"])["callId"] for _ in range(3)]
    assert listed(system, {}) == sorted(mine)
    assert listed(system, OTHER) == sorted(theirs)
    assert listed(system, OTHER, to="+15550000000") == []
    assert listed(system, OTHER, agent="agent-1") == []


def test_a_cursor_of_anothers_list_shows_nothing_of_it(two_tenants: System) -> None:
    system = two_tenants
    mine = [system.place() for _ in range(3)]
    body = json.dumps(EXAMPLE).encode()
    theirs = [json.loads(system.post(body, OTHER)["body"])["callId"] for _ in range(3)]
    cursor = system.api("GET /v1/api/call", query={"limit": "1"})["json"]["cursor"]
    assert cursor is not None
    # Where its page starts is somewhere in the asker's own list, or behind it.
    found = system.api("GET /v1/api/call", query={"cursor": cursor}, headers=OTHER)
    assert found["statusCode"] == 200
    assert {call["callId"] for call in found["json"]["calls"]} <= set(theirs)
    assert not {call["callId"] for call in found["json"]["calls"]} & set(mine)


def test_all_pages_together_are_the_whole_list(two_tenants: System) -> None:
    system = two_tenants
    mine = [system.place() for _ in range(5)]
    system.post(EXAMPLE, OTHER)
    seen: list[str] = []
    query = {"limit": "2"}
    while True:
        page = system.api("GET /v1/api/call", query=query)["json"]
        assert len(page["calls"]) <= 2
        seen += [call["callId"] for call in page["calls"]]
        if page["cursor"] is None:
            break
        query = {"limit": "2", "cursor": page["cursor"]}
    assert len(seen) == len(set(seen))
    assert sorted(seen) == sorted(mine)


@pytest.mark.parametrize("route", [*ROUTES_OF_A_CLIENT, "GET /v1/api/call"])
def test_ones_own_id_does_not_open_with_anothers_key(two_tenants: System, route: str) -> None:
    system = two_tenants
    path = {"callId": system.place(), "sequence": "1"}
    answer = system.api(route, path=path, headers={"x-workspace-id": "demo", "x-api-key": OTHER_KEY})
    assert (answer["statusCode"], answer["json"]["code"]) == (401, "invalid_api_key")
    answer = system.api(route, path=path, headers={"x-workspace-id": "other", "x-api-key": API_KEY})
    assert (answer["statusCode"], answer["json"]["code"]) == (401, "invalid_api_key")
    answer = system.api(route, path=path, headers={"x-workspace-id": "unknown", "x-api-key": API_KEY})
    assert (answer["statusCode"], answer["json"]["code"]) == (403, "workspace_not_allowed")


def test_a_disabled_workspace_is_shut_out_of_every_route(two_tenants: System) -> None:
    system = two_tenants
    system.workspaces.put(demo_workspace(disabled=True))
    path = {"callId": "0" * 24, "sequence": "1"}
    for route in [*ROUTES_OF_A_CLIENT, "GET /v1/api/call"]:
        assert system.api(route, path=path)["statusCode"] == 403
    assert system.post(EXAMPLE)["statusCode"] == 403
    assert system.messages("DialQueue") == 0


def test_a_call_of_one_workspace_takes_no_slot_of_another(two_tenants: System) -> None:
    system = two_tenants
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("other", "another-call", 1)
    call_id = system.place("+15550000001")
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1
    assert system.limits.active_calls("other") == frozenset({"another-call"})


def listed(system: System, headers: dict[str, str], **query: str) -> list[str]:
    answer = system.api("GET /v1/api/call", query=query, headers=headers)
    assert answer["statusCode"] == 200
    return sorted(call["callId"] for call in answer["json"]["calls"])


def everything(system: System) -> Any:
    return (
        system.dynamodb.scan(TableName="CallsTable", ConsistentRead=True)["Items"],
        {name: system.messages(name) for name in system.queue_urls},
    )
