"""What a client reads: a call, a page of calls, and what a query of the list may ask for."""

from __future__ import annotations

import base64
import dataclasses
import json
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest

from calls_api.queries import ListQuery, call_of_workspace, call_view, list_calls, list_query
from shared.call import Call, Status, WaitingFor, iso, webhook_body
from shared.call_store import CallStore
from shared.errors import RequestRefusedError
from shared.line import admitted_of, line_of, turn_of, waiting_view
from tests.calls import NOW, call_record
from tests.unit.test_call import CALL

KEY = "CALL#" + "0a" * 12
AT = "2026-11-24T09:30:00.000Z"


def query(**given: str) -> ListQuery:
    return list_query({"queryStringParameters": given})


def wrong(**given: str) -> list[str]:
    """The names of the parameters that are wrong."""
    with pytest.raises(RequestRefusedError) as refused:
        query(**given)
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")
    for error in refused.value.errors:
        assert f"{error.field} {error.message}" in refused.value.message
    return [error.field for error in refused.value.errors]


def cursor(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_without_parameters_the_newest_twenty_are_asked_for() -> None:
    events: list[dict[str, Any]] = [{}, {"queryStringParameters": None}, {"queryStringParameters": {}}]
    for event in events:
        assert list_query(event) == ListQuery(None, None, None, None, None, 20, None)


def test_every_parameter_is_read() -> None:
    for status in get_args(Status):
        assert query(status=status).status == status
    assert query(agent="a" * 128).agent == "a" * 128
    for to in ("+15550000001", " 15550000001", " +15550000001", "+1 (555) 000-0001"):
        assert query(to=to).to == "+15550000001"
    assert wrong(to="15550000001") == wrong(to="  15550000001+") == ["to"]
    assert [query(limit=str(number)).limit for number in (1, 9, 99, 100)] == [1, 9, 99, 100]
    assert query(cursor=cursor([AT, KEY])).cursor == (AT, KEY)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (AT, AT),
        ("2026-11-24T09:30:00Z", AT),
        ("2026-11-24T09:30:00.5Z", "2026-11-24T09:30:00.500Z"),
        ("2026-11-24T10:30:00+01:00", AT),
        ("2026-11-24T10:30:00 01:00", AT),
        ("2026-11-24T04:00:00-05:30", AT),
        ("2026-11-25T09:29:00+23:59", AT),
    ],
)
def test_a_time_is_read_as_calls_have_it(text: str, moment: str) -> None:
    assert query(created_after=text).created_after == moment
    assert query(created_before=text).created_before == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-24",
        AT[:-1],
        AT.lower(),
        "2026-13-24T09:30:00Z",
        "2026-02-30T09:30:00Z",
        "2026-11-24T24:30:00Z",
        "2026-11-24T09:30:00.1234Z",
        "2026-11-24T09:30:00+24:00",
        "2026-11-24T09:30:00+01:60",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "\u0662026-11-24T09:30:00Z",
        AT + "\n",
    ],
)
def test_a_time_that_is_none_is_refused(text: str) -> None:
    assert wrong(created_after=text) == ["created_after"]
    assert wrong(created_before=text) == ["created_before"]


