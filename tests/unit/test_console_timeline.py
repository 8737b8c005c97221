"""The console's timeline from records, steps and events: promises, rows and their writers."""

from __future__ import annotations

import json
from typing import Any

from local.console.timeline import (
    CALLS_OF_A_LINE_SHOWN,
    CallHistory,
    callee_zones,
    detail,
    lines,
    next_look,
    promises,
    receipt,
    summary,
    timeline,
)
from shared.limits import Everything
from shared.line import line_of, turn_of
from shared.slots import SlotsItem
from shared.switch import Switch
from shared.trunk import Trunk
from tests.calls import call_record
from tests.system import demo_workspace

AT = 1_795_612_432_471


def history(*kinds: str, status: str = "completed", **fields: Any) -> CallHistory:
    """A call with these events, 100 ms apart."""
    events: list[dict[str, Any]] = [{"type": kind, "at": AT + 100 * n} for n, kind in enumerate(kinds)]
    for entry in events:
        if entry["type"] == "call.ended":
            entry |= {"status": status, "reason": "hangup"}
    given: dict[str, Any] = {"status": status, "events": tuple(events), "callback_url": "https://example.com/hook"}
    call = call_record(AT, call_id="c" * 24, **given)
    return CallHistory(call.call_id, call.to_item() | fields)


def states(call: CallHistory, simulated: bool = True) -> list[str]:
    return [promise["state"] for promise in promises(call, simulated)]


def invite(at: int) -> dict[str, Any]:
    return {"kind": "invite", "atMs": at, "number": "+15550000000"}


def delivery(sequence: int, state: str, **fields: Any) -> dict[str, Any]:
    return {"sequence": sequence, "state": state, "nextAttemptAt": AT, **fields}


def received(at: int, sequence: int = 1, **behaviour: Any) -> dict[str, Any]:
    """A webhook in the receiver's feed; behaviour: how it was answered."""
    return {
        "id": f"evt_{sequence}",
        "type": "call.queued",
        "sequence": sequence,
        "receivedAtMs": at,
        "verified": True,
        "error": None,
        "behaviour": behaviour,
    }


def test_a_phone_that_rang_twice_is_a_broken_promise() -> None:
    call = history("call.queued", "call.dialing", "call.ended")
    call.livekit = [invite(AT), invite(AT + 50)]
    assert states(call)[0] == "broken"
    assert promises(call, simulated=True)[0]["figure"] == "rang 2 times"


def test_a_call_that_ended_twice_is_a_broken_promise() -> None:
    assert states(history("call.queued", "call.ended", "call.ended"))[1] == "broken"


def test_an_open_call_has_kept_nothing_yet() -> None:
    call = history("call.queued", "call.dialing", status="dialing")
    call.livekit = [invite(AT)]
    call.deliveries = {1: delivery(1, "delivered"), 2: delivery(2, "delivered")}
    assert states(call) == ["open", "open", "open"]


def test_an_event_that_was_given_up_is_accounted_for_and_one_without_a_row_is_not() -> None:
    call = history("call.queued", "call.ended")
    call.deliveries = {1: delivery(1, "dead")}
    assert states(call)[2] == "open"
    call.deliveries[2] = delivery(2, "delivered")
    assert promises(call, simulated=True)[2] == {
        "name": "Every event accounted for",
        "figure": "1 of 2 delivered, 1 given up and listed",
        "state": "kept",
    }


def test_the_rings_of_a_real_livekit_are_unknown() -> None:
    assert states(history("call.queued", "call.ended"), simulated=False)[0] == "open"


def test_whose_write_ended_the_call_is_told_by_the_step_that_won() -> None:
    call = history("call.queued", "call.ended")
    lost = {"point": "CallStore.end", "phase": "ended", "function": "DialWorker", "at": AT, "ms": 3, "won": False}
    call.steps = [lost, lost | {"function": "ReconcileCalls", "won": True}]
    assert [row.who for row in timeline(call, simulated=True) if row.what == "ended"] == ["ReconcileCalls"]
    assert [row.who for row in timeline(call, simulated=True) if row.what.startswith("end lost")] == ["DialWorker"]


