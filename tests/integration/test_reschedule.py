"""PATCH of a call: other times as long as nothing has rung, whatever else works on the call at that moment."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError

from shared.call import iso
from shared.line import earliest_ms
from shared.policies import Policy, Window
from tests.interleaving import change, just_before
from tests.system import System, demo_workspace

GET, PATCH = "GET /v1/api/call/{callId}", "PATCH /v1/api/call/{callId}"
CANCEL = "POST /v1/api/call/{callId}/cancel"
# Answers and hangs up a moment later; answers and stays.
NUMBER, STAYS = "+15550000000", "+15550000012"
DAY = 86_400
EVERY_DAY = frozenset(range(7))


def after(seconds: float) -> str:
    return iso(round((time.time() + seconds) * 1000))


def move(system: System, call_id: str, **times: Any) -> dict[str, Any]:
    return system.api(PATCH, call_id, body=times)


def moved(system: System, call_id: str, **times: Any) -> dict[str, Any]:
    answer = move(system, call_id, **times)
    assert answer["statusCode"] == 200, answer
    view = answer["json"]
    assert view == system.api(GET, call_id)["json"]
    assert isinstance(view, dict)
    return view


def refused(system: System, call_id: str, **times: Any) -> tuple[int, str, set[str]]:
    before = system.item(call_id)
    answer = move(system, call_id, **times)
    assert system.item(call_id) == before
    fields = {error["field"] for error in answer["json"].get("errors", ())}
    return answer["statusCode"], answer["json"]["code"], fields


def told(view: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(view[name] for name in ("scheduledAt", "expiresAt", "waitingFor", "earliestRingAt"))


# ── where it waits ──────────────────────────────────────────────────────────────────────────────────

FROM: dict[str, Callable[[], dict[str, Any]]] = {
    "now": dict,
    "soon": lambda: {"scheduled_at": after(600)},
    "far": lambda: {"scheduled_at": after(DAY)},
}


@pytest.mark.parametrize("source", FROM)
@pytest.mark.parametrize("target", ["soon", "far"])
def test_a_call_is_moved_to_a_later_time_and_does_not_ring_before(
    system: System, source: str, target: str
) -> None:
    call_id = system.place(NUMBER, **FROM[source]())
    at = after(700 if target == "soon" else 2 * DAY)
    assert told(moved(system, call_id, scheduled_at=at)) == (at, None, "scheduled_at", at)
    item = system.item(call_id)
    assert ("lineOf" in item, "waitUntil" in item) == (target == "far", target == "soon")
    if target == "far":
        assert earliest_ms(item["turn"]) == item["scheduledAt"]
        assert item["checkAt"] == item["queueDeadline"]
    # The message with which it was placed comes, and finds nothing to do.
    while system.dial():
        pass
    system.reconcile()
    assert (system.item(call_id)["status"], system.calls_placed()) == ("queued", [])


@pytest.mark.parametrize("source", ["soon", "far"])
def test_a_call_is_moved_to_now_and_rings(system: System, source: str) -> None:
    call_id = system.place(NUMBER, **FROM[source]())
    assert told(moved(system, call_id, scheduled_at=None)) == (None, None, None, None)
    assert not {"lineOf", "turn", "waitUntil", "scheduledAt"} & set(system.item(call_id))
    system.run_until(lambda: len(system.calls_placed()) == 1)
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_a_call_is_moved_to_a_moment_ahead_and_rings_then(system: System) -> None:
    call_id = system.place(NUMBER, scheduled_at=after(DAY))
    at = time.time() + 3
    moved(system, call_id, scheduled_at=after(3))
    system.run_until(lambda: system.ended(call_id))
    [dialed] = [entry["at"] for entry in system.item(call_id)["events"] if entry["type"] == "call.dialing"]
    assert dialed >= at * 1000 - 1000
    assert len(system.calls_placed()) == 1


def test_a_lost_message_of_a_moved_call_is_sent_again(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    call_id = system.place(NUMBER, scheduled_at=after(DAY))
    module = system.modules["calls_api"]

    def lose(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://sqs")

    monkeypatch.setattr(module.rescheduler.dial_queue._client, "send_message", lose)
    moved(system, call_id, scheduled_at=None)
    while system.dial():
        pass
    assert system.calls_placed() == []
    change(system, call_id, check_at_ms=1)
    system.reconcile()
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_windows_and_the_new_time_together_say_when(system: System) -> None:
    hours = (Window(EVERY_DAY, 9 * 60, 17 * 60),)
    system.workspaces.put(demo_workspace(policies={"sales": Policy("sales", windows=hours)}))
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=2)
    call_id = system.place(
        NUMBER,
        purpose="sales",
        time_zone="Etc/UTC",
        scheduled_at=f"{tomorrow}T10:00:00Z",
        expires_at=after(9 * DAY),
    )
    view = moved(system, call_id, scheduled_at=f"{tomorrow}T20:00:00Z")
    opens = tomorrow + datetime.timedelta(days=1)
    assert told(view)[2:] == ("scheduled_at", f"{opens}T09:00:00.000Z")
    late = refused(system, call_id, scheduled_at=f"{tomorrow}T20:00:00Z", expires_at=f"{tomorrow}T23:00:00Z")
    assert late == (400, "cannot_ring_in_time", {"expires_at"})


# ── the deadline ────────────────────────────────────────────────────────────────────────────────────


def test_a_time_that_is_not_given_stays_and_null_removes_it(system: System) -> None:
    at, until = after(DAY), after(2 * DAY)
    call_id = system.place(NUMBER, scheduled_at=at, expires_at=until)
    assert system.item(call_id)["checkAt"] == system.item(call_id)["callExpiresAt"]
    later = after(3 * DAY)
    assert told(moved(system, call_id, expires_at=later)) == (at, later, "scheduled_at", at)
    assert system.item(call_id)["checkAt"] == system.item(call_id)["callExpiresAt"]
    assert told(moved(system, call_id, expires_at=None)) == (at, None, "scheduled_at", at)
    item = system.item(call_id)
    ttl_ms = round(system.durations.queue_ttl * 1000)
    assert item["checkAt"] == item["queueDeadline"] == item["scheduledAt"] + ttl_ms
    assert told(moved(system, call_id, scheduled_at=after(4 * DAY), expires_at=after(5 * DAY)))[0] > later


def test_a_new_deadline_counts_from_the_move(system: System) -> None:
    """Not from the time at which the call was placed, and without the time that was paused before."""
    call_id = system.place(NUMBER, expires_at=after(DAY))
    change(system, call_id, queue_deadline_ms=1)
    before = time.time() * 1000
    moved(system, call_id, expires_at=None)
    item = system.item(call_id)
    assert item["queueDeadline"] >= before + system.durations.queue_ttl * 1000 - 1
    assert before - 1 <= item["pausedUntil"] <= time.time() * 1000


def test_a_call_that_was_to_expire_and_is_moved_meanwhile_does_not(system: System) -> None:
    """Whoever found it expired has read it before the move."""
    call_id = system.place(NUMBER, expires_at=after(DAY))
    change(system, call_id, expires_at_ms=1, check_at_ms=1)
    with just_before_end(system, lambda: moved(system, call_id, expires_at=after(DAY))):
        system.reconcile()
    assert system.item(call_id)["status"] == "queued"
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def just_before_end(system: System, does: Callable[[], Any]) -> Any:
    """The reconciler reads a due call, then this happens, and then it ends the call."""
    events = system.modules["reconcile_calls"].dynamodb.meta.events
    done: list[Any] = []

    @contextlib.contextmanager
    def around() -> Any:
        def hook(params: dict[str, Any], **_: Any) -> None:
            if not done and b"call.ended" in params["body"]:
                done.append(None)
                does()

        events.register_first("before-call.dynamodb.UpdateItem", hook)
        try:
            yield
        finally:
            events.unregister("before-call.dynamodb.UpdateItem", hook)
        assert done

    return around()


# ── what cannot be moved ────────────────────────────────────────────────────────────────────────────


def test_times_that_cannot_be_are_refused(system: System) -> None:
    call_id = system.place(NUMBER, scheduled_at=after(DAY), expires_at=after(2 * DAY))
    for times, fields in (
        ({}, {"scheduled_at"}),
        ({"to": NUMBER}, {"to"}),
        ({"scheduled_at": "tomorrow", "expires_at": 1}, {"scheduled_at", "expires_at"}),
        ({"scheduled_at": after(-120)}, {"scheduled_at"}),
        ({"scheduled_at": after(91 * DAY), "expires_at": None}, {"scheduled_at"}),
        # Together with the one that stays.
        ({"scheduled_at": after(3 * DAY)}, {"expires_at"}),
        ({"expires_at": after(DAY / 2)}, {"expires_at"}),
        ({"expires_at": after(40 * DAY)}, {"expires_at"}),
    ):
        assert refused(system, call_id, **times) == (400, "invalid_request", fields), times
    for body in (b"", b"[]", b"{"):
        answer = system.api(PATCH, call_id, body=body)
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_json")


def test_a_suppressed_number_and_a_policy_that_is_gone_are_refused_as_when_it_is_placed(system: System) -> None:
    system.workspaces.put(demo_workspace(policies={"sales": Policy("sales")}))
    call_id = system.place(NUMBER, purpose="sales", scheduled_at=after(DAY))
    put = system.api("PUT /v1/api/suppression/{number}", path={"number": NUMBER}, body={})
    assert put["statusCode"] == 200
    assert refused(system, call_id, scheduled_at=None) == (403, "number_suppressed", {"to"})
    system.api("DELETE /v1/api/suppression/{number}", path={"number": NUMBER})
    system.workspaces.put(demo_workspace())
    system.forget_workspaces()
    assert refused(system, call_id, scheduled_at=None) == (400, "unknown_purpose", {"purpose"})


def test_a_call_that_was_dialled_or_has_ended_is_not_moved(system: System) -> None:
    call_id = system.place(STAYS)
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    assert refused(system, call_id, scheduled_at=after(DAY)) == (409, "call_dialed", set())
    assert system.api(CANCEL, call_id)["statusCode"] == 200
    system.run_until(lambda: system.ended(call_id))
    assert refused(system, call_id, scheduled_at=after(DAY)) == (409, "call_ended", set())
    assert move(system, "0" * 24, scheduled_at=None)["statusCode"] == 404
    system.workspaces.put(demo_workspace(workspace_id="other"))
    other = system.api(PATCH, call_id, body={"scheduled_at": None}, headers={"x-workspace-id": "other"})
    assert (other["statusCode"], other["json"]["code"]) == (404, "call_not_found")


def test_a_scheduled_call_is_read_and_canceled(system: System) -> None:
    at = after(DAY)
    call_id = system.place(NUMBER, scheduled_at=at, time_zone="America/Phoenix", dtmf="1w2")
    view = system.api(GET, call_id)["json"]
    assert told(view) == (at, None, "scheduled_at", at)
    assert (view["timeZone"], view["dtmf"], view["purpose"], view["consent"]) == (
        "America/Phoenix",
        "1w2",
        None,
        None,
    )
    [listed] = system.api("GET /v1/api/call", query={"status": "queued"})["json"]["calls"]
    assert listed == {name: view[name] for name in listed}
    assert system.api(CANCEL, call_id)["statusCode"] == 200
    assert not {"lineOf", "dueShard"} & set(system.item(call_id))
    system.reconcile()
    assert system.events(call_id) == ["call.queued", "call.ended"]
    assert refused(system, call_id, scheduled_at=None)[:2] == (409, "call_ended")


# ── what happens at the same time ───────────────────────────────────────────────────────────────────


def test_a_worker_that_holds_the_call_decides_anew_before_the_fence(system: System) -> None:
    """It has read the call, taken its lease and its slot, made the room: the move is what counts."""
    call_id = system.place(NUMBER)
    client = system.modules["dial_worker"].dynamodb
    at = after(DAY)
    done: list[Any] = []

    def just_before_the_fence(**_: Any) -> None:
        if not done:
            done.append(moved(system, call_id, scheduled_at=at))

    client.meta.events.register_first("before-call.dynamodb.TransactWriteItems", just_before_the_fence)
    try:
        system.dial()
    finally:
        client.meta.events.unregister("before-call.dynamodb.TransactWriteItems", just_before_the_fence)
    assert done[0]["scheduledAt"] == at
    assert system.calls_placed() == []
    assert told(system.api(GET, call_id)["json"]) == (at, None, "scheduled_at", at)
    assert "lineOf" in system.item(call_id)
    assert system.limits.active_calls("demo") == frozenset()


def test_a_move_that_a_fence_precedes_is_refused(system: System) -> None:
    call_id = system.place(NUMBER)
    answers: list[dict[str, Any]] = []

    def fence() -> None:
        change(system, call_id, status="dialing", lease_id="lease", lease_until_ms=2**42)

    with just_before(system, "calls_api", fence):
        answers.append(move(system, call_id, scheduled_at=after(DAY)))
    assert [(answer["statusCode"], answer["json"]["code"]) for answer in answers] == [(409, "call_dialed")]
    assert "scheduledAt" not in system.item(call_id)


@pytest.mark.parametrize("what", ["leased", "admitted", "moved", "entered the line"])
def test_a_move_that_another_write_precedes_decides_anew(system: System, what: str) -> None:
    times: dict[str, Any] = {"scheduled_at": after(DAY)} if what in ("admitted", "moved") else {}
    call_id = system.place(NUMBER, **times)
    calls = system.modules["initiate_call"].acceptor.calls
    now = round(time.time() * 1000)

    def other() -> None:
        seen = calls.get(call_id)
        if what == "leased":
            assert calls.take_lease(call_id, "lease", 2**42, now).won
        elif what == "admitted":
            line = seen.line_of
            assert calls.admit(call_id, line, seen.turn, f"{line}#admitted", now + 60_000, now).won
        elif what == "moved":
            assert move(system, call_id, scheduled_at=after(2 * DAY))["statusCode"] == 200
        else:
            turn = f"{now:013}#{now}#{call_id}"
            assert calls.enter_line(call_id, "demo#single", turn, "slot", now + 90_000, now).won

    at = after(3 * DAY)
    with just_before(system, "calls_api", other):
        answer = move(system, call_id, scheduled_at=at)
    assert answer["statusCode"] == 200, answer
    item = system.item(call_id)
    assert iso(item["scheduledAt"]) == at
    if what == "leased":
        assert (item["leaseId"], "lineOf" in item) == ("lease", False)
    else:
        assert (item["lineOf"], earliest_ms(item["turn"])) == ("demo#single", item["scheduledAt"])
        assert not {"admittedAt", "admission"} & set(item)


def test_a_leased_call_that_enters_the_line_meanwhile_gets_the_turn_of_its_new_time(system: System) -> None:
    call_id = system.place(NUMBER)
    calls = system.modules["initiate_call"].acceptor.calls
    now = round(time.time() * 1000)
    assert calls.take_lease(call_id, "lease", now + 60_000, now).won
    entered: list[bool] = []

    def enter() -> None:
        turn = f"{now:013}#{now}#{call_id}"
        entered.append(
            calls.enter_line(call_id, "demo#single", turn, "slot", now + 90_000, now, lease="lease").won
        )

    at = after(DAY)
    with just_before(system, "calls_api", enter):
        assert told(moved(system, call_id, scheduled_at=at)) == (at, None, "scheduled_at", at)
    assert entered == [True]
    item = system.item(call_id)
    assert (item["lineOf"], earliest_ms(item["turn"])) == ("demo#single", item["scheduledAt"])
    assert item["checkAt"] > item["scheduledAt"]


def test_a_call_that_waits_with_its_slot_keeps_it_until_its_next_message(system: System) -> None:
    """Only a process with its lease may free the slot."""
    call_id = system.place(NUMBER)
    wait_ms = round(time.time() * 1000) + 600_000
    change(system, call_id, slots_item=0, attempts=1, waiting_for="retry", wait_until_ms=wait_ms)
    system.limits.take_slot("demo", call_id, 5, now_ms=wait_ms)
    at = after(DAY)
    view = moved(system, call_id, scheduled_at=at)
    assert told(view) == (at, None, "retry", iso(wait_ms))
    change(system, call_id, wait_until_ms=1)
    while system.dial():
        pass
    assert told(system.api(GET, call_id)["json"]) == (at, None, "scheduled_at", at)
    assert system.limits.active_calls("demo") == frozenset()
    assert system.calls_placed() == []


def test_a_call_whose_slot_is_being_freed_in_the_line_is_moved_after_that(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that frees it puts the call back to the turn that it has read."""
    call_id = system.place(NUMBER, scheduled_at=after(DAY))
    calls = system.modules["reconcile_calls"].calls
    now = round(time.time() * 1000)
    seen = calls.get(call_id)
    assert calls.hold(seen, "repair", now + 60_000, now).won

    def put_back(_: float) -> None:
        monkeypatch.undo()
        again = calls.enter_line(
            call_id, seen.line_of, seen.turn, "scheduled_at", seen.check_at_ms, now, lease="repair"
        )
        assert again.won

    monkeypatch.setattr("calls_api.rescheduling.time.sleep", put_back)
    at = after(2 * DAY)
    assert told(moved(system, call_id, scheduled_at=at)) == (at, None, "scheduled_at", at)
    assert earliest_ms(system.item(call_id)["turn"]) == system.item(call_id)["scheduledAt"]
