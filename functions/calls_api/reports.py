"""What an agent reports of its call: ringing, a transcript, a summary, whatever it wants told.

The agent knows no workspace key. It signs with the LiveKit key that it has already: a JWT that names the call's
room and the SHA-256 of the body, valid for minutes. A report becomes one more event of the call and goes the way
of all events; it never changes the call's status. An opt-out suppresses the callee's number before that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from calls_api.suppression import Suppressor
from shared.call import OPT_OUT, Call, event, event_id
from shared.call_store import CallStore
from shared.clock import Clock, to_ms, to_seconds
from shared.durations import Durations
from shared.errors import FieldError, RequestRefusedError
from shared.http_api import check_idempotency_key
from shared.livekit.secret import LiveKitSecretCache
from shared.livekit.signature import LEEWAY_SECONDS, signed_claims
from shared.numbers import ALL
from shared.policies import DEFAULT
from shared.raw_json import LONG_NUMBER, holds_long_number, json_text, members
from shared.request_model import ErrorMessage, RequestModel, validate
from shared.table_keys import CALL_ID

MAXIMUM_REPORT_BYTES = 32 * 1024
# A token that leaks is soon worth nothing, and LiveKit's own for a room's participants live for hours.
MAXIMUM_TOKEN_SECONDS = 600

NotEmpty = Annotated[str, Field(min_length=1)]


class ReportBody(RequestModel, extra="forbid"):
    type: Annotated[
        str,
        Field(pattern=r"^agent\.[a-z][a-z0-9_]{0,63}$"),
        ErrorMessage("must be agent. and 1 to 64 of a-z, 0-9 and _, the first a letter"),
    ]
    data: dict[str, Any] | None = None


class ReportData(RequestModel, extra="allow"):
    """The `data` of a well-known report: what must be right of it. Whatever else it holds is the agent's own."""


class RingingData(ReportData):
    """The agent saw that the phone rings."""


class VoicemailData(ReportData):
    """A machine answered. message_left: whether the agent spoke to it."""

    message_left: Annotated[bool | None, Field(alias="messageLeft")] = None


class Turn(RequestModel, extra="allow"):
    """One thing that was said."""

    speaker: Annotated[Literal["agent", "callee"], ErrorMessage("must be one of agent, callee")]
    text: NotEmpty


class TranscriptData(ReportData):
    """What was said, in order. A long conversation comes in several reports."""

    turns: Annotated[list[Turn], Field(min_length=1)]


class SummaryData(ReportData):
    """What came of the conversation, for people."""

    text: NotEmpty


class OptOutData(ReportData):
    """The callee wants no more calls. said: in which words. scope: `all` (the default) or only those of the call's
    purpose.
    """

    said: str | None = None
    scope: Annotated[Literal["all", "purpose"], ErrorMessage("must be one of all, purpose")] | None = None


class TransferData(ReportData):
    """The callee is transferred. to: a number or a SIP address."""

    to: NotEmpty
    status: (
        Annotated[
            Literal["started", "completed", "failed"], ErrorMessage("must be one of started, completed, failed")
        ]
        | None
    ) = None


WELL_KNOWN: dict[str, type[ReportData]] = {
    "agent.ringing": RingingData,
    "agent.voicemail": VoicemailData,
    "agent.transcript": TranscriptData,
    "agent.summary": SummaryData,
    OPT_OUT: OptOutData,
    "agent.transfer": TransferData,
}


