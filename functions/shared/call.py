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

Status = Literal[
    "queued", "dialing", "in_progress", "completed", "no_answer", "busy", "rejected", "failed", "canceled",
    "expired",
]  # fmt: skip

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

    callId: str
    workspaceId: str
    callAgentId: str
    to: str
    roomName: str
    jobId: str
    createdAt: str
    status: Status
    events: tuple[dict[str, Any], ...]
    ringTimeoutSeconds: int
    maxDurationSeconds: int
    queueDeadline: int
    fromNumber: str | None = None
    callbackUrl: str | None = None
    dynamicVariables: str | None = None
    metadata: str | None = None
    requestHash: str | None = None
    # Dialling: the process that holds the lease and until when, the number of attempts, the time of the next one.
    leaseId: str | None = None
    leaseUntil: int = 0
    attempts: int = 0
    waitUntil: int = 0
    # Time paused by an operator is counted into queueDeadline up to here.
    pausedUntil: int = 0
    roomSid: str | None = None
    dialedAt: int | None = None
    answeredAt: int | None = None
    # Epoch ms at which LiveKit reported that the phone's participant joined the room, which precedes the INVITE.
    phoneSeenAt: int | None = None
    # The request to hang up; LiveKit's event that the phone left; since when (epoch ms) phone or agent are absent.
    hangup: dict[str, Any] | None = None
    left: dict[str, Any] | None = None
    missingSince: int | None = None
    agentMissingSince: int | None = None
    endedAt: int | None = None
    # Its room was left over from a LiveKit server that crashed; after its removal the agent may recreate it.
    orphanRoom: bool = False
    # Epoch ms: a receiver answered 410, no more webhooks of this call.
    webhooksStoppedAt: int | None = None
    # Epoch ms at which it was restored from a backup, which lacks what happened since (admin/restore.py).
    restoredAt: int | None = None
    # Keys of the index of what is due, set while there is anything to do.
    dueShard: int | None = None
    checkAt: int | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def end_event(self) -> dict[str, Any]:
        """The `call.ended` event, empty before the end. Not always the last: an agent may report after it."""
        return next((entry for entry in reversed(self.events) if entry["type"] == "call.ended"), {})

    @property
    def identity(self) -> str:
        """The SIP participant's identity in the room; LiveKit's events carry it back."""
        return f"call-{self.callId}"

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Call:
        known = {name: item[name] for name in cls.__slots__ if name in item}
        known["events"] = tuple(item["events"])
        return cls(**known)

    def to_item(self) -> dict[str, Any]:
        """Every attribute that has a value, without the table's keys."""
        item = {name: getattr(self, name) for name in type(self).__slots__}
        item["events"] = list(self.events)
        return {name: value for name, value in item.items() if value is not None and value != 0}


def iso(ms: int) -> str:
    """Epoch milliseconds as ISO 8601 in UTC: `2026-11-24T09:30:00.123Z`."""
    moment = datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)
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
    return event_id(call.callId, sequence) + ("r" if call.events[sequence - 1].get("restored") else "")


def snapshot(call: Call, sequence: int) -> dict[str, Any]:
    """The call as it was after event number `sequence` (1-based).

    Only immutable fields and the first `sequence` events are read, so the result never changes.
    """
    view: dict[str, Any] = {
        "callId": call.callId,
        "jobId": call.jobId,
        "workspaceId": call.workspaceId,
        "callAgentId": call.callAgentId,
        "roomName": call.roomName,
        "to": call.to,
        "from": call.fromNumber,
        "status": "queued",
        "createdAt": call.createdAt,
        "dialedAt": None,
        "answeredAt": None,
        "endedAt": None,
        "durationSeconds": None,
        "endReason": None,
        "sipStatusCode": None,
        "retryable": None,
    }
    # Epoch ms of the answer; None too when the answer was only detected later (`inferred`).
    answered_at: int | None = None
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
                answered_at = None if entry.get("inferred") else entry["at"]
                view["answeredAt"] = iso(entry["at"])
            case "call.ended":
                view["status"] = entry["status"]
                view["endedAt"] = iso(entry["at"])
                view["endReason"] = entry["reason"]
                view["retryable"] = entry["retryable"]
                view["sipStatusCode"] = entry.get("sipStatusCode")
                if answered_at is not None and not entry.get("inferred"):
                    view["durationSeconds"] = max(0, round((entry["at"] - answered_at) / 1000))
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
