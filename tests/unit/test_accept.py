"""What accepting a request writes, in which order, and what a repeat of it gets."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from initiate_call.accept import Acceptor
from initiate_call.rate_limit import RateLimit
from initiate_call.request import MAXIMUM_BODY_BYTES
from shared.call import Call, iso
from shared.call_store import Write
from shared.callback_url import Policy
from shared.errors import QueueError, RequestRefusedError, StoreError, StoreUnclearError
from shared.numbers import Suppression
from shared.policies import Policy as Rules
from shared.policies import Window
from shared.workspaces import WorkspaceCache, key_hash
from tests.one_call import NOW, WORKSPACE, OneCall

MINUTE = NOW // 60_000
TENANT = dataclasses.replace(
    WORKSPACE,
    api_key_hashes=frozenset({key_hash("key")}),
    agents=frozenset({"agent-1", "agent-2"}),
    calls_per_minute=10,
)
BODY: dict[str, Any] = {"to": "+1 202 555 0123", "call_agent_id": "agent-1"}


class Front(OneCall):
    """addresses: of each host that is looked up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.workspaces.put(TENANT)
        self.addresses: list[str] | OSError = ["8.8.8.8"]
        self.looked_up: list[tuple[str, int]] = []
        self.acceptor = Acceptor(
            calls=self.calls,
            numbers=self.numbers,
            limits=self.limits,
            workspaces=WorkspaceCache(self.workspaces, 0),
            rate_limit=RateLimit(self.limits),
            dial_queue=self.dial_queue,
            durations=self.durations,
            callback_policy=Policy(),
            look_up=self._look_up,
            clock=lambda: self.now,
        )

    def _look_up(self, host: str, port: int) -> list[str]:
        self.looked_up.append((host, port))
        if isinstance(self.addresses, OSError):
            raise self.addresses
        return self.addresses

    def post(self, key: str | None = None, **fields: Any) -> tuple[Call, bool]:
        """The call, and whether it had been accepted before."""
        body = {name: value for name, value in (BODY | fields).items() if value is not ...}
        accepted = self.acceptor.accept("demo", "key", key, json.dumps(body).encode())
        assert accepted.body()["callId"] == accepted.call.call_id
        return accepted.call, accepted.replayed

    def refused(self, key: str | None = None, **fields: Any) -> tuple[int, str, list[str]]:
        """Status, code and fields. Nothing is written and no permit is spent."""
        with pytest.raises(RequestRefusedError) as refused:
            self.post(key, **fields)
        assert (self.dynamodb.table("calls"), self.dial_queue.sent) == ({}, [])
        assert [key for key in self.dynamodb.table("workspaces") if key != ("demo",)] == []
        return refused.value.status, refused.value.code, [error.field for error in refused.value.errors]

    @property
    def spent(self) -> int:
        """Permits that one more process finds taken and not left to this one."""
        held = self.acceptor.rate_limit._held["demo"]
        return held.taken - held.left


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Front:
    return Front(monkeypatch)


def test_an_accepted_call_is_the_record_that_the_message_names(front: Front) -> None:
    call, replayed = front.post(
        callback_url="https://example.com/x",
        dynamic_variables={"a": 1},
        metadata={"b": [2]},
        ring_timeout_seconds=30,
        max_duration_seconds=60,
        **{"from": "+12025550101"},
    )
    assert not replayed
    assert front.calls.get(call.call_id) == dataclasses.replace(call, due_shard=int(call.call_id[0], 16))
    assert call == Call(
        call_id=call.call_id,
        workspace_id="demo",
        call_agent_id="agent-1",
        to="+12025550123",
        from_number="+12025550101",
        room_name=call.room_name,
        job_id="message",
        created_at=iso(NOW),
        status="queued",
        events=({"type": "call.queued", "at": NOW},),
        callback_url="https://example.com/x",
        dynamic_variables='{"a": 1}',
        metadata='{"b": [2]}',
        ring_timeout_seconds=30,
        max_duration_seconds=60,
        queue_deadline_ms=NOW + 3_600_000,
        check_at_ms=NOW + 60_000,
    )
    assert re.fullmatch("[0-9a-f]{24}", call.call_id)
    assert re.fullmatch("agent-1-[a-z0-9]{10}", call.room_name)
    assert front.dial_queue.sent == [({"callId": call.call_id, "workspaceId": "demo"}, "demo", 0)]
    assert (front.looked_up, front.spent) == ([("example.com", 443)], 1)


