"""A call: its stored record, its states, and its public views (API answers and webhook bodies).

    queued ──► dialing ──► in_progress ──► completed
      │  ◄──────┘ (nothing rang)  │
      └────────────┴──────────────┴──► no_answer, busy, rejected, failed, canceled, expired

`dialing` means fenced: a process may have asked LiveKit to ring, so no process asks again. A change of status and
its event are written together (call_store), so the list of events is the complete history: `snapshot` folds its
first n entries into the call as it was after the n-th.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from typing import Any, Literal

from shared.clock import to_seconds

Status = Literal[
    "queued",
    "dialing",
    "in_progress",
    "completed",
    "no_answer",
    "busy",
    "rejected",
    "failed",
    "canceled",
    "expired",
]

ENDED: frozenset[Status] = frozenset(
    {"completed", "no_answer", "busy", "rejected", "failed", "canceled", "expired"}
)

TRANSITIONS: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"dialing", "failed", "canceled", "expired"}),
    "dialing": frozenset(
        {"queued", "in_progress", "completed", "no_answer", "busy", "rejected", "failed", "canceled"}
    ),
    "in_progress": frozenset({"completed", "failed"}),
    **{end: frozenset() for end in ENDED},
}

# The agent's report that suppresses the callee.
OPT_OUT = "agent.opt_out"

# Why a queued call does not ring yet.
WaitingFor = Literal[
    "scheduled_at",
    "calling_window",
    "frequency",
    "slot",  # the workspace's calls at a time are all under way
    "trunk",  # its trunk is stopped after faults, or has no free moment soon
    "paused",  # an operator has stopped dialling
    "retry",  # LiveKit failed before anything rang
]

EndReason = Literal[
    "hangup",  # the callee hung up
    "agent_hangup",  # the agent (or another user of LiveKit's API) closed the room
    "disconnected",  # an answered call that is over, LiveKit does not say why
    "max_duration",
    "agent_left",  # answered, but without an agent in the room
    "busy",
    "no_answer",
    "rejected",
    "invalid_number",
    "carrier_error",  # another 4xx to 6xx of the carrier
    "trunk_error",  # trunk unknown, refused, unreachable: a configuration fault
    "removed",  # the participant was removed while it rang, not by this system
    "agent_unavailable",  # no agent came into the room; nothing rang
    "livekit_error",  # LiveKit refused the dial itself: its keys, its SIP service
    "livekit_unavailable",  # LiveKit could not be reached in any attempt; nothing rang
    "not_allowed",  # the workspace was disabled, or may not call there any more, before it was dialled
    "outcome_unknown",  # the phone may have rung; the outcome cannot be determined
    "suppressed",  # the callee wants no calls, or none of this purpose; nothing rang
    "canceled_by_api",
    "expired",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ends. retryable: placing the same call again may succeed. inferred: the time of the end is not
    known, only that the call was over when the end was detected.
    """

    status: Status
    reason: EndReason
    retryable: bool = False
    sip_status_code: int | None = None
    inferred: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """The record of a call. Times that order work are epoch milliseconds; JSON texts are as received."""

    call_id: str
    workspace_id: str
    call_agent_id: str
    to: str
    room_name: str
    job_id: str
    created_at: str
    status: Status
    events: tuple[dict[str, Any], ...]
    ring_timeout_seconds: int
    max_duration_seconds: int
    queue_deadline_ms: int
    from_number: str | None = None
    callback_url: str | None = None
    dynamic_variables: str | None = None
    metadata: str | None = None
    request_hash: str | None = None
    # When it may ring: not before and not after these times; without `expires_at` until its queue deadline.
    scheduled_at_ms: int | None = None
    expires_at_ms: int | None = None
    # Under which rules: the policy's name (None: `default`), the callee's IANA zone, the consent as given.
    purpose: str | None = None
    time_zone: str | None = None
    consent: dict[str, str] | None = None
    # DTMF that is sent after the answer.
    dtmf: str | None = None
    # Dialling: the process that holds the lease and until when, the number of attempts, the time of the next one.
    lease_id: str | None = None
    lease_until_ms: int = 0
    attempts: int = 0
    wait_until_ms: int = 0
    # Written by versions that added paused time to queueDeadline: paused time up to here is in it (switch.py).
    paused_until_ms: int = 0
    # The line (line.py): its partition and the place in it, why the call waits, when it was admitted and by which
    # process (a token).
    line_of: str | None = None
    turn: str | None = None
    waiting_for: WaitingFor | None = None
    admitted_at_ms: int | None = None
    admission: str | None = None
    # The number of the slots item in which the call may hold a slot (slots.py).
    slots_item: int | None = None
    room_sid: str | None = None
    dialed_at_ms: int | None = None
    answered_at_ms: int | None = None
    # Epoch ms at which LiveKit reported that the phone's participant joined the room, which precedes the INVITE.
    phone_seen_at_ms: int | None = None
    # The request to hang up; LiveKit's event that the phone left; since when (epoch ms) phone or agent are absent.
    hangup: dict[str, Any] | None = None
    phone_left: dict[str, Any] | None = None
    phone_missing_since_ms: int | None = None
    agent_missing_since_ms: int | None = None
    ended_at_ms: int | None = None
    # Its room was left over from a LiveKit server that crashed; after its removal the agent may recreate it.
    orphan_room: bool = False
    # Epoch ms: a receiver answered 410, no more webhooks of this call.
    webhooks_stopped_at_ms: int | None = None
    # Epoch ms at which it was restored from a backup, which lacks what happened since (admin/restore.py).
    restored_at_ms: int | None = None
    # Keys of the index of what is due, set while there is anything to do.
    due_shard: int | None = None
    check_at_ms: int | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def created_at_ms(self) -> int:
        return round(datetime.datetime.fromisoformat(self.created_at).timestamp() * 1000)

    @property
    def in_line(self) -> bool:
        """Whether it waits in the line and no process has admitted it."""
        return self.line_of is not None and self.admitted_at_ms is None

    @property
    def held_slots_item(self) -> int | None:
        """The slots item in which it may hold a slot; None when no attempt can have taken one.

        Versions that had one item for each workspace stored no number.
        """
        return 0 if self.slots_item is None and self.attempts else self.slots_item

    @property
    def end_event(self) -> dict[str, Any]:
        """The `call.ended` event, empty before the end. Not always the last: an agent may report after it."""
        return next((entry for entry in reversed(self.events) if entry["type"] == "call.ended"), {})

    @property
    def identity(self) -> str:
        """The SIP participant's identity in the room; LiveKit's events carry it back."""
        return f"call-{self.call_id}"

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Call:
        """Ignores unknown attributes. Raises KeyError or TypeError when a required one is missing."""
        known = {field: item[name] for field, name in CALL_ATTRIBUTES.items() if name in item}
        known["events"] = tuple(item["events"])
        return cls(**known)

    def to_item(self) -> dict[str, Any]:
        """Every attribute that has a value, without the table's keys."""
        item = {name: getattr(self, field) for field, name in CALL_ATTRIBUTES.items()}
        item["events"] = list(self.events)
        return {name: value for name, value in item.items() if value is not None and value != 0}