def test_a_webhook_with_a_wrong_signature_is_marked() -> None:
    call = history("call.queued")
    hook = received(AT) | {"verified": False, "error": "No matching"}
    call.hooks = [hook, hook | {"verified": True}]
    assert [(row.what, row.tone) for row in timeline(call, simulated=True) if row.who == "receiver"] == [
        ("call.queued not genuine", "bad"),
        ("call.queued came again", ""),
    ]


def test_an_attempt_without_an_answer_shows_its_error() -> None:
    call = history("call.queued")
    call.deliveries = {1: delivery(1, "pending", attempts=[{"at": AT, "ms": 7, "error": "timeout"}])}
    (row,) = (row for row in timeline(call, simulated=True) if row.who == "Deliver")
    assert (row.at, row.what, row.tone) == (AT + 7, "call.queued → timeout", "bad")


def test_several_failed_attempts_at_a_delivery_are_one_row_with_each_of_them_in_it() -> None:
    call = history("call.queued", "call.ended")
    answers: list[dict[str, Any]] = [{"status": 503}, {"error": "timeout"}, {"status": 503}, {"status": 204}]
    attempts = [{"at": AT + 1000 * n, "ms": 7, **answer} for n, answer in enumerate(answers)]
    call.deliveries = {
        1: delivery(1, "delivered", attempts=attempts),
        2: delivery(2, "delivered", attempts=[{"at": AT + 9000, "ms": 7, "status": 204}]),
    }
    call.hooks = [
        received(AT, status=503),
        received(AT + 1000, hang=True),
        received(AT + 2000, status=503),
        received(AT + 3000),
    ]
    rows = [row for row in timeline(call, simulated=True) if row.who in ("Deliver", "receiver") and not row.minor]
    assert [(row.what, row.tone, len(row.folded)) for row in rows] == [
        ("call.queued: 3 attempts failed", "bad", 5),
        ("call.queued came again", "", 0),
        ("call.queued → 204", "good", 0),
        ("call.ended → 204", "good", 0),
    ]
    assert rows[0].at == AT + 7
    assert rows[0].detail == "2 x 503, 1 x timeout; the last 2.0 s after the first"
    assert [row.what for row in rows[0].folded if row.who == "Deliver"] == [
        "call.queued → 503",
        "call.queued → timeout",
        "call.queued → 503",
    ]
    assert detail(call, True, AT)["rows"]


def test_a_single_failed_attempt_is_a_row_of_its_own() -> None:
    call = history("call.queued")
    call.deliveries = {1: delivery(1, "pending", attempts=[{"at": AT, "ms": 7, "status": 500}])}
    assert [(row.what, row.folded) for row in timeline(call, True) if row.who == "Deliver"] == [
        ("call.queued → 500", ())
    ]


def test_what_a_call_waits_for_is_its_lease_then_its_next_look_then_its_webhooks() -> None:
    dialing = history("call.queued", "call.dialing", status="dialing", leaseUntil=AT + 50, checkAt=AT + 90)
    assert (next_look(dialing, AT) or {})["at"] == AT + 50
    assert (next_look(dialing, AT + 60) or {})["at"] == AT + 90
    over = history("call.queued", "call.ended", checkAt=AT + 90)
    assert next_look(over, AT) is None
    over.deliveries = {2: delivery(2, "pending", leaseUntil=AT + 40)}
    assert (next_look(over, AT) or {})["at"] == AT + 40


def test_times_count_from_the_clients_request_when_the_console_sent_it() -> None:
    call = history("call.queued")
    assert detail(call, True, AT)["placedAt"] == AT
    call.requests = [{"at": AT - 20, "what": "POST", "status": 200, "ms": 30}]
    assert detail(call, True, AT)["placedAt"] == AT - 20
    # A request about a call that was placed elsewhere comes later than the call.
    call.requests = [{"at": AT + 500, "what": "POST", "detail": "cancel", "status": 200, "ms": 3}]
    assert detail(call, True, AT)["placedAt"] == AT


# ── the line ────────────────────────────────────────────────────────────────────────────────────────