def test_the_answer_names_call_room_and_job(front: Front) -> None:
    accepted = front.acceptor.accept("demo", "key", None, json.dumps(BODY).encode())
    assert accepted.body() == {
        "status": "success",
        "message": "Outbound call job scheduled for agent agent-1 to number +12025550123",
        "callId": accepted.call.call_id,
        "roomName": accepted.call.room_name,
        "jobId": "message",
    }


def test_two_requests_without_a_key_are_two_calls(front: Front) -> None:
    first, second = front.post()[0], front.post()[0]
    assert first.call_id != second.call_id
    assert first.room_name != second.room_name
    assert (first.request_hash, first.callback_url, first.metadata) == (None, None, None)
    assert front.looked_up == []


def test_the_message_is_sent_before_the_record_is_written(front: Front) -> None:
    """A record without its message would be dialled a minute late; a message without a record is dropped."""
    front.before(front.calls, "create", lambda: sent.extend(front.dial_queue.sent))
    sent: list[Any] = []
    call, _ = front.post()
    assert [message["callId"] for message, _, _ in sent] == [call.call_id]


def test_without_a_message_there_is_no_record(front: Front) -> None:
    def fails(*given: Any, **named: Any) -> str:
        raise QueueError("no answer")

    front.dial_queue.send = fails  # type: ignore[method-assign]
    with pytest.raises(QueueError):
        front.post()
    assert front.dynamodb.table("calls") == {}


# ── who may call whom ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"to": "+12025550100"}, (400, "invalid_number", ["to"])),
        ({"to": "+12025550101", "from": "+12025550101"}, (400, "invalid_number", ["to"])),
        ({"to": "+442079460123"}, (403, "number_not_allowed", ["to"])),
        ({"to": "+19005550123"}, (403, "number_not_allowed", ["to"])),
        ({"call_agent_id": "agent-3"}, (403, "agent_not_allowed", ["call_agent_id"])),
        ({"from": "+12025550199"}, (403, "from_not_allowed", ["from"])),
        (
            {"from": "+12025550199", "call_agent_id": "agent-3", "to": "+442079460123"},
            (403, "number_not_allowed", ["to", "call_agent_id", "from"]),
        ),
        ({"to": 7}, (400, "invalid_request", ["to"])),
        ({"to": ...}, (400, "invalid_request", ["to"])),
    ],
)
@pytest.mark.parametrize("key", [None, "k"])
def test_a_refused_request_leaves_nothing(
    front: Front, fields: dict[str, Any], expected: tuple[int, str, list[str]], key: str | None
) -> None:
    assert front.refused(key, **fields) == expected


@pytest.mark.parametrize(
    ("workspace", "fields"),
    [
        ({"allow_special_numbers": True}, {"to": "+19005550123"}),
        ({"agents": frozenset()}, {"call_agent_id": "agent-3"}),
        ({"from_numbers": ()}, {"to": "+12025550100"}),
        ({}, {"to": "+12025550101"}),
        ({}, {"to": "+12025550100", "from": "+12025550101"}),
    ],
)
def test_what_a_workspace_allows_is_accepted(
    front: Front, workspace: dict[str, Any], fields: dict[str, Any]
) -> None:
    front.workspaces.put(dataclasses.replace(TENANT, **workspace))
    assert front.post(**fields)[0].status == "queued"


@pytest.mark.parametrize("given", [[None, "key"], ["demo", None], ["demo", "other"]])
def test_a_request_without_id_or_key_is_refused_before_it_is_read(front: Front, given: list[str | None]) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        front.acceptor.accept(given[0], given[1], "k" * 300, b"{")
    assert refused.value.code in ("missing_workspace", "invalid_api_key")


