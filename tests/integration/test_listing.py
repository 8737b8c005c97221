"""The list of a workspace's calls: newest first, by every filter, page by page, and never by reading it all."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared.call import iso
from shared.clock import now_ms
from tests.clock import Clock
from tests.interleaving import change
from tests.system import System, aws_requests, demo_workspace

LIST = "GET /v1/api/call"
QUEUED = {"status": "queued"}


@pytest.fixture
def clock(system: System) -> Iterator[Clock]:
    with system.stopped_clock() as clock:
        yield clock


def ids(answer: dict[str, Any]) -> list[str]:
    assert answer["statusCode"] == 200, answer
    return [call["callId"] for call in answer["json"]["calls"]]


def pages(system: System, **query: str) -> list[list[str]]:
    found = []
    while True:
        answer = system.api(LIST, query=query)
        found.append(ids(answer))
        if answer["json"]["cursor"] is None:
            return found
        query["cursor"] = answer["json"]["cursor"]


def placed(system: System, clock: Clock, count: int) -> list[str]:
    """Calls a second apart, the newest first."""
    made = []
    for _ in range(count):
        made.append(system.place())
        clock.now += 1000
    return made[::-1]


@pytest.mark.parametrize("limit", ["1", "2", "3", "100"])
def test_calls_come_newest_first_over_all_pages(system: System, clock: Clock, limit: str) -> None:
    made = placed(system, clock, 5)
    found = pages(system, limit=limit)
    assert [call_id for page in found for call_id in page] == made
    assert all(len(page) <= int(limit) for page in found)


def test_calls_of_the_same_millisecond_are_all_there(system: System, clock: Clock) -> None:
    made = {system.place() for _ in range(5)}
    found = [call_id for page in pages(system, limit="2") for call_id in page]
    assert len(found) == 5
    assert set(found) == made


def test_a_page_has_twenty_unless_another_number_is_asked_for(system: System, clock: Clock) -> None:
    made = placed(system, clock, 21)
    assert ids(system.api(LIST)) == made[:20]
    assert ids(system.api(LIST, query={"limit": "100"})) == made


def test_each_filter_leaves_what_it_says(system: System, clock: Clock) -> None:
    busy = system.place("+15550000001")
    waiting = system.place("+15550000000", call_agent_id="agent-2")
    system.api("POST /v1/api/call/{callId}/cancel", waiting)
    system.run_until(lambda: system.ended(busy))
    newest = system.place("+15550000000")

    def found(**query: str) -> set[str]:
        return {call_id for page in pages(system, limit="1", **query) for call_id in page}

    assert found() == {busy, waiting, newest}
    assert found(status="busy") == {busy}
    assert found(status="canceled") == {waiting}
    assert found(status="queued") == {newest}
    assert found(status="completed") == set()
    assert found(agent="agent-2") == {waiting}
    assert found(agent="agent") == set()
    assert found(to="+15550000000") == {waiting, newest}
    assert found(to="+15550000000", agent="agent-1", status="queued") == {newest}


def test_both_bounds_of_time_are_included(system: System, clock: Clock) -> None:
    third, second, first = placed(system, clock, 3)
    times = [call["createdAt"] for call in system.api(LIST)["json"]["calls"]]
    assert ids(system.api(LIST, query={"created_after": times[1]})) == [third, second]
    assert ids(system.api(LIST, query={"created_before": times[1]})) == [second, first]
    assert ids(system.api(LIST, query={"created_after": times[1], "created_before": times[1]})) == [second]
    within = {"created_after": times[2], "created_before": times[0], "limit": "1"}
    assert [call_id for page in pages(system, **within) for call_id in page] == [third, second, first]


@pytest.mark.parametrize("hours", [-11, -5, 0, 1, 14])
def test_a_time_may_have_an_offset(system: System, clock: Clock, hours: int) -> None:
    """Compared as moments, not as texts; a plus arrives as it is or, not escaped, as a space."""
    third, second, first = placed(system, clock, 3)
    times = [call["createdAt"] for call in system.api(LIST)["json"]["calls"]]
    zone = datetime.timezone(datetime.timedelta(hours=hours))
    there = [
        datetime.datetime.fromisoformat(text).astimezone(zone).isoformat(timespec="milliseconds") for text in times
    ]
    for written in (str, lambda text: text.replace("+", " ")):
        at = [written(text) for text in there]
        assert ids(system.api(LIST, query={"created_after": at[1]})) == [third, second]
        assert ids(system.api(LIST, query={"created_before": at[1]})) == [second, first]
        query = {"created_after": times[2], "created_before": at[0], "limit": "1"}
        assert [call_id for page in pages(system, **query) for call_id in page] == [third, second, first]
    late = {"created_after": there[0], "created_before": times[1]}
    assert system.api(LIST, query=late)["json"]["errors"][0]["field"] == "created_before"


def test_a_cursor_made_by_hand_opens_no_other_workspace(system: System, clock: Clock) -> None:
    """An attempt with forged cursors, by a client that knows another workspace's call."""
    system.workspaces.put(demo_workspace(workspace_id="other"))
    other = {"x-workspace-id": "other"}
    body = {"to": "+15550000000", "call_agent_id": "agent-1"}
    theirs = [json.loads(system.post(body, other)["body"])["callId"] for _ in range(3)]
    clock.now += 1000
    mine = placed(system, clock, 2)
    for call_id in [*theirs, "0" * 24, "f" * 24]:
        for at in (system.item(theirs[0])["createdAt"], "2999-01-01T00:00:00.000Z"):
            text = json.dumps([at, f"CALL#{call_id}"])
            cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
            assert set(ids(system.api(LIST, query={"cursor": cursor}))) <= set(mine)