def step(point: str, at: int, function: str = "DialWorker", **fields: Any) -> dict[str, Any]:
    return {"point": point, "phase": "ended", "function": function, "at": at, "ms": 2, "won": True, **fields}


def in_line(number: int, why: str, workspace_id: str = "demo", **fields: Any) -> CallHistory:
    """A call that entered the line; a higher number was placed later."""
    call = call_record(AT + number, call_id=f"{number:024}", to=f"+1555000{number:04}", workspace_id=workspace_id)
    stored = {"lineOf": line_of(workspace_id), "turn": turn_of(call), "waitingFor": why, "checkAt": AT + 3_600_000}
    return CallHistory(call.call_id, call.to_item() | stored | fields)


def limits(**changes: Any) -> Everything:
    workspace = demo_workspace(max_concurrent_calls=3, **changes)
    slots = {workspace.workspace_id: [SlotsItem(0, frozenset({"a", "b"}))]}
    return Everything({workspace.workspace_id: workspace}, slots)


def test_a_line_shows_who_waits_for_what_and_since_when_in_their_turn() -> None:
    late, early = in_line(9, "slot"), in_line(2, "paused")
    early.steps = [
        step("CallStore.enter_line", AT + 100),
        step("CallStore.enter_line", AT + 500),
        step("CallStore.enter_line", AT + 900, won=False),
    ]
    tried_again = CallHistory("e" * 24, call_record(AT, call_id="e" * 24, to="+15550000077").to_item())
    tried_again.item |= {"waitingFor": "retry", "waitUntil": AT + 4_000}
    others = [
        in_line(1, "slot", admittedAt=AT),
        in_line(3, "slot", leaseUntil=AT + 1_000),
        in_line(4, "slot", status="canceled"),
        in_line(5, "slot", workspace_id="gone"),
        CallHistory("f" * 24),
    ]
    [line] = lines([tried_again, late, *others, early], limits(), AT + 20)
    assert (line["workspaceId"], line["slots"], line["slotsTaken"], line["waiting"]) == ("demo", 3, 2, 3)
    assert [(call["to"], call["waitingFor"], call["since"]) for call in line["calls"]] == [
        ("+15550000002", "paused", AT + 500),
        ("+15550000009", "slot", AT + 9),
        ("+15550000077", "retry", AT),
    ]
    assert [call["earliestRingAt"] is not None for call in line["calls"]] == [False, False, True]
    assert summary(early, AT + 20)["waitingFor"] == "paused"
    assert summary(others[0], AT + 20)["waitingFor"] is None


def test_a_long_line_shows_its_first_calls_and_their_number() -> None:
    many = [in_line(number, "slot") for number in range(1, CALLS_OF_A_LINE_SHOWN + 8)]
    [line] = lines(many[::-1], limits(), AT)
    assert line["waiting"] == len(many)
    assert [call["callId"] for call in line["calls"]] == [one.call_id for one in many[:CALLS_OF_A_LINE_SHOWN]]


def test_a_line_shows_what_stops_it() -> None:
    stopped = limits()
    [line] = lines([], stopped, AT)
    assert (line["pausedAt"], line["trunk"]["stops"], line["waiting"]) == (None, 0, 0)
    stopped.switch = Switch(AT)
    stopped.trunks["ST_demo"] = Trunk(
        "ST_demo", faults=frozenset("abc"), stops=2, stopped_until_ms=AT + 9, fault="407"
    )
    [line] = lines([], stopped, AT)
    assert line["pausedAt"] == AT
    assert line["trunk"] == {
        "id": "ST_demo",
        "faults": 3,
        "stops": 2,
        "stoppedUntil": AT + 9,
        "probeUntil": 0,
        "fault": "407",
    }