@pytest.mark.parametrize(("size", "refused"), [(MAXIMUM_BODY_BYTES, 400), (MAXIMUM_BODY_BYTES + 1, 413)])
def test_the_largest_body(front: Front, size: int, refused: int) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        front.acceptor.accept("demo", "key", None, b" " * size)
    assert caught.value.status == refused
    assert MAXIMUM_BODY_BYTES == 65_536


@pytest.mark.parametrize("key", ["", "x" * 256, "\n"])
def test_an_invalid_idempotency_key_is_refused(front: Front, key: str) -> None:
    assert front.refused(key) == (400, "invalid_idempotency_key", [])


def test_a_callback_with_a_private_address_is_refused(front: Front) -> None:
    front.addresses = ["8.8.8.8", "10.0.0.1"]
    assert front.refused(callback_url="https://example.com") == (400, "invalid_url", ["callback_url"])


@pytest.mark.parametrize("addresses", [OSError("no answer"), []])
def test_a_callback_that_cannot_be_looked_up_is_accepted(front: Front, addresses: Any) -> None:
    front.addresses = addresses
    assert front.post(callback_url="https://example.com")[0].callback_url == "https://example.com"


def test_the_eleventh_call_of_a_minute_is_refused(front: Front) -> None:
    for _ in range(10):
        front.post()
    with pytest.raises(RequestRefusedError) as refused:
        front.post()
    assert refused.value.status == 429
    assert len(front.dial_queue.sent) == len(front.dynamodb.table("calls")) == 10


# ── the same request again ──────────────────────────────────────────────────────────────────────────


def test_a_repeat_gets_the_first_call_and_sends_nothing(front: Front) -> None:
    first, _ = front.post("k", metadata={"a": 1, "b": 2})
    front.now += 60_000
    again, replayed = front.post("k", metadata={"b": 2, "a": 1})
    assert re.fullmatch("[0-9a-f]{24}", first.call_id)
    assert (again.call_id, again.room_name, again.created_at) == (first.call_id, first.room_name, iso(NOW))
    assert replayed
    assert (len(front.dial_queue.sent), front.spent) == (1, 1)


def test_a_repeat_is_answered_though_it_would_be_refused_by_now(front: Front) -> None:
    front.post("k")
    front.workspaces.put(dataclasses.replace(TENANT, agents=frozenset({"other"}), calls_per_minute=1))
    assert front.post("k")[1]


def test_a_repeat_is_answered_though_the_callees_record_cannot_be_read(front: Front) -> None:
    first, _ = front.post("k")
    opt_out(front)
    del front.dynamodb.table("numbers")["demo#+12025550123",]["suppressed"]["all"]["reason"]
    again, replayed = front.post("k")
    assert (again.call_id, replayed, len(front.dial_queue.sent)) == (first.call_id, True, 1)


@pytest.mark.parametrize("fields", [{"to": "+12025550124"}, {"metadata": {}}, {"ring_timeout_seconds": 40.0}])
def test_a_key_that_comes_with_another_body_is_refused(front: Front, fields: dict[str, Any]) -> None:
    front.post("k", ring_timeout_seconds=40)
    with pytest.raises(RequestRefusedError) as refused:
        front.post("k", **{"ring_timeout_seconds": 40} | fields)
    assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")
    assert len(front.dial_queue.sent) == 1


def test_a_key_is_its_workspaces_own(front: Front) -> None:
    front.workspaces.put(dataclasses.replace(TENANT, workspace_id="other"))
    first, _ = front.post("k")
    other = front.acceptor.accept("other", "key", "k", json.dumps(BODY).encode())
    assert not other.replayed
    assert other.call.call_id != first.call_id
    assert front.post("k2")[0].call_id != first.call_id


def other_wins(front: Front, **fields: Any) -> None:
    """The same request, on another process, is faster between this one's read and its write."""
    other = Front.__new__(Front)
    other.__dict__ |= front.__dict__
    other.acceptor = dataclasses.replace(front.acceptor, rate_limit=RateLimit(front.limits))

    def post() -> None:
        send = front.dial_queue.send
        front.dial_queue.send = lambda *given, **named: "other"  # type: ignore[method-assign]
        other.post("k", **fields)
        front.dial_queue.send = send  # type: ignore[method-assign]

    front.before(front.calls, "create", post)


