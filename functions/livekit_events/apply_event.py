"""Applies an event of LiveKit's to the call it belongs to.

It ends answered calls. For a call that is `dialing` it only stores the event: LiveKit removes the participant from
the room before the worker's request returns, and that response carries the carrier's code. Events may be late,
duplicated, out of order, or missing; the reconciler covers missing ones.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from livekit.protocol.models import DisconnectReason, ParticipantInfo
from livekit.protocol.webhook import WebhookEvent

from shared.agent_left import send_agent_left
from shared.call import Call, Outcome
from shared.call_store import ROOM_CLOSED, CallStore, Write
from shared.clock import Clock, to_ms
from shared.durations import Durations
from shared.ending import clear, end_call
from shared.line import Line
from shared.livekit.outcomes import NOT_AN_END, answered_outcome
from shared.queues import Queue
from shared.table_keys import CALL_ID
from shared.telemetry import count, logger

CALL_STATUS = "sip.callStatus"
# Attributes come from participants and may be long; the record's size is limited.
_STATUS_CHARACTERS = 64

# Reasons of a participant that left because its room ended.
WITH_THE_ROOM = frozenset({"ROOM_DELETED", "ROOM_CLOSED"})

Applied = Literal["ignored", "unknown_call", "noted", "ended", "cleared"]


@dataclasses.dataclass(frozen=True, slots=True)
class EventApplier:
    """Applies events of LiveKit's to calls. clock: epoch milliseconds."""

    calls: CallStore
    line: Line
    dial_queue: Queue
    durations: Durations
    clock: Clock

    def apply(self, event: WebhookEvent) -> tuple[Applied, str | None]:
        """Applies the event. Returns what was done and the call's id. Idempotent.

        Raises StoreError or QueueError when the event could not be stored: LiveKit then sends it again.
        """
        call_id = call_id_of(event)
        if call_id is None:
            return "ignored", None
        call = self.calls.get(call_id)
        if call is None or call.room_name != event.room.name:
            return "unknown_call", call_id
        if call.room_sid is not None and event.room.sid and call.room_sid != event.room.sid:
            # A late event of an earlier attempt's room, which has the same name.
            return "ignored", call_id
        if event.event == "room_finished":
            return self._room_finished(call), call_id
        if event.event == "participant_joined":
            return self._phone_joined(call, event), call_id
        if event.participant.identity != call.identity:
            return self._agent_left(call, event), call_id
        return self._phone_left(call, event), call_id

    def _phone_joined(self, call: Call, event: WebhookEvent) -> Applied:
        """Stores that LiveKit has sent the dial to a phone: from then on the dial is never un-fenced."""
        if call.status != "dialing" or call.phone_seen_at_ms is not None:
            return "ignored"
        return "noted" if self.calls.note_joined(call, to_ms(event.created_at)).won else "ignored"

    def _agent_left(self, call: Call, event: WebhookEvent) -> Applied:
        """Stores that the agent left, and sends the message that makes the dial worker look for another
        participant.
        """
        if call.status not in ("dialing", "in_progress"):
            return "ignored"
        write = self.calls.note_agent_left(call, self.clock())
        if write.won and write.call is not None and write.call.status == "in_progress":
            send_agent_left(self.dial_queue, write.call, self.durations)
        return "noted" if write.won else "ignored"

    def _phone_left(self, call: Call, event: WebhookEvent) -> Applied:
        if call.dialed_at_ms is None:
            # No phone may be dialled before the fence: this one violates "rings at most once".
            logger.error("a phone rang without a fence", extra={"call_id": call.call_id})
            count("RingsWithoutFence")
        reason = _reason(event.participant.disconnect_reason)
        left = {
            "reason": reason,
            "callStatus": event.participant.attributes.get(CALL_STATUS, "dialing")[:_STATUS_CHARACTERS],
            "at": to_ms(event.created_at),
        }
        if call.status == "dialing" and reason not in NOT_AN_END:
            write = self.calls.note_left(call, left)
            answered = _answered_meanwhile(call, write)
            if answered is None:
                return "noted" if write.won else "ignored"
            call = answered
        if call.status != "in_progress":
            return "ignored"
        if reason in NOT_AN_END:
            # It may rejoin; if it does not, two looks show that.
            self.calls.postpone(call, self.clock() + to_ms(self.durations.second_look))
            return "noted"
        return self._end(call, answered_outcome(left))

    def _room_finished(self, call: Call) -> Applied:
        if call.status == "dialing":
            left = {"reason": ROOM_CLOSED, "callStatus": "dialing", "at": self.clock()}
            write = self.calls.note_left(call, left)
            answered = _answered_meanwhile(call, write)
            if answered is None:
                return "noted" if write.won else "ignored"
            call = answered
        if call.status == "in_progress":
            return self._end(call, answered_outcome(None))
        # The room of a call that was never fenced may be an earlier attempt's, and an orphan room may be recreated
        # by its agent: the reconciler clears such calls.
        if call.ended and call.due_shard is not None and call.dialed_at_ms is not None and not call.orphan_room:
            clear(self.line, call)
            return "cleared"
        return "ignored"

    def _end(self, call: Call, outcome: Outcome) -> Applied:
        ended = end_call(self.calls, call, outcome, self.durations, self.clock)
        if ended is None:
            return "ignored"
        # LiveKit closes the room; its room_finished, or the reconciler, takes the call out of the index.
        self.line.free_slot(ended)
        return "ended"


def call_id_of(event: WebhookEvent) -> str | None:
    """The id of an event's call: from the phone's identity `call-<id>`; for events of the room and its agent, from
    the room's metadata.
    """
    named: Any = None
    of_participant = event.event in ("participant_left", "participant_joined")
    agent_left = event.event == "participant_left" and _leaves_its_call(event.participant)
    if of_participant and event.participant.identity.startswith("call-"):
        named = event.participant.identity.removeprefix("call-")
    elif event.event == "room_finished" or agent_left:
        try:
            named = json.loads(event.room.metadata)["callId"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    return named if isinstance(named, str) and CALL_ID.fullmatch(named) else None


def _leaves_its_call(participant: ParticipantInfo) -> bool:
    """Whether this is an agent that leaves a room which goes on."""
    if participant.kind != ParticipantInfo.Kind.AGENT:
        return False
    return _reason(participant.disconnect_reason) not in NOT_AN_END | WITH_THE_ROOM


def _reason(number: int) -> str:
    """The name of a disconnect reason; UNKNOWN_REASON for one that this version of the protocol does not have."""
    try:
        return DisconnectReason.Name(number)
    except ValueError:
        logger.warning("unknown disconnect reason", extra={"number": number})
        count("LiveKitEventsNotUnderstood")
        return DisconnectReason.Name(DisconnectReason.UNKNOWN_REASON)


def _answered_meanwhile(seen: Call, write: Write) -> Call | None:
    """The current call if the worker stored its answer since `seen`, in the event's room: the call is over
    then.
    """
    current = write.call
    if write.won or current is None or current.status != "in_progress" or current.room_sid != seen.room_sid:
        return None
    return current
