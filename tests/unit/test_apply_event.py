"""What each of LiveKit's events does to a call in each of its states, with the real conditions of the table."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from livekit.protocol.models import DisconnectReason, ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from livekit_events.apply_event import call_id_of
from tests.calls import NOW
from tests.stored_call import CALL, ROOM, SID, StoredCall

IDENTITY = f"call-{CALL}"
SECONDS = NOW // 1000 - 7
METADATA = f'{{"callId":"{CALL}"}}'
LEFT, JOINED, FINISHED = "participant_left", "participant_joined", "room_finished"
AGENT = ParticipantInfo.Kind.AGENT


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


def test_an_event_of_no_call_or_of_another_room_changes_nothing(stored: StoredCall) -> None:
    assert stored.applier.apply(told("room_started")) == ("ignored", None)
    assert stored.apply(told(LEFT)) == "unknown_call"
    before = stored.bring_to("in_progress")
    assert stored.apply(told(LEFT, room="agent-1-another")) == "unknown_call"
    assert stored.apply(told(LEFT, sid="RM_0")) == "ignored", "a room of that name from an earlier attempt"
    assert stored.record == before
    assert stored.apply(told(LEFT, sid="")) == "ended", "an event that does not name its room's sid is of this one"


# ── the phone ───────────────────────────────────────────────────────────────────────────────────────


def test_a_phone_that_joined_is_noted_once_and_only_while_it_is_dialled(stored: StoredCall) -> None:
    stored.bring_to("dialing")
    assert stored.apply(told(JOINED)) == "noted"
    assert stored.record.phone_seen_at_ms == SECONDS * 1000
    assert stored.apply(told(JOINED)) == "ignored"


@pytest.mark.parametrize("status", ["queued", "in_progress", "ended"])
def test_a_phone_that_joined_late_says_nothing(stored: StoredCall, status: str) -> None:
    before = stored.bring_to(status)
    assert stored.apply(told(JOINED)) == "ignored"
    assert stored.record == before


def test_why_a_phone_left_while_it_was_dialled_is_noted_and_the_first_word_stays(stored: StoredCall) -> None:
    stored.bring_to("dialing")
    assert stored.apply(told(LEFT, reason=DisconnectReason.USER_REJECTED, status="s" * 65)) == "noted"
    word = {"reason": "USER_REJECTED", "callStatus": "s" * 64, "at": SECONDS * 1000}
    assert stored.record.phone_left == word
    assert stored.apply(told(LEFT)) == "ignored"
    assert stored.apply(told(FINISHED)) == "ignored"
    assert (stored.record.status, stored.record.phone_left) == ("dialing", word)


def test_a_word_on_the_phone_takes_the_place_of_that_on_its_room(stored: StoredCall) -> None:
    stored.bring_to("dialing")
    assert stored.apply(told(FINISHED)) == "noted"
    assert stored.record.phone_left == {"reason": "ROOM_CLOSED", "callStatus": "dialing", "at": NOW}
    assert stored.apply(told(LEFT)) == "noted"
    assert stored.record.phone_left == {
        "reason": "CLIENT_INITIATED",
        "callStatus": "dialing",
        "at": SECONDS * 1000,
    }


@pytest.mark.parametrize("reason", ["MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"])
def test_a_phone_that_is_moved_has_not_left(stored: StoredCall, reason: str) -> None:
    before = stored.bring_to("dialing")
    assert stored.apply(told(LEFT, reason=DisconnectReason.Value(reason))) == "ignored"
    assert stored.record == before
    stored.calls.answered(CALL, "lease", NOW + 60_000, NOW - 60_000)
    assert stored.apply(told(LEFT, reason=DisconnectReason.Value(reason))) == "noted"
    assert stored.record.status == "in_progress"
    assert stored.record.check_at_ms == NOW + int(stored.durations.second_look * 1000), (
        "two looks show whether it came back"
    )
    assert stored.holds_slot


@pytest.mark.parametrize(
    ("number", "reason"), [(DisconnectReason.CLIENT_INITIATED, "hangup"), (2_147_483_647, "disconnected")]
)
def test_a_phone_that_leaves_an_answered_call_ends_it_and_frees_its_slot(
    stored: StoredCall, number: int, reason: str
) -> None:
    stored.bring_to("in_progress")
    assert stored.apply(told(LEFT, reason=number, status="hangup")) == "ended"
    assert (stored.record.status, stored.record.end_event["reason"]) == ("completed", reason)
    assert "inferred" not in stored.record.end_event
    assert not stored.holds_slot
    assert stored.record.due_shard is not None, "its room may still be there"
    events = stored.record.events
    assert stored.apply(told(LEFT, status="hangup")) == "ignored"
    assert stored.record.events == events


@pytest.mark.parametrize("status", ["queued", "expired"])
def test_a_phone_without_a_fence_is_told_and_changes_nothing(
    stored: StoredCall, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored.bring_to(status)
    assert stored.apply(told(LEFT)) == "ignored"
    assert stored.record == before
    assert '"RingsWithoutFence":' in capsys.readouterr().out


def test_a_phone_with_a_fence_is_none_without_one(stored: StoredCall, capsys: pytest.CaptureFixture[str]) -> None:
    stored.bring_to("dialing")
    stored.apply(told(LEFT))
    assert "RingsWithoutFence" not in capsys.readouterr().out


# ── the room ────────────────────────────────────────────────────────────────────────────────────────


def test_a_room_that_finished_ends_an_answered_call_at_an_unknown_time(stored: StoredCall) -> None:
    stored.bring_to("in_progress")
    assert stored.apply(told(FINISHED)) == "ended"
    assert (stored.record.end_event["reason"], stored.record.end_event["inferred"]) == ("disconnected", True)
    assert not stored.holds_slot


def test_an_ended_call_whose_room_finished_leaves_the_index_with_its_slot(stored: StoredCall) -> None:
    stored.bring_to("ended")
    assert stored.apply(told(FINISHED)) == "cleared"
    assert (stored.record.due_shard, stored.record.check_at_ms, stored.holds_slot) == (None, None, False)
    assert stored.apply(told(FINISHED)) == "ignored"


@pytest.mark.parametrize("status", ["queued", "expired"])
def test_a_room_of_a_call_without_a_fence_may_be_an_earlier_ones(stored: StoredCall, status: str) -> None:
    before = stored.bring_to(status)
    assert stored.apply(told(FINISHED)) == "ignored"
    assert stored.record == before


def test_an_orphan_room_that_finished_may_come_back(stored: StoredCall) -> None:
    stored.bring_to("ended")
    stored.calls.note_orphan(CALL)
    assert stored.apply(told(FINISHED)) == "ignored"
    assert stored.record.due_shard is not None
    assert stored.holds_slot


# ── the agent ───────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_that_leaves_a_call_under_way_is_looked_for(stored: StoredCall) -> None:
    stored.bring_to("in_progress")
    assert stored.apply(agent_gone()) == "noted"
    assert stored.record.agent_missing_since_ms == NOW
    assert stored.queue.bodies() == [{"callId": CALL, "workspaceId": "demo", "agentLeft": True}]
    assert stored.record.status == "in_progress"


def test_an_agent_that_leaves_while_it_rings_is_noted_for_the_answer(stored: StoredCall) -> None:
    stored.bring_to("dialing")
    assert stored.apply(agent_gone()) == "noted"
    assert (stored.record.agent_missing_since_ms, stored.record.phone_left) == (NOW, None)
    assert stored.queue.bodies() == []


@pytest.mark.parametrize("status", ["queued", "ended", "expired"])
def test_an_agent_of_a_call_that_is_not_under_way_may_leave(stored: StoredCall, status: str) -> None:
    before = stored.bring_to(status)
    assert stored.apply(agent_gone()) == "ignored"
    assert (stored.record, stored.queue.bodies()) == (before, [])


# ── the worker's answer comes in between ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("event", "reason", "inferred"),
    [(told(LEFT, status="hangup"), "hangup", None), (told(FINISHED), "disconnected", True)],
)
def test_an_answer_that_is_written_in_between_is_of_a_call_that_is_over(
    stored: StoredCall, event: WebhookEvent, reason: str, inferred: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stored.bring_to("dialing")
    stored.calls.answered(CALL, "lease", NOW + 60_000, NOW - 1)
    with monkeypatch.context() as patched:
        patched.setattr(stored.calls, "get", lambda call_id: seen)
        assert stored.apply(event) == "ended"
    assert (stored.record.end_event["reason"], stored.record.end_event.get("inferred")) == (reason, inferred)


@pytest.mark.parametrize("event", [told(LEFT), told(FINISHED)], ids=["left", "finished"])
def test_an_answer_in_another_room_is_not_over(
    stored: StoredCall, event: WebhookEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dataclasses.replace(stored.bring_to("dialing"), room_sid="RM_0")
    stored.calls.answered(CALL, "lease", NOW + 60_000, NOW - 1)
    event.room.sid = "RM_0"
    with monkeypatch.context() as patched:
        patched.setattr(stored.calls, "get", lambda call_id: seen)
        assert stored.apply(event) == "ignored"
    assert stored.record.status == "in_progress"