def test_two_processes_with_one_request_make_one_call_and_give_one_permit_back(front: Front) -> None:
    other_wins(front)
    call, replayed = front.post("k")
    assert (call.job_id, replayed) == ("other", True)
    assert len(front.dynamodb.table("calls")) == 1
    assert front.acceptor.rate_limit._held["demo"].left == 1


def test_two_processes_with_one_key_and_two_bodies_make_one_call(front: Front) -> None:
    other_wins(front, to="+12025550124")
    with pytest.raises(RequestRefusedError) as refused:
        front.post("k")
    assert refused.value.code == "idempotency_key_reused"


# ── a write whose outcome is unknown ────────────────────────────────────────────────────────────────


def unclear() -> None:
    raise StoreUnclearError("no answer")


@pytest.mark.parametrize("key", [None, "k"])
def test_a_record_that_was_written_without_an_answer_is_accepted(front: Front, key: str | None) -> None:
    front.after(front.calls, "create", unclear)
    call, replayed = front.post(key)
    assert front.calls.get(call.call_id) is not None
    assert (replayed, front.spent) == (False, 1)


@pytest.mark.parametrize("key", [None, "k"])
def test_a_record_that_was_not_written_is_an_error(front: Front, key: str | None) -> None:
    front.before(front.calls, "create", unclear)
    with pytest.raises(StoreUnclearError):
        front.post(key)
    assert front.dynamodb.table("calls") == {}


def test_a_record_that_expired_at_the_same_moment_is_an_error(front: Front) -> None:
    front.calls.create = lambda call: Write(False, None)  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="neither written nor found"):
        front.post()


# ── when and why it may ring ────────────────────────────────────────────────────────────────────────

# 2027-01-15, 08:01 in UTC, 03:01 in New York.
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
CONSENT = {"basis": "contract", "obtained_at": "2026-12-24T09:00:00+01:00", "reference": "crm/7"}


def tenant(front: Front, *policies: Rules, **changes: Any) -> None:
    named = {policy.name: policy for policy in policies}
    front.workspaces.put(dataclasses.replace(TENANT, policies=named, **changes))


def opt_out(front: Front, scope: str = "all", number: str = "+12025550123") -> None:
    front.numbers.suppress("demo", number, Suppression(scope, "asked", NOW), NOW)


def after(ms: int) -> str:
    return iso(NOW + ms)


def test_the_record_has_what_was_asked_for(front: Front) -> None:
    tenant(front, Rules("sales"))
    call, _ = front.post(
        scheduled_at=after(5_000),
        expires_at=after(HOUR_MS),
        purpose="sales",
        time_zone="America/Phoenix",
        consent=CONSENT,
        dtmf="1w#",
    )
    there = front.calls.get(call.call_id)
    assert there is not None
    assert (there.scheduled_at_ms, there.expires_at_ms) == (NOW + 5_000, NOW + HOUR_MS)
    assert there.queue_deadline_ms == NOW + 5_000 + HOUR_MS
    assert (there.purpose, there.time_zone, there.dtmf) == ("sales", "America/Phoenix", "1w#")
    assert there.consent == {
        "basis": "contract",
        "obtainedAt": "2026-12-24T09:00:00+01:00",
        "reference": "crm/7",
    }


@pytest.mark.parametrize(
    ("fields", "code", "wrong"),
    [
        ({"scheduled_at": after(-61_000)}, "invalid_request", ["scheduled_at"]),
        ({"scheduled_at": after(90 * DAY_MS + 1)}, "invalid_request", ["scheduled_at"]),
        ({"scheduled_at": after(9), "expires_at": after(9)}, "invalid_request", ["expires_at"]),
        ({"expires_at": after(0)}, "invalid_request", ["expires_at"]),
        ({"expires_at": after(30 * DAY_MS + 1)}, "invalid_request", ["expires_at"]),
        (
            {
                "scheduled_at": after(-61_000),
                "expires_at": after(-70_000),
                "consent": CONSENT | {"obtained_at": after(60_001)},
            },
            "invalid_request",
            ["scheduled_at", "expires_at", "consent.obtained_at"],
        ),
        ({"consent": CONSENT | {"obtained_at": after(60_001)}}, "invalid_request", ["consent.obtained_at"]),
        ({"purpose": "sales"}, "unknown_purpose", ["purpose"]),
    ],
)
@pytest.mark.parametrize("key", [None, "k"])
def test_times_and_names_that_cannot_be_are_refused(
    front: Front, fields: dict[str, Any], code: str, wrong: list[str], key: str | None
) -> None:
    assert front.refused(key, **fields) == (400, code, wrong)