# The stored attribute of each field.
CALL_ATTRIBUTES = {
    "call_id": "callId",
    "workspace_id": "workspaceId",
    "call_agent_id": "callAgentId",
    "to": "to",
    "room_name": "roomName",
    "job_id": "jobId",
    "created_at": "createdAt",
    "status": "status",
    "events": "events",
    "ring_timeout_seconds": "ringTimeoutSeconds",
    "max_duration_seconds": "maxDurationSeconds",
    "queue_deadline_ms": "queueDeadline",
    "from_number": "fromNumber",
    "callback_url": "callbackUrl",
    "dynamic_variables": "dynamicVariables",
    "metadata": "metadata",
    "request_hash": "requestHash",
    "scheduled_at_ms": "scheduledAt",
    "expires_at_ms": "callExpiresAt",
    "purpose": "purpose",
    "time_zone": "timeZone",
    "consent": "consent",
    "dtmf": "dtmf",
    "lease_id": "leaseId",
    "lease_until_ms": "leaseUntil",
    "attempts": "attempts",
    "wait_until_ms": "waitUntil",
    "paused_until_ms": "pausedUntil",
    "line_of": "lineOf",
    "turn": "turn",
    "waiting_for": "waitingFor",
    "admitted_at_ms": "admittedAt",
    "admission": "admission",
    "slots_item": "slotsItem",
    "room_sid": "roomSid",
    "dialed_at_ms": "dialedAt",
    "answered_at_ms": "answeredAt",
    "phone_seen_at_ms": "phoneSeenAt",
    "hangup": "hangup",
    "phone_left": "left",
    "phone_missing_since_ms": "missingSince",
    "agent_missing_since_ms": "agentMissingSince",
    "ended_at_ms": "endedAt",
    "orphan_room": "orphanRoom",
    "webhooks_stopped_at_ms": "webhooksStoppedAt",
    "restored_at_ms": "restoredAt",
    "due_shard": "dueShard",
    "check_at_ms": "checkAt",
}


