"""What each of LiveKit's events does to a call in each of its states, with the real conditions of the table."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from typing import Any, cast

import pytest
from livekit.protocol.models import DisconnectReason, ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from livekit_events.apply_event import EventApplier, call_id_of
from shared.call import Call, Outcome, event
from shared.call_store import CallStore
from shared.durations import Durations
from shared.limits import LimitStore
from shared.queues import Queue
from tests.webhook_simulation import MemoryQueue
from tests.workspaces_table import TABLE, OneAtATime, workspaces_table

CALL = "a" * 24
IDENTITY = f"call-{CALL}"
ROOM, SID = "agent-1-x7k2m9p4q1", "RM_1"
NOW = 1_800_000_000_000
SECONDS = NOW // 1000 - 7
METADATA = f'{{"callId":"{CALL}"}}'
LEFT, JOINED, FINISHED = "participant_left", "participant_joined", "room_finished"
AGENT = ParticipantInfo.Kind.AGENT


class World:
    """A call, brought to a state by the writes that bring it there, and what settling needs."""

    def __init__(self, client: Any, calls_table: str) -> None:
        self.calls = CallStore(client, calls_table)
        self.limits = LimitStore(client, TABLE)
        self.queue = MemoryQueue(lambda: NOW)
        self.durations = Durations()
        self.applier = EventApplier(
            calls=self.calls,
            limits=self.limits,
            dial_queue=cast(Queue, self.queue),
            durations=self.durations,
            clock=lambda: NOW,
        )

    def call(self, status: str) -> Call:
        """`ended` is the end of an answered call, `expired` that of one that was never fenced."""
        self.calls.create(
            Call(
                call_id=CALL,
                workspace_id="demo",
                call_agent_id="agent-1",
                to="+15550000001",
                room_name=ROOM,
                job_id="job",
                created_at="2026-11-24T09:00:00.000Z",
                status="queued",
                events=(event("call.queued", NOW - 90_000),),
                ring_timeout_seconds=40,
                max_duration_seconds=1800,
                queue_deadline_ms=NOW,
                check_at_ms=NOW,
            )
        )
        if status == "expired":
            self.calls.end(self.now, Outcome("expired", "expired"), NOW + 60_000, NOW - 1)
        if status in ("queued", "expired"):
            return self.now
        self.limits.take_slot("demo", CALL, 5, now_ms=NOW)
        self.calls.take_lease(CALL, "lease", NOW + 600_000, NOW - 80_000)
        self.calls.fence(CALL, "lease", SID, None, NOW - 70_000)
        if status != "dialing":
            self.calls.answered(CALL, "lease", NOW + 60_000, NOW - 60_000)
        if status == "ended":
            self.calls.end(self.now, Outcome("completed", "hangup"), NOW + 60_000, NOW - 1)
        return self.now

    @property
    def now(self) -> Call:
        call = self.calls.get(CALL)
        assert call is not None
        return call

    def apply(self, event: WebhookEvent) -> str:
        applied, call_id = self.applier.apply(event)
        assert call_id == CALL
        return applied

    @property
    def holds_slot(self) -> bool:
        return CALL in self.limits.active_calls("demo")


@pytest.fixture(scope="module")
def client() -> Iterator[OneAtATime]:
    with workspaces_table() as client:
        yield client


@pytest.fixture
def world(client: OneAtATime) -> World:
    return new_world(client)


def new_world(client: OneAtATime) -> World:
    """With an empty table of calls."""
    table = f"calls-{uuid.uuid4()}"
    client.create_table(
        TableName=table,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    )
    made = World(client, table)
    made.limits.free_slot("demo", CALL)
    return made


def told(
    kind: str,
    identity: str = IDENTITY,
    reason: int = DisconnectReason.CLIENT_INITIATED,
    status: str | None = None,
    *,
    room: str = ROOM,
    sid: str = SID,
    metadata: str = METADATA,
    of: int = ParticipantInfo.Kind.SIP,
) -> WebhookEvent:
    """An event of LiveKit's; `status` is the phone's `sip.callStatus`."""
    made = WebhookEvent(event=kind, room=Room(name=room, sid=sid, metadata=metadata), created_at=SECONDS)
    if kind != FINISHED:
        made.participant.identity = identity
        made.participant.disconnect_reason = cast(Any, reason)
        made.participant.kind = cast(Any, of)
        if status is not None:
            made.participant.attributes["sip.callStatus"] = status
    return made


def agent_gone(reason: int = DisconnectReason.CLIENT_INITIATED, **more: Any) -> WebhookEvent:
    return told(LEFT, "agent-AJ_1", reason, of=AGENT, **more)


# ── whose event it is ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (told(LEFT), CALL),
        (told(JOINED), CALL),
        (told(LEFT, metadata=""), CALL),
        (told(FINISHED), CALL),
        (agent_gone(), CALL),
        # An agent whose room went, or who is moved, leaves no call alone.
        *(
            (agent_gone(DisconnectReason.Value(reason)), None)
            for reason in ("ROOM_DELETED", "ROOM_CLOSED", "MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH")
        ),
        (told(JOINED, "agent-AJ_1", of=AGENT), None),
        (told(LEFT, "a person", of=ParticipantInfo.Kind.STANDARD), None),
        (told("track_published"), None),
        (told("room_started"), None),
        (told("room_started", "agent-AJ_1", of=AGENT), None),
        # Not an id of ours.
        (told(LEFT, "call-"), None),
        (told(LEFT, "call-" + "A" * 24), None),
        (told(LEFT, IDENTITY + "0"), None),
        *(
            (told(FINISHED, metadata=text), None)
            for text in ("", "{", "[]", "7", "null", "{}", '{"callId":7}', '{"callId":"x"}', "[" * 100_000)
        ),
    ],
)
def test_an_event_speaks_of_the_call_of_its_phone_or_of_its_room(event: WebhookEvent, named: str | None) -> None:
    assert call_id_of(event) == named


def test_an_event_of_no_call_or_of_another_room_changes_nothing(world: World) -> None:
    assert world.applier.apply(told("room_started")) == ("ignored", None)
    assert world.apply(told(LEFT)) == "unknown_call"
    before = world.call("in_progress")
    assert world.apply(told(LEFT, room="agent-1-another")) == "unknown_call"
    assert world.apply(told(LEFT, sid="RM_0")) == "ignored", "a room of that name from an earlier attempt"
    assert world.now == before
    assert world.apply(told(LEFT, sid="")) == "ended", "an event that does not name its room's sid is of this one"


# ── the phone ───────────────────────────────────────────────────────────────────────────────────────


def test_a_phone_that_joined_is_noted_once_and_only_while_it_is_dialled(world: World) -> None:
    world.call("dialing")
    assert world.apply(told(JOINED)) == "noted"
    assert world.now.phone_seen_at_ms == SECONDS * 1000
    assert world.apply(told(JOINED)) == "ignored"


@pytest.mark.parametrize("status", ["queued", "in_progress", "ended"])
def test_a_phone_that_joined_late_says_nothing(world: World, status: str) -> None:
    before = world.call(status)
    assert world.apply(told(JOINED)) == "ignored"
    assert world.now == before


def test_why_a_phone_left_while_it_was_dialled_is_noted_and_the_first_word_stays(world: World) -> None:
    world.call("dialing")
    assert world.apply(told(LEFT, reason=DisconnectReason.USER_REJECTED, status="s" * 65)) == "noted"
    word = {"reason": "USER_REJECTED", "callStatus": "s" * 64, "at": SECONDS * 1000}
    assert world.now.phone_left == word
    assert world.apply(told(LEFT)) == "ignored"
    assert world.apply(told(FINISHED)) == "ignored"
    assert (world.now.status, world.now.phone_left) == ("dialing", word)


def test_a_word_on_the_phone_takes_the_place_of_that_on_its_room(world: World) -> None:
    world.call("dialing")
    assert world.apply(told(FINISHED)) == "noted"
    assert world.now.phone_left == {"reason": "ROOM_CLOSED", "callStatus": "dialing", "at": NOW}
    assert world.apply(told(LEFT)) == "noted"
    assert world.now.phone_left == {"reason": "CLIENT_INITIATED", "callStatus": "dialing", "at": SECONDS * 1000}


@pytest.mark.parametrize("reason", ["MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"])
def test_a_phone_that_is_moved_has_not_left(world: World, reason: str) -> None:
    before = world.call("dialing")
    assert world.apply(told(LEFT, reason=DisconnectReason.Value(reason))) == "ignored"
    assert world.now == before
    world.calls.answered(CALL, "lease", NOW + 60_000, NOW - 60_000)
    assert world.apply(told(LEFT, reason=DisconnectReason.Value(reason))) == "noted"
    assert world.now.status == "in_progress"
    assert world.now.check_at_ms == NOW + int(world.durations.second_look * 1000), (
        "two looks show whether it came back"
    )
    assert world.holds_slot


@pytest.mark.parametrize(
    ("number", "reason"), [(DisconnectReason.CLIENT_INITIATED, "hangup"), (2_147_483_647, "disconnected")]
)
def test_a_phone_that_leaves_an_answered_call_ends_it_and_frees_its_slot(
    world: World, number: int, reason: str
) -> None:
    world.call("in_progress")
    assert world.apply(told(LEFT, reason=number, status="hangup")) == "ended"
    assert (world.now.status, world.now.end_event["reason"]) == ("completed", reason)
    assert "inferred" not in world.now.end_event
    assert not world.holds_slot
    assert world.now.due_shard is not None, "its room may still be there"
    events = world.now.events
    assert world.apply(told(LEFT, status="hangup")) == "ignored"
    assert world.now.events == events


@pytest.mark.parametrize("status", ["queued", "expired"])
def test_a_phone_without_a_fence_is_told_and_changes_nothing(
    world: World, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = world.call(status)
    assert world.apply(told(LEFT)) == "ignored"
    assert world.now == before
    assert '"RingsWithoutFence":' in capsys.readouterr().out


def test_a_phone_with_a_fence_is_none_without_one(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.call("dialing")
    world.apply(told(LEFT))
    assert "RingsWithoutFence" not in capsys.readouterr().out


# ── the room ────────────────────────────────────────────────────────────────────────────────────────


def test_a_room_that_finished_ends_an_answered_call_at_an_unknown_time(world: World) -> None:
    world.call("in_progress")
    assert world.apply(told(FINISHED)) == "ended"
    assert (world.now.end_event["reason"], world.now.end_event["inferred"]) == ("disconnected", True)
    assert not world.holds_slot


def test_an_ended_call_whose_room_finished_leaves_the_index_with_its_slot(world: World) -> None:
    world.call("ended")
    assert world.apply(told(FINISHED)) == "cleared"
    assert (world.now.due_shard, world.now.check_at_ms, world.holds_slot) == (None, None, False)
    assert world.apply(told(FINISHED)) == "ignored"


@pytest.mark.parametrize("status", ["queued", "expired"])
def test_a_room_of_a_call_without_a_fence_may_be_an_earlier_ones(world: World, status: str) -> None:
    before = world.call(status)
    assert world.apply(told(FINISHED)) == "ignored"
    assert world.now == before


def test_an_orphan_room_that_finished_may_come_back(world: World) -> None:
    world.call("ended")
    world.calls.note_orphan(CALL)
    assert world.apply(told(FINISHED)) == "ignored"
    assert world.now.due_shard is not None
    assert world.holds_slot


# ── the agent ───────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_that_leaves_a_call_under_way_is_looked_for(world: World) -> None:
    world.call("in_progress")
    assert world.apply(agent_gone()) == "noted"
    assert world.now.agent_missing_since_ms == NOW
    assert world.queue.bodies() == [{"callId": CALL, "workspaceId": "demo", "agentLeft": True}]
    assert world.now.status == "in_progress"


def test_an_agent_that_leaves_while_it_rings_is_noted_for_the_answer(world: World) -> None:
    world.call("dialing")
    assert world.apply(agent_gone()) == "noted"
    assert (world.now.agent_missing_since_ms, world.now.phone_left) == (NOW, None)
    assert world.queue.bodies() == []


@pytest.mark.parametrize("status", ["queued", "ended", "expired"])
def test_an_agent_of_a_call_that_is_not_under_way_may_leave(world: World, status: str) -> None:
    before = world.call(status)
    assert world.apply(agent_gone()) == "ignored"
    assert (world.now, world.queue.bodies()) == (before, [])


# ── the worker's answer comes in between ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("event", "reason", "inferred"),
    [(told(LEFT, status="hangup"), "hangup", None), (told(FINISHED), "disconnected", True)],
)
def test_an_answer_that_is_written_in_between_is_of_a_call_that_is_over(
    world: World, event: WebhookEvent, reason: str, inferred: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = world.call("dialing")
    world.calls.answered(CALL, "lease", NOW + 60_000, NOW - 1)
    with monkeypatch.context() as patched:
        patched.setattr(world.calls, "get", lambda call_id: seen)
        assert world.apply(event) == "ended"
    assert (world.now.end_event["reason"], world.now.end_event.get("inferred")) == (reason, inferred)


@pytest.mark.parametrize("event", [told(LEFT), told(FINISHED)], ids=["left", "finished"])
def test_an_answer_in_another_room_is_not_over(
    world: World, event: WebhookEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dataclasses.replace(world.call("dialing"), room_sid="RM_0")
    world.calls.answered(CALL, "lease", NOW + 60_000, NOW - 1)
    event.room.sid = "RM_0"
    with monkeypatch.context() as patched:
        patched.setattr(world.calls, "get", lambda call_id: seen)
        assert world.apply(event) == "ignored"
    assert world.now.status == "in_progress"