@pytest.mark.parametrize("late", [59_000, 60_000])
def test_a_time_that_has_just_passed_is_now(front: Front, late: int) -> None:
    call, _ = front.post(scheduled_at=after(-late), consent=CONSENT | {"obtained_at": after(60_000)})
    assert (call.scheduled_at_ms, call.wait_until_ms, call.line_of) == (NOW, 0, None)
    assert [delay for _, _, delay in front.dial_queue.sent] == [0]


@pytest.mark.parametrize("purpose", [None, "default"])
def test_the_default_purpose_needs_no_policy(front: Front, purpose: str | None) -> None:
    assert front.post(purpose=purpose)[0].purpose == purpose


@pytest.mark.parametrize(
    ("scope", "purpose", "refused"),
    [
        ("all", None, True),
        ("all", "sales", True),
        ("default", None, True),
        ("sales", None, False),
        ("sales", "sales", True),
    ],
)
@pytest.mark.parametrize("key", [None, "k"])
def test_a_suppressed_number_is_refused(
    front: Front, scope: str, purpose: str | None, refused: bool, key: str | None
) -> None:
    tenant(front, Rules("sales"))
    opt_out(front, scope)
    if refused:
        assert front.refused(key, purpose=purpose) == (403, "number_suppressed", ["to"])
    else:
        assert front.post(key, purpose=purpose)[0].status == "queued"


@pytest.mark.parametrize("to", ["+525512345678", "+5215512345678"])
def test_a_number_is_suppressed_however_it_is_spelled(front: Front, to: str) -> None:
    tenant(front, allowed_calling_codes=frozenset({"+52"}))
    opt_out(front, number="+5215512345678")
    assert front.refused(to=to) == (403, "number_suppressed", ["to"])


@pytest.mark.parametrize("key", [None, "k"])
def test_a_number_whose_record_cannot_be_read_is_an_error(front: Front, key: str | None) -> None:
    opt_out(front)
    del front.dynamodb.table("numbers")["demo#+12025550123",]["suppressed"]["all"]["reason"]
    with pytest.raises(StoreError, match="cannot be read"):
        front.post(key)
    assert (front.dynamodb.table("calls"), front.dial_queue.sent) == ({}, [])


def hours(opens: int, closes: int, **more: Any) -> Rules:
    """Open between these minutes after NOW."""
    windows = (Window(frozenset(range(7)), 481 + opens, 481 + closes),)
    given: dict[str, Any] = {"zone": "Etc/UTC", "windows": windows}
    return Rules("default", **given | more)


@pytest.mark.parametrize(
    ("policy", "fields", "expected"),
    [
        (Rules("default", consent_required=True), {}, (400, "consent_required", ["consent"])),
        (hours(0, 60, zone="recipient"), {"to": "+88213200000"}, (400, "time_zone_required", ["time_zone"])),
        (hours(60, 120), {"expires_at": after(HOUR_MS)}, (400, "cannot_ring_in_time", ["expires_at"])),
        # The queue's hour.
        (hours(61, 120), {}, (400, "cannot_ring_in_time", ["expires_at"])),
        (hours(0, 60), {"scheduled_at": after(2 * HOUR_MS)}, (400, "cannot_ring_in_time", ["expires_at"])),
    ],
)
def test_what_the_policy_does_not_let_ring_in_time_is_refused(
    front: Front, policy: Rules, fields: dict[str, Any], expected: Any
) -> None:
    tenant(front, policy, allowed_calling_codes=frozenset({"+1", "+8"}), allow_special_numbers=True)
    stored = dict(front.dynamodb.table("numbers"))
    with pytest.raises(RequestRefusedError) as caught:
        front.post(**fields)
    refused = caught.value
    assert (refused.status, refused.code, [error.field for error in refused.errors]) == expected
    assert (front.dynamodb.table("calls"), front.dial_queue.sent) == ({}, [])
    assert front.dynamodb.table("numbers") == stored