@dataclasses.dataclass(frozen=True, slots=True)
class ReportReceiver:
    """Receives agents' reports. clock: epoch milliseconds."""

    calls: CallStore
    suppressor: Suppressor
    livekit_secret: LiveKitSecretCache
    durations: Durations
    clock: Clock

    def receive(self, call_id: str, token: str | None, idempotency_key: str | None, body: bytes) -> Reported:
        """Raises RequestRefusedError (4xx), StoreError (nothing known to be written: repeat it)."""
        if len(body) > MAXIMUM_REPORT_BYTES:
            raise RequestRefusedError(413, "too_large", "A report may have at most 32 KiB")
        now_ms = self.clock()
        room = _signed_room(body, token, self.livekit_secret, now_ms)
        report_id = _report_id(idempotency_key, body)
        given = parse_report(body)
        write = None
        if given.kind == OPT_OUT:
            self._suppress(call_id, room, report_id, given, now_ms)
        if CALL_ID.fullmatch(call_id):
            write = self.calls.append_report(
                call_id,
                room,
                report_id,
                event(given.kind, now_ms, data=given.data, suppressed=given.kind == OPT_OUT or None),
                len(body),
                ended_since_ms=now_ms - to_ms(self.durations.report_grace),
            )
        if write is None or write.call is None or write.call.room_name != room:
            # One answer for both: who may speak for one room learns nothing of any other call.
            raise RequestRefusedError(404, "call_not_found", "No such call is in the room that the token names")
        if write.won:
            return Reported(call_id, given.kind, len(write.call.events))
        try:
            return self._not_appended(write.call, report_id, given, now_ms)
        except RequestRefusedError as refused:
            if given.kind != OPT_OUT or refused.status != 409:
                raise
            return Reported(call_id, given.kind, None, refusal=refused.message)

    def _suppress(self, call_id: str, room: str, report_id: str, given: Report, now_ms: int) -> None:
        """Suppresses the callee before the report is appended, whatever the call's state.

        Not for a report that is an event already: it has suppressed the callee then. That may have been removed
        since, and a repeat must not bring it back.
        """
        call = self.calls.get(call_id) if CALL_ID.fullmatch(call_id) else None
        if call is None or call.room_name != room:
            # The append tells it.
            return
        if any(entry.get("reportId") == report_id and entry.get("suppressed") for entry in call.events):
            return
        data = OptOutData.model_validate(json.loads(given.data))
        scope = (call.purpose or DEFAULT) if data.scope == "purpose" else ALL
        self.suppressor.opt_out(call, scope, data.said, now_ms)

    def _not_appended(self, call: Call, report_id: str, given: Report, now_ms: int) -> Reported:
        """Why the record did not take the report: it has it already, is over for too long, or has too many."""
        for sequence, entry in enumerate(call.events, 1):
            if entry.get("reportId") == report_id:
                if (entry["type"], entry["data"]) != (given.kind, given.data):
                    raise RequestRefusedError(
                        422,
                        "idempotency_key_reused",
                        "This Idempotency-Key was used with another report of this call",
                    )
                return Reported(call.call_id, given.kind, sequence, replayed=True)
        if call.ended_at_ms is not None and call.ended_at_ms < now_ms - to_ms(self.durations.report_grace):
            raise RequestRefusedError(409, "call_ended", f"The call has ended, too long ago: {call.status}")
        raise RequestRefusedError(409, "reports_full", "A call takes at most 50 reports of together 128 KiB")


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """A valid report. data: JSON text as the agent wrote it."""

    kind: str
    data: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reported:
    """A report that was taken. sequence: of the event that it is. replayed: it had been one before. refusal: why
    an opt-out, which holds all the same, is none; sequence is None then.
    """

    call_id: str
    kind: str
    sequence: int | None
    replayed: bool = False
    refusal: str | None = None

    def body(self) -> dict[str, Any]:
        suppressed = {"suppressed": True} if self.kind == OPT_OUT else {}
        if self.sequence is None:
            message = f"The callee is suppressed. The report is not an event of the call: {self.refusal}"
            return {"status": "success", "message": message, "callId": self.call_id, **suppressed}
        return {
            "status": "success",
            "message": "The report is an event of the call",
            "callId": self.call_id,
            "eventId": event_id(self.call_id, self.sequence),
            "sequence": self.sequence,
            **suppressed,
        }


def _signed_room(body: bytes, token: str | None, secret: LiveKitSecretCache, now_ms: int) -> str:
    """The room that the token speaks for. Raises RequestRefusedError (401)."""
    claims = signed_claims(body, token, secret.get())
    video = claims.get("video")
    room = video.get("room") if isinstance(video, dict) else None
    if not isinstance(room, str) or not room:
        raise RequestRefusedError(401, "invalid_signature", "The token names no room")
    if int(claims["exp"]) > to_seconds(now_ms) + MAXIMUM_TOKEN_SECONDS + LEEWAY_SECONDS:
        raise RequestRefusedError(401, "invalid_signature", "The token is valid for more than 10 minutes")
    return room


def _report_id(idempotency_key: str | None, body: bytes) -> str:
    """What makes two reports of a call the same one: the agent's key for it, or else every byte of it."""
    if idempotency_key is None:
        return "body-" + hashlib.sha256(body).hexdigest()[:32]
    check_idempotency_key(idempotency_key)
    return "key-" + hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]


def parse_report(body: bytes) -> Report:
    """Raises RequestRefusedError (400) with every field that is wrong."""
    fields = members(body)
    given, errors = validate(
        ReportBody,
        {name: value for name, (value, _) in fields.items()},
        unknown="is not a field of a report",
    )
    if given is not None and given.type in WELL_KNOWN:
        _, errors = validate(WELL_KNOWN[given.type], given.data or {}, below="data")
    value, _ = fields.get("data", (None, ""))
    written = json_text(fields, "data")
    if written is not None and isinstance(value, dict) and holds_long_number(written):
        errors.append(FieldError("data", LONG_NUMBER))
    if given is None or errors:
        message = "; ".join(f"{error.field} {error.message}" for error in errors)
        raise RequestRefusedError(400, "invalid_request", message, errors)
    return Report(given.type, "{}" if written is None else written)