@pytest.mark.parametrize("text", ["", "0", "101", "-1", "+1", "1.0", " 1", "\u0661", "0010", "1000", "1" * 5000])
def test_a_limit_is_a_whole_number_from_1_to_100(text: str) -> None:
    assert wrong(limit=text) == ["limit"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "====",
        cursor([]),
        cursor([AT]),
        cursor([AT, KEY, KEY]),
        cursor([AT, 7]),
        cursor([None, KEY]),
        cursor({"a": 1, "b": 2}),
        cursor("7"),
        cursor([AT, KEY + "0"]),
        cursor([AT, KEY.upper()]),
        cursor([AT[:-5] + "Z", KEY]),
        cursor([AT + "\n", KEY]),
        cursor("[" * 100_000),
        "\u00e9",
        cursor([AT, KEY]) + "!",
        "!!!!" + cursor([AT, KEY]),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_a_cursor_that_is_none_of_ours_is_refused(text: str) -> None:
    assert wrong(cursor=text) == ["cursor"]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    given = {"status": "gone", "agent": "a b", "to": "1", "limit": "x", "page": "1", "x" * 200: "1"}
    assert wrong(**given) == ["status", "agent", "to", "limit", "page", "x" * 128]
    assert wrong(agent="a" * 129) == wrong(agent="") == ["agent"]


def test_a_range_ends_at_its_start_or_later_and_holds_the_cursor() -> None:
    later, before = "2026-11-24T09:30:00.001Z", "2026-11-24T09:29:59.999Z"
    assert query(created_after=AT, created_before=AT, cursor=cursor([AT, KEY])).cursor == (AT, KEY)
    assert wrong(created_after=later, created_before=AT) == ["created_before"]
    for outside in ({"created_after": later}, {"created_before": before}):
        assert wrong(cursor=cursor([AT, KEY]), **outside) == ["cursor"]
    for inside in ({"created_after": before}, {"created_before": later}):
        assert query(cursor=cursor([AT, KEY]), **inside).cursor == (AT, KEY)


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────

VARIABLES = '{"name": "Ada",  "n": 1.0}'


def test_a_call_is_there_for_its_own_workspace_only() -> None:
    asked: list[str] = []

    def get(call_id: str) -> Call | None:
        asked.append(call_id)
        return {CALL.call_id: CALL}.get(call_id)

    store = cast(CallStore, SimpleNamespace(get=get))
    assert call_of_workspace(store, "demo", CALL.call_id) is CALL
    for workspace_id, call_id in (("other", CALL.call_id), ("demo", "1" * 24), ("demo", "x"), ("demo", "0" * 25)):
        with pytest.raises(RequestRefusedError) as refused:
            call_of_workspace(store, workspace_id, call_id)
        assert (refused.value.status, refused.value.code) == (404, "call_not_found")
    assert asked == [CALL.call_id, CALL.call_id, "1" * 24], "what is no call's id is asked of no table"


def test_a_call_is_shown_with_its_events_as_its_webhooks_tell_them() -> None:
    call = dataclasses.replace(CALL, dynamic_variables=VARIABLES, callback_url="https://hooks.example/in")
    text = call_view(call, NOW)
    assert f'"dynamicVariables":{VARIABLES}' in text
    assert f'"metadata":{CALL.metadata}' in text
    shown = json.loads(text)
    assert (shown["status"], shown["endReason"], shown["callbackUrl"]) == (
        "completed",
        "hangup",
        call.callback_url,
    )
    bodies = [json.loads(webhook_body(call, sequence)) for sequence in range(1, len(call.events) + 1)]
    told = [{name: body[name] for name in ("id", "type", "timestamp", "sequence")} for body in bodies]
    told[3]["report"] = bodies[3]["data"]["report"]
    assert shown["events"] == told
    bare = json.loads(call_view(dataclasses.replace(CALL, metadata=None), NOW))
    assert (bare["dynamicVariables"], bare["metadata"], bare["callbackUrl"]) == (None, None, None)


@pytest.mark.parametrize(
    ("status", "shown"), [(None, ["completed", "queued"]), ("queued", ["queued"]), ("busy", [])]
)
def test_a_page_shows_the_calls_of_the_status_and_where_the_next_one_begins(
    status: str | None, shown: list[str]
) -> None:
    waiting = dataclasses.replace(CALL, status="queued", events=CALL.events[:1])
    for last in (None, (AT, KEY)):
        asked: list[Any] = []

        def page_of_workspace(workspace_id: str, last: Any = last, asked: list[Any] = asked, **given: Any) -> Any:
            asked.append((workspace_id, given))
            return [CALL, waiting], last

        store = cast(CallStore, SimpleNamespace(page_of_workspace=page_of_workspace))
        wanted = ListQuery(status=status, agent="a", to="+1", created_after="0", created_before="9", limit=7)
        page = json.loads(list_calls(store, "demo", dataclasses.replace(wanted, cursor=(AT, KEY)), NOW))
        assert (page["status"], [call["status"] for call in page["calls"]]) == ("success", shown)
        named = {"limit": 7, "agent": "a", "to": "+1", "created_after": "0", "created_before": "9"}
        assert asked == [("demo", named | {"start": (AT, KEY)})]
        if last is None:
            assert page["cursor"] is None
        else:
            assert query(cursor=page["cursor"]).cursor == last


# ── why a call waits ────────────────────────────────────────────────────────────────────────────────

NEW = call_record(NOW - 5_000)


def in_line(why: WaitingFor, ring_ms: int | None = None, **fields: Any) -> Call:
    turn = turn_of(NEW, ring_ms)
    return dataclasses.replace(NEW, line_of=line_of("demo"), turn=turn, waiting_for=why, **fields)


def admitted(why: WaitingFor, ring_ms: int | None = None, **fields: Any) -> Call:
    waiting = in_line(why, ring_ms)
    return dataclasses.replace(waiting, line_of=admitted_of(line_of("demo")), admitted_at_ms=NOW - 10, **fields)


def delayed(why: WaitingFor, until_ms: int, **fields: Any) -> Call:
    """It waits for a delayed message."""
    return dataclasses.replace(NEW, waiting_for=why, wait_until_ms=until_ms, attempts=1, **fields)


@pytest.mark.parametrize(
    ("call", "why", "ring_ms"),
    [
        (NEW, None, None),
        *((in_line(why), why, None) for why in get_args(WaitingFor)),
        (in_line("scheduled_at", NOW + 1), "scheduled_at", NOW + 1),
        (in_line("scheduled_at", NOW), "scheduled_at", None),
        # What has waited for its time and then finds no slot.
        (in_line("slot", NOW - 1, attempts=2), "slot", None),
        # A lease in the line that is over: its process has died.
        (in_line("slot", lease_id="a", lease_until_ms=NOW - 1), "slot", None),
        (in_line("slot", lease_id="a", lease_until_ms=NOW), None, None),
        (admitted("slot"), None, None),
        # Admitted ahead of its time, with a delayed message.
        (admitted("scheduled_at", NOW + 90_000), "scheduled_at", NOW + 90_000),
        (admitted("scheduled_at", NOW), None, None),
        (admitted("scheduled_at", NOW + 1, lease_id="a", lease_until_ms=NOW + 1), None, None),
        (delayed("retry", NOW + 4_000), "retry", NOW + 4_000),
        (delayed("trunk", NOW + 1), "trunk", NOW + 1),
        (delayed("retry", NOW), None, None),
        # It was admitted and then LiveKit failed: its turn has passed, its next attempt has not.
        (admitted("retry", NOW - 9, wait_until_ms=NOW + 7, attempts=1), "retry", NOW + 7),
        # Earlier versions store no reason.
        (dataclasses.replace(NEW, wait_until_ms=NOW + 9), None, None),
        *(
            (dataclasses.replace(in_line("slot", NOW + 9), status=status), None, None)
            for status in get_args(Status)
            if status != "queued"
        ),
    ],
)
def test_a_call_shows_what_it_waits_for(call: Call, why: WaitingFor | None, ring_ms: int | None) -> None:
    shown = {"waitingFor": why, "earliestRingAt": None if ring_ms is None else iso(ring_ms)}
    assert waiting_view(call, NOW) == shown
    assert shown.items() <= json.loads(call_view(call, NOW)).items()
    store = cast(CallStore, SimpleNamespace(page_of_workspace=lambda *_, **given: ([call], None)))
    [listed] = json.loads(list_calls(store, "demo", ListQuery(), NOW))["calls"]
    assert shown.items() <= listed.items()
    assert not shown.keys() & json.loads(webhook_body(call, 1))["data"].keys()