def test_what_the_policy_asks_for_is_accepted(front: Front) -> None:
    policy = hours(0, 60, zone="recipient", consent_required=True)
    tenant(front, policy, allowed_calling_codes=frozenset({"+8"}), allow_special_numbers=True)
    call, _ = front.post(to="+88213200000", time_zone="Etc/UTC", consent=CONSENT)
    assert (call.waiting_for, call.line_of) == (None, None)


@pytest.mark.parametrize(
    ("ahead", "delay"), [(1, 0), (1_000, 1), (61_999, 61), (900_000, 900), (900_001, None), (90 * DAY_MS, None)]
)
def test_where_a_call_waits_for_its_time(front: Front, ahead: int, delay: int | None) -> None:
    call, _ = front.post(scheduled_at=after(ahead))
    there = front.calls.get(call.call_id)
    assert there is not None
    assert (there.status, there.job_id, there.waiting_for) == ("queued", "message", "scheduled_at")
    [(message, group, sent)] = front.dial_queue.sent
    assert (message["callId"], group, sent) == (call.call_id, "demo", delay or 0)
    if delay is not None:
        assert "hold" not in message
        assert (there.wait_until_ms, there.line_of) == (NOW + ahead, None)
        assert there.check_at_ms == NOW + ahead + MINUTE_MS
    else:
        assert message["hold"] is True
        assert (there.line_of, there.turn) == ("demo#single", f"{NOW + ahead:013}#{NOW}#{call.call_id}")
        assert there.check_at_ms == NOW + ahead + HOUR_MS
    assert front.spent == 1


@pytest.mark.parametrize(("ahead", "delayed"), [(5, True), (30, False)])
def test_a_call_waits_for_its_window_as_for_its_time(front: Front, ahead: int, delayed: bool) -> None:
    tenant(front, hours(ahead, 120))
    call, _ = front.post()
    assert call.waiting_for == "calling_window"
    assert call.wait_until_ms == (NOW + 5 * MINUTE_MS if delayed else 0)
    assert (call.line_of is None) is delayed


@pytest.mark.parametrize("key", [None, "k"])
def test_a_call_costs_three_requests(front: Front, key: str | None) -> None:
    """The number is read together with what a key names; the message is the third. Workspace and permits are
    cached.
    """
    front.acceptor = dataclasses.replace(front.acceptor, workspaces=WorkspaceCache(front.workspaces, 60))
    front.workspaces.put(dataclasses.replace(TENANT, calls_per_minute=100))
    front.post()
    front.dynamodb.requests.clear()
    front.dial_queue.sent.clear()
    front.post(key, callback_url="https://example.com")
    assert front.dynamodb.requests == ["get_item" if key is None else "batch_get_item", "put_item"]
    assert len(front.dial_queue.sent) == 1


REFUSED_BY_NOW: dict[str, Callable[[Front], Any]] = {
    "suppressed": opt_out,
    "consent": lambda front: tenant(front, Rules("sales", consent_required=True)),
    "window": lambda front: tenant(front, dataclasses.replace(hours(61, 62), name="sales")),
    "purpose": tenant,
    "passed": lambda front: setattr(front, "now", NOW + DAY_MS),
}


@pytest.mark.parametrize("why", REFUSED_BY_NOW)
def test_a_repeat_is_answered_though_its_call_could_not_be_placed_by_now(front: Front, why: str) -> None:
    tenant(front, Rules("sales"))
    fields: dict[str, Any] = {"purpose": "sales", "scheduled_at": after(9_000), "expires_at": after(60_000)}
    first, _ = front.post("k", **fields)
    REFUSED_BY_NOW[why](front)
    assert front.post("k", **fields) == (front.calls.get(first.call_id), True)
    assert len(front.dial_queue.sent) == 1
    with pytest.raises(RequestRefusedError):
        front.post("another", **fields)


# ── the preview ─────────────────────────────────────────────────────────────────────────────────────


