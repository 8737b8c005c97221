"""The preview says when a number may ring, in all zones in which its callee may be; what is placed keeps to it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any

import pytest

from admin import policy_input
from shared.zones import zones_of
from tests.clock import Clock
from tests.system import API_KEY, Context, System, demo_workspace, http_event

POLICY = "us-telemarketing"
ARIZONA, NEWFOUNDLAND, FLORIDA = "+16022530123", "+17097220123", "+18502220123"
CONSENT = {"basis": "web form", "obtained_at": "2026-01-10T09:00:00Z"}
DAY = 24 * 3600


@pytest.fixture
def clock(system: System) -> Iterator[Clock]:
    """That of the requests; the demo workspace has the template for calls in the United States."""
    policy = policy_input.read(POLICY).policy(POLICY, 1)
    system.workspaces.put(demo_workspace(policies={POLICY: policy}))
    with system.stopped_clock() as clock:
        yield clock


def request(system: System, clock: Clock, number: str, **fields: Any) -> dict[str, Any]:
    expires = datetime.datetime.fromtimestamp(clock.seconds() + 3 * DAY, datetime.UTC).isoformat()
    given = {
        "to": number,
        "call_agent_id": "agent-1",
        "purpose": POLICY,
        "consent": CONSENT,
        "expires_at": expires,
    }
    return given | fields


def preview(system: System, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"x-workspace-id": "demo", "x-api-key": API_KEY}
    event = http_event("POST /v1/api/call/preview", json.dumps(body).encode(), headers)
    answer = system.handlers["initiate_call"](event, Context(10))
    shown: dict[str, Any] = json.loads(answer["body"])
    assert answer["statusCode"] == 200, shown
    return shown


def set_to(clock: Clock, text: str) -> None:
    clock.now = round(datetime.datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("number", "zones"),
    [
        (ARIZONA, ("America/Phoenix",)),
        (NEWFOUNDLAND, ("America/Halifax", "America/St_Johns")),
        (FLORIDA, ("America/Chicago", "America/New_York")),
    ],
)
def test_these_numbers_are_in_these_zones(number: str, zones: tuple[str, ...]) -> None:
    """Labrador, of Newfoundland's area code, is half an hour behind the island; the west of Florida an hour behind
    the east."""
    assert zones_of(number) == zones


# When the request is made; the number; when it may ring, None: now. Winter, then summer time (not in Arizona).
CASES = [
    ("2026-12-01T11:00+00:00", ARIZONA, {"America/Phoenix": "2026-12-01T08:00:00-07:00"}),
    ("2026-12-01T15:00+00:00", ARIZONA, None),
    ("2026-07-01T14:59:59+00:00", ARIZONA, {"America/Phoenix": "2026-07-01T08:00:00-07:00"}),
    ("2026-07-01T15:00+00:00", ARIZONA, None),
    # 21:00 there. What rings must have rung out by then: 40 s, and 3 s until the INVITE; 2.15 s at the scale of
    # these tests.
    ("2026-12-02T04:00+00:00", ARIZONA, {"America/Phoenix": "2026-12-02T08:00:00-07:00"}),
    ("2026-12-02T03:59:57.851+00:00", ARIZONA, {"America/Phoenix": "2026-12-02T08:00:00-07:00"}),
    ("2026-12-02T03:59:57.850+00:00", ARIZONA, None),
    # 07:45 on the island: 07:15 in Labrador opens last. 20:45 in Labrador: on the island it has closed.
    (
        "2026-12-01T11:15+00:00",
        NEWFOUNDLAND,
        {"America/Halifax": "2026-12-01T08:00:00-04:00", "America/St_Johns": "2026-12-01T08:30:00-03:30"},
    ),
    ("2026-12-01T12:00+00:00", NEWFOUNDLAND, None),
    (
        "2026-12-02T00:45+00:00",
        NEWFOUNDLAND,
        {"America/Halifax": "2026-12-02T08:00:00-04:00", "America/St_Johns": "2026-12-02T08:30:00-03:30"},
    ),
    (
        "2026-07-01T10:30+00:00",
        NEWFOUNDLAND,
        {"America/Halifax": "2026-07-01T08:00:00-03:00", "America/St_Johns": "2026-07-01T08:30:00-02:30"},
    ),
    # 08:30 in Tallahassee, 07:30 in Pensacola.
    (
        "2026-12-01T13:30+00:00",
        FLORIDA,
        {"America/Chicago": "2026-12-01T08:00:00-06:00", "America/New_York": "2026-12-01T09:00:00-05:00"},
    ),
    ("2026-12-01T14:00+00:00", FLORIDA, None),
    (
        "2026-07-01T12:30+00:00",
        FLORIDA,
        {"America/Chicago": "2026-07-01T08:00:00-05:00", "America/New_York": "2026-07-01T09:00:00-04:00"},
    ),
]


@pytest.mark.parametrize(("now", "number", "opens"), CASES)
def test_the_preview_says_when_a_number_may_ring_in_the_callees_time(
    system: System, clock: Clock, now: str, number: str, opens: dict[str, str] | None
) -> None:
    set_to(clock, now)
    body = request(system, clock, number)
    shown = preview(system, body)
    [window] = (gate for gate in shown["gates"] if gate["name"] == "calling_window")
    local = window["detail"]["localTime"]
    assert {datetime.datetime.fromisoformat(text) for text in local.values()} == {
        datetime.datetime.fromtimestamp(clock.seconds() // 1, datetime.UTC)
    }
    assert tuple(local) == zones_of(number)
    assert window["detail"]["zonesFrom"] == "number"
    assert window["detail"]["opensAt"] == opens
    assert window["passed"] == (opens is None)
    expected: tuple[str, str | None, str | None] = ("ring", None, None)
    if opens is not None:
        [moment] = {datetime.datetime.fromisoformat(text).astimezone(datetime.UTC) for text in opens.values()}
        at = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        expected = ("wait", "calling_window", at)
    assert (shown["decision"], shown["waitingFor"], shown["earliestRingAt"]) == expected
    assert system.calls_placed() == []


def test_a_named_zone_decides_instead_of_the_numbers(system: System, clock: Clock) -> None:
    set_to(clock, "2026-12-01T11:15+00:00")
    assert preview(system, request(system, clock, ARIZONA))["decision"] == "wait"
    shown = preview(system, request(system, clock, ARIZONA, time_zone="America/St_Johns"))
    assert (shown["decision"], shown["waitingFor"]) == ("wait", "calling_window")
    assert shown["earliestRingAt"] == "2026-12-01T11:30:00.000Z"
    assert preview(system, request(system, clock, ARIZONA, time_zone="Europe/Paris"))["decision"] == "ring"


@pytest.mark.parametrize("number", [ARIZONA, NEWFOUNDLAND, FLORIDA])
def test_a_call_that_is_placed_waits_until_the_time_that_the_preview_said(
    system: System, clock: Clock, number: str
) -> None:
    # Tomorrow at 07:00 UTC it is night in all of them, and the call is still ahead of the real clock.
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    set_to(clock, f"{tomorrow}T07:00+00:00")
    body = request(system, clock, number)
    said = preview(system, body)
    call_id = system.place(number, **{name: value for name, value in body.items() if name != "to"})
    call = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert said["decision"] == "wait"
    assert (call["waitingFor"], call["earliestRingAt"]) == ("calling_window", said["earliestRingAt"])
    assert system.messages("DialQueue") == 1
    system.dial()
    assert system.calls_placed(number) == []