def iso(ms: int) -> str:
    """Epoch milliseconds as ISO 8601 in UTC: `2026-11-24T09:30:00.123Z`."""
    moment = datetime.datetime.fromtimestamp(to_seconds(ms), datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event(kind: str, at: int, **fields: Any) -> dict[str, Any]:
    """An entry of a call's event list. Its sequence is its place in the list, its id follows from that."""
    return {"type": kind, "at": at, **{name: value for name, value in fields.items() if value is not None}}


def event_id(call_id: str, sequence: int) -> str:
    return f"evt_{call_id}_{sequence}"


def event_id_of(call: Call, sequence: int) -> str:
    """The id of event number `sequence`. The end that a restore wrote has a distinct id (suffix `r`): before the
    loss the same place in the list may have held another event, which the receiver has seen under the plain id.
    """
    return event_id(call.call_id, sequence) + ("r" if call.events[sequence - 1].get("restored") else "")


def snapshot(call: Call, sequence: int) -> dict[str, Any]:
    """The call as it was after event number `sequence` (1-based).

    Only immutable fields and the first `sequence` events are read, so the result never changes.
    """
    view: dict[str, Any] = {
        "callId": call.call_id,
        "jobId": call.job_id,
        "workspaceId": call.workspace_id,
        "callAgentId": call.call_agent_id,
        "roomName": call.room_name,
        "to": call.to,
        "from": call.from_number,
        "status": "queued",
        "createdAt": call.created_at,
        "dialedAt": None,
        "answeredAt": None,
        "endedAt": None,
        "durationSeconds": None,
        "endReason": None,
        "sipStatusCode": None,
        "retryable": None,
    }
    # Epoch ms of the answer; None too when the answer was only detected later (`inferred`).
    answered_at_ms: int | None = None
    for entry in call.events[:sequence]:
        match entry["type"]:
            case "call.queued":
                # A second one: LiveKit refused before anything rang, the call waits again.
                view["status"] = "queued"
                view["dialedAt"] = None
            case "call.dialing":
                view["status"] = "dialing"
                view["from"] = entry.get("from", view["from"])
                view["dialedAt"] = iso(entry["at"])
            case "call.answered":
                view["status"] = "in_progress"
                answered_at_ms = None if entry.get("inferred") else entry["at"]
                view["answeredAt"] = iso(entry["at"])
            case "call.ended":
                view["status"] = entry["status"]
                view["endedAt"] = iso(entry["at"])
                view["endReason"] = entry["reason"]
                view["retryable"] = entry["retryable"]
                view["sipStatusCode"] = entry.get("sipStatusCode")
                if answered_at_ms is not None and not entry.get("inferred"):
                    view["durationSeconds"] = max(0, round(to_seconds(entry["at"] - answered_at_ms)))
    return view


def json_object(members: dict[str, str]) -> str:
    """A JSON object from keys and JSON texts; the texts are inserted unchanged."""
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in members.items()) + "}"


# Made once: json.dumps makes a new encoder per call when its options are not the defaults.
compact: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def webhook_body(call: Call, sequence: int) -> str:
    """The body of event number `sequence`: the same bytes at every attempt and every replay.

    Raises IndexError when the call has no such event.
    """
    entry = call.events[sequence - 1]
    data = {name: compact(value) for name, value in snapshot(call, sequence).items()}
    if "gates" in entry:
        data["gates"] = entry["gates"]
    if "data" in entry:
        data["report"] = entry["data"]
    return json_object(
        {
            "id": compact(event_id_of(call, sequence)),
            "type": compact(entry["type"]),
            "timestamp": compact(iso(entry["at"])),
            "sequence": str(sequence),
            "data": json_object(data),
            "metadata": call.metadata or "null",
        }
    )
