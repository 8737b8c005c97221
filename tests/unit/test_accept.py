"""What accepting a request writes, in which order, and what a repeat of it gets."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from initiate_call.accept import Acceptor
from initiate_call.rate_limit import RateLimit
from initiate_call.request import MAXIMUM_BODY_BYTES
from shared.call import Call, iso
from shared.call_store import Write
from shared.callback_url import Policy
from shared.errors import QueueError, RequestRefusedError, StoreError, StoreUnclearError
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