def test_a_list_is_read_by_its_index(system: System, clock: Clock) -> None:
    placed(system, clock, 3)
    system.api(LIST)
    with aws_requests(system.modules["calls_api"].dynamodb) as sent:
        for query in ({}, {"status": "busy"}, {"agent": "a"}, {"to": "+15550000001"}, {"limit": "1"}):
            assert system.api(LIST, query=query)["statusCode"] == 200
    # GetItem: the workspace, when the one in memory is too old.
    assert set(sent) <= {"Query", "BatchGetItem", "GetItem"}
    assert sent.count("Query") == 5


def test_every_view_of_a_queued_call_shows_why_it_waits(system: System) -> None:
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)

    def shown(call_id: str) -> tuple[str | None, bool]:
        """`waitingFor`, and whether an earliest time is known: the same in both views."""
        one = system.api("GET /v1/api/call/{callId}", call_id)["json"]
        [same] = [call for call in system.api(LIST, query=QUEUED)["json"]["calls"] if call["callId"] == call_id]
        assert (one["waitingFor"], one["earliestRingAt"]) == (same["waitingFor"], same["earliestRingAt"])
        return one["waitingFor"], one["earliestRingAt"] is not None

    def dialled(call_id: str, why: str) -> bool:
        system.dial()
        return shown(call_id)[0] == why

    first = system.place()
    assert shown(first) == (None, False), "no process has looked at it yet"
    system.run_until(lambda: dialled(first, "slot"), dial=False)
    system.limits.pause(now_ms())
    second = system.place()
    system.run_until(lambda: dialled(second, "paused"), dial=False)
    assert [shown(first), shown(second)] == [("slot", False), ("paused", False)]
    system.limits.resume(now_ms())
    system.limits.free_slot("demo", "another-call")

    def ended() -> bool:
        system.reconcile()
        return system.ended(first) and system.ended(second)

    system.run_until(ended)
    for call in system.api(LIST)["json"]["calls"]:
        assert (call["waitingFor"], call["earliestRingAt"]) == (None, None)


def test_a_call_that_is_tried_again_shows_when(system: System) -> None:
    call_id = system.place()
    change(system, call_id, waiting_for="retry", wait_until_ms=2**42, attempts=1)
    [call] = system.api(LIST, query=QUEUED)["json"]["calls"]
    assert (call["waitingFor"], call["earliestRingAt"]) == ("retry", iso(2**42))