def preview(front: Front, **fields: Any) -> dict[str, Any]:
    """What it answers. It writes nothing, sends nothing and spends nothing."""
    front.dynamodb.requests.clear()
    try:
        return front.acceptor.preview("demo", "key", json.dumps(BODY | fields).encode())
    finally:
        assert set(front.dynamodb.requests) <= {"get_item", "batch_get_item"}
        assert (front.dial_queue.sent, front.acceptor.rate_limit._held) == ([], {})


@pytest.mark.parametrize(
    ("fields", "decision", "why", "ahead"),
    [
        ({}, "ring", None, None),
        ({"scheduled_at": after(-9)}, "ring", None, None),
        ({"scheduled_at": after(9)}, "wait", "scheduled_at", 9),
        ({"purpose": "later"}, "wait", "calling_window", 30 * MINUTE_MS),
        (
            {"purpose": "later", "scheduled_at": after(40 * MINUTE_MS)},
            "wait",
            "scheduled_at",
            40 * MINUTE_MS,
        ),
        ({"purpose": "later", "scheduled_at": after(MINUTE_MS)}, "wait", "scheduled_at", 30 * MINUTE_MS),
    ],
)
def test_a_preview_says_what_would_become_of_a_call(
    front: Front, fields: dict[str, Any], decision: str, why: str | None, ahead: int | None
) -> None:
    tenant(front, dataclasses.replace(hours(30, 120), name="later"))
    view = preview(front, **fields)
    assert (view["status"], view["decision"], view["waitingFor"]) == ("success", decision, why)
    assert view["earliestRingAt"] == (None if ahead is None else after(ahead))
    assert [gate["name"] for gate in view["gates"]][-3:] == ["paused", "trunk", "slot"]


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        (lambda front: front.limits.pause(NOW), "paused"),
        (lambda front: front.dynamodb.table("numbers").clear(), "paused"),
        (lambda front: [front.limits.take_slot("demo", str(n), 2) for n in range(2)], "slot"),
        (lambda front: front.limits.note_crowded("demo", 0, NOW, NOW), "slot"),
    ],
)
def test_a_preview_says_what_the_system_waits_for(front: Front, stop: Callable[[Front], Any], why: str) -> None:
    stop(front)
    view = preview(front)
    assert (view["decision"], view["waitingFor"], view["earliestRingAt"]) == ("wait", why, None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"to": 7}, (400, "invalid_request")),
        ({"to": "+442079460123"}, (403, "number_not_allowed")),
        ({"call_agent_id": "agent-3"}, (403, "agent_not_allowed")),
        ({"purpose": "gone"}, (400, "unknown_purpose")),
        ({"purpose": "strict"}, (400, "consent_required")),
        ({"purpose": "closed"}, (400, "cannot_ring_in_time")),
        ({"to": "+12025550199"}, (403, "number_suppressed")),
        ({"expires_at": after(-1)}, (400, "invalid_request")),
        ({"callback_url": "https://example.com"}, (400, "invalid_url")),
    ],
)
def test_a_preview_refuses_what_the_request_would_be_refused_for(
    front: Front, fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    tenant(front, Rules("strict", consent_required=True), dataclasses.replace(hours(61, 120), name="closed"))
    opt_out(front, number="+12025550199")
    front.addresses = ["10.0.0.1"]
    with pytest.raises(RequestRefusedError) as previewed:
        preview(front, **fields)
    with pytest.raises(RequestRefusedError) as refused:
        front.post(**fields)
    assert (refused.value.status, refused.value.code) == expected
    assert (previewed.value.status, previewed.value.errors) == (refused.value.status, refused.value.errors)


def test_a_preview_is_of_the_workspace_as_it_is_now(front: Front) -> None:
    """Not as a cache has it: it is asked to see what a change does."""
    front.acceptor = dataclasses.replace(front.acceptor, workspaces=WorkspaceCache(front.workspaces, 60))
    assert preview(front)["decision"] == "ring"
    tenant(front, hours(30, 120))
    assert preview(front)["waitingFor"] == "calling_window"


@pytest.mark.parametrize("key", [None, "other"])
def test_a_preview_needs_the_key(front: Front, key: str | None) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        front.acceptor.preview("demo", key, b"{")
    assert refused.value.status == 401
