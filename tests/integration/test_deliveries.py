"""A client's view of its webhooks and their replay, through the real routes; and refused callback URLs."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time
from typing import Any

import pytest

from shared.call_store import CallStore
from shared.callback_url import Policy
from shared.delivery_store import sort_key
from shared.table_keys import RETENTION_SECONDS, call_key
from tests.interleaving import change
from tests.system import DEADLINE_SECONDS, System
from tests.unit.test_callback_url import HOSTILE_URLS

LIST = "GET /v1/api/call/{callId}/deliveries"
REPLAY = "POST /v1/api/call/{callId}/deliveries/{sequence}/replay"


def ended(system: System, events: int = 3) -> str:
    """A call whose events have all been received."""
    call_id = system.place("+15550000001", metadata={"one": 1.0, "who": "Zoë"})
    system.run_until(lambda: len(system.received(call_id)) == events)
    return call_id


def listed(system: System, call_id: str) -> list[dict[str, Any]]:
    deliveries: list[dict[str, Any]] = system.api(LIST, call_id)["json"]["deliveries"]
    return deliveries


def replay(system: System, call_id: str, sequence: str) -> dict[str, Any]:
    return system.api(REPLAY, call_id, path={"sequence": sequence})


def test_every_event_is_listed_with_its_attempts(system: System) -> None:
    call_id = ended(system)
    deliveries = listed(system, call_id)
    assert [one["type"] for one in deliveries] == ["call.queued", "call.dialing", "call.ended"]
    assert [(one["id"], one["state"]) for one in deliveries] == [
        (f"evt_{call_id}_{n}", "delivered") for n in (1, 2, 3)
    ]
    assert [[attempt["status"] for attempt in one["attempts"]] for one in deliveries] == [[204]] * 3


def test_no_callback_url_is_logged(system: System, caplog: pytest.LogCaptureFixture) -> None:
    """It may contain a customer's token. On AWS the root logger has the functions' level, so libraries log too."""
    with caplog.at_level("INFO"):
        ended(system)
    assert caplog.records
    assert not [record for record in caplog.records if "/hook" in record.getMessage()]


def test_a_replay_carries_the_same_id_and_the_same_bytes(system: System) -> None:
    call_id = ended(system)
    assert replay(system, call_id, "2")["statusCode"] == 200
    assert listed(system, call_id)[1]["state"] == "pending"
    system.run_until(lambda: len(system.received(call_id)) == 4)
    first, again = (event for event in system.received(call_id) if event["sequence"] == 2)
    assert (again["id"], again["body"]) == (first["id"], first["body"])
    assert '"metadata":{"one": 1.0, "who": "Zo' in again["body"]
    assert again["verified"]
    assert len(listed(system, call_id)[1]["attempts"]) == 2


def expires_at(system: System, call_id: str) -> int:
    return int(system.item(call_id).get("expiresAt", 0))


@pytest.mark.parametrize("left", [3600, -3600])
def test_a_replay_lets_the_record_live_until_it_is_over(system: System, left: int) -> None:
    """TTL deletes up to two days after a record has expired: until then it can be kept."""
    call_id = ended(system)
    now = int(time.time())
    change(system, call_id, expiresAt=now + left)
    assert replay(system, call_id, "2")["statusCode"] == 200
    assert expires_at(system, call_id) >= now + RETENTION_SECONDS
    system.run_until(lambda: len(system.received(call_id)) == 4)


def test_a_replay_shortens_no_life_and_gives_an_open_call_no_end(system: System) -> None:
    call_id = ended(system)
    late = int(time.time()) + 10 * RETENTION_SECONDS
    change(system, call_id, expiresAt=late)
    assert replay(system, call_id, "1")["statusCode"] == 200
    assert expires_at(system, call_id) == late
    open_call = system.place("+15550000000")
    assert replay(system, open_call, "1")["statusCode"] == 200
    assert expires_at(system, open_call) == 0


def test_a_replay_of_a_call_that_expires_meanwhile_is_refused_and_changes_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = ended(system)
    rows = system.modules["calls_api"].deliveries.of_call(call_id)
    get = CallStore.get

    def then_ttl_deletes(store: CallStore, wanted: str) -> Any:
        call = get(store, wanted)
        system.dynamodb.delete_item(TableName="CallsTable", Key=call_key(wanted))
        return call

    monkeypatch.setattr(CallStore, "get", then_ttl_deletes)
    answer = replay(system, call_id, "1")
    assert (answer["statusCode"], answer["json"]["code"]) == (404, "call_not_found")
    assert system.modules["calls_api"].deliveries.of_call(call_id) == rows
    assert system.messages("WebhookQueue") == 0


def test_a_replay_of_a_delivery_whose_row_has_expired_makes_it_anew(system: System) -> None:
    call_id = ended(system)
    system.dynamodb.delete_item(TableName="CallsTable", Key=call_key(call_id, sort_key(2)))
    assert replay(system, call_id, "2")["statusCode"] == 200
    system.run_until(lambda: len(system.received(call_id)) == 4)


def test_a_replay_while_an_attempt_is_under_way_is_a_conflict(system: System) -> None:
    call_id = ended(system)
    behaviour = f"{system.servers.receiver_url}/_receiver/behaviour"
    system.http.put(behaviour, json={"/hook": {"hang": True, "times": 1}}).raise_for_status()
    assert replay(system, call_id, "1")["statusCode"] == 200
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        attempt = threads.submit(system.deliver)
        system.wait_until(lambda: len(system.received(call_id)) == 4)
        answer = replay(system, call_id, "1")
        assert (answer["statusCode"], answer["json"]["code"]) == (409, "attempt_under_way")
        # Another event of the call is free.
        assert replay(system, call_id, "2")["statusCode"] == 200
        # It lets go of the request that it holds.
        system.http.post(f"{system.servers.receiver_url}/_receiver/reset").raise_for_status()
        attempt.result(DEADLINE_SECONDS)
    assert [one["status"] for one in listed(system, call_id)[0]["attempts"]] == [204, 204]
    assert replay(system, call_id, "1")["statusCode"] == 200
    system.run_until(lambda: {one["state"] for one in listed(system, call_id)} == {"delivered"})


@pytest.mark.parametrize("sequence", ["0", "4", "-1", "x", "1.0", "99999999"])
def test_an_event_that_there_is_not_cannot_be_replayed(system: System, sequence: str) -> None:
    call_id = ended(system)
    assert replay(system, call_id, sequence)["statusCode"] == 404


def test_another_workspaces_deliveries_are_not_there(system: System) -> None:
    call_id = ended(system)
    other = {"x-workspace-id": "unknown"}
    for route, path in ((LIST, {}), (REPLAY, {"sequence": "1"})):
        assert system.api(route, call_id, headers=other, path=path)["statusCode"] in (403, 404)


def test_no_hostile_url_is_accepted_with_a_call(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the policy of AWS: the system's own allows its receiver on loopback."""
    module = system.modules["initiate_call"]
    monkeypatch.setattr(module, "acceptor", dataclasses.replace(module.acceptor, callback_policy=Policy()))
    for url in filter(None, HOSTILE_URLS):
        body = {"to": "+15550000000", "call_agent_id": "agent-1", "callback_url": url}
        answer = system.post(body)
        assert answer["statusCode"] == 400, url
        assert [error["field"] for error in json.loads(answer["body"])["errors"]] == ["callback_url"]
    assert system.messages("DialQueue") == 0