def test_a_timeline_shows_when_a_call_entered_the_line_why_and_when_and_for_whose_slot_it_was_admitted() -> None:
    call = history("call.queued", status="queued")
    call.steps = [
        step("CallStore.enter_line", AT + 10, waitingFor="slot"),
        step("CallStore.enter_line", AT + 11, won=False, waitingFor="slot"),
        step("CallStore.admit", AT + 50, "LiveKitEvents", freed={"by": "+15550000012", "at": AT + 47}),
        step("CallStore.enter_line", AT + 60, waitingFor="trunk"),
        step("CallStore.admit", AT + 90, "ReconcileCalls"),
    ]
    rows = [row for row in timeline(call, simulated=True) if row.at > AT and not row.minor]
    assert [(row.who, row.what) for row in rows] == [
        ("DialWorker", "in the line"),
        ("LiveKitEvents", "admitted"),
        ("DialWorker", "in the line"),
        ("ReconcileCalls", "admitted"),
    ]
    assert "slot" in rows[0].detail
    assert rows[1].detail == "for the slot of the call to +15550000012, 3 ms after it was freed"
    assert "trunk" in rows[2].detail
    assert rows[3].detail == "a slot is free"


def test_a_slot_that_was_freed_for_a_waiting_call_is_a_row_of_the_ended_one() -> None:
    call = history("call.queued", "call.ended")
    free = {
        "point": "LimitStore.free_slot",
        "phase": "ended",
        "function": "LiveKitEvents",
        "at": AT + 200,
        "ms": 2,
    }
    call.steps = [free, free | {"admits": "+15550000007"}]
    rows = [row for row in timeline(call, simulated=True) if row.what.startswith("slot")]
    assert [(row.what, row.minor) for row in rows] == [("slot free", True), ("slot freed", False)]
    assert rows[1].detail == "the call to +15550000007 is admitted for it"


def test_a_call_in_the_line_is_looked_at_when_its_time_is_over() -> None:
    call = in_line(1, "slot")
    assert next_look(call, AT) == {"at": AT + 3_600_000, "what": "its time in the line is over"}
    assert next_look(call, AT + 3_600_000) is None


GATES = [{"name": "workspace", "passed": True, "detail": {}}]


def dialed(call: CallHistory, place: int, name: str) -> None:
    """Gives an event of the call the receipt that a fence writes."""
    call.item["events"][place]["gates"] = json.dumps([GATES[0] | {"name": name}])


def test_the_receipt_is_that_of_the_last_dialing() -> None:
    call = history("call.queued", "call.dialing", "call.queued", "call.dialing", "call.ended")
    assert receipt(call) is None
    dialed(call, 1, "first")
    assert receipt(call) == {"at": AT + 100, "gates": [GATES[0] | {"name": "first"}], "putBack": True}
    dialed(call, 3, "second")
    assert receipt(call) == {"at": AT + 300, "gates": [GATES[0] | {"name": "second"}], "putBack": False}
    assert detail(call, simulated=True, now=AT)["receipt"] == receipt(call)


def test_the_callees_zones_are_those_of_the_call_or_else_of_its_number() -> None:
    assert callee_zones(history("call.queued", to="+15550000000")) == []
    assert callee_zones(history("call.queued", to="+17097220123")) == ["America/Halifax", "America/St_Johns"]
    named = history("call.queued", to="+17097220123", timeZone="Europe/Paris")
    assert callee_zones(named) == ["Europe/Paris"]


def test_a_scheduled_call_is_created_waiting_and_a_moved_one_says_what_it_waits_for() -> None:
    call = history("call.queued", status="queued")
    step = {"phase": "ended", "ms": 5, "won": True, "waitingFor": "scheduled_at"}
    call.steps = [
        step | {"point": "CallStore.create", "function": "InitiateCall", "at": AT + 5},
        step | {"point": "CallStore.reschedule", "function": "CallsApi", "at": AT + 20},
        {name: value for name, value in step.items() if name != "waitingFor"}
        | {"point": "CallStore.reschedule", "function": "CallsApi", "at": AT + 25},
        step | {"point": "CallStore.change_times", "function": "CallsApi", "at": AT + 30, "won": False},
    ]
    shown = [(row.what, row.detail, row.minor) for row in timeline(call, simulated=True) if row.who != "client"]
    until = "until the time it is scheduled for"
    assert ("queued", f"record written; it waits {until}", False) in shown
    assert [row for row in shown if row[0] == "moved"] == [
        ("moved", until, False),
        ("moved", "nothing makes it wait now", False),
    ]
    assert "not moved: another was faster" in [what for what, _, _ in shown]
