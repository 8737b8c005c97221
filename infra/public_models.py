"""What clients see, as pydantic models: the API's answers, its events, and the deliveries of these.

They are closed: exactly what the code sends today. infra/openapi.yaml publishes the same, open to what may be
added; tests/infra/test_public_schemas.py holds the two equal, and the handlers' tests validate real answers and
events with both. Requests have models of their own, which read them (functions/initiate_call/request.py,
functions/calls_api/reports.py).

No function imports this: building these models is some 80 ms of a cold start, or 20 when it is deferred to their
first use, and deliver sends events without pydantic at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from shared.call import EndReason, Status, WaitingFor
from shared.delivery_store import ATTEMPTS_LISTED, State

# The page says `format: date-time` in its place: generators drop a pattern beside it, with a warning.
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"

CallEventType = Literal["call.queued", "call.dialing", "call.answered", "call.ended"]
ErrorCode = Literal[
    "invalid_json",
    "invalid_request",
    "invalid_number",
    "invalid_url",
    "invalid_variables",
    "invalid_time_zone",
    "unknown_purpose",
    "consent_required",
    "time_zone_required",
    "cannot_ring_in_time",
    "missing_workspace",
    "conflicting_header",
    "invalid_idempotency_key",
    "invalid_body",
    "invalid_api_key",
    "invalid_signature",
    "workspace_not_allowed",
    "number_not_allowed",
    "number_suppressed",
    "agent_not_allowed",
    "from_not_allowed",
    "call_not_found",
    "delivery_not_found",
    "not_suppressed",
    "call_dialed",
    "call_ended",
    "reports_full",
    "attempt_under_way",
    "too_large",
    "unsupported_encoding",
    "idempotency_key_reused",
    "rate_limited",
    "unavailable",
]

GateName = Literal[
    "workspace",
    "destination",
    "policy",
    "consent",
    "suppression",
    "scheduled_at",
    "calling_window",
    "frequency",
    "paused",
    "trunk",
    "slot",
]

CallId = Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
AgentId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
RoomName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}-[a-z0-9]{10}$")]
JobId = Annotated[str, Field(min_length=1)]
EventId = Annotated[str, Field(pattern=r"^evt_[0-9a-f]{24}_[1-9][0-9]*r?$")]
Sequence = Annotated[int, Field(ge=1)]
E164 = Annotated[str, Field(pattern=r"^\+(1[2-9][0-9]{5,13}|[2-9][0-9]{6,14})$")]
Time = Annotated[str, Field(pattern=TIME_PATTERN, json_schema_extra={"format": "date-time"})]
EventType = CallEventType | Annotated[str, Field(pattern=r"^agent\.[a-z][a-z0-9_]{0,63}$")]
NotEmpty = Annotated[str, Field(min_length=1)]
Scope = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Success = Literal["success"]

Decision = Literal["ring", "wait", "refuse"]
ImportOutcome = Literal["accepted", "invalid", "retry"]


class PublicModel(BaseModel):
    """Every field has its public name in camelCase, and there are no others."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel)


# ── calls and events ────────────────────────────────────────────────────────────────────────────────


class _CallFields(PublicModel):
    """What each of the public forms of a call has."""

    call_id: CallId
    job_id: JobId
    workspace_id: str
    call_agent_id: AgentId
    room_name: RoomName
    to: E164
    from_number: Annotated[E164 | None, Field(alias="from")]
    status: Status
    created_at: Time
    dialed_at: Time | None
    answered_at: Time | None
    ended_at: Time | None
    duration_seconds: Annotated[int, Field(ge=0)] | None
    end_reason: EndReason | None
    sip_status_code: Annotated[int, Field(ge=100, le=699)] | None
    retryable: bool | None


class Gate(PublicModel):
    """One of the rules that are asked before a phone rings, and what it saw."""

    name: GateName
    passed: bool
    detail: dict[str, Any]


class Consent(PublicModel):
    """As it was given when the call was placed."""

    basis: str
    obtained_at: str
    reference: str | None


class CallState(_CallFields):
    """A call as it is now. From scheduled_at on: in no webhook. waiting_for, earliest_ring_at: of a queued call
    that waits only.
    """

    scheduled_at: Time | None
    expires_at: Time | None
    purpose: str | None
    time_zone: str | None
    consent: Consent | None
    dtmf: str | None
    waiting_for: WaitingFor | None
    earliest_ring_at: Time | None


class CallEvent(PublicModel):
    """An event in the list of its call. report: of an agent's report only, and always. gates: what let the phone
    ring, of call.dialing only; calls that earlier versions dialled have none.
    """

    id: EventId
    type: EventType
    timestamp: Time
    sequence: Sequence
    gates: Annotated[list[Gate], Field(default_factory=list)]
    report: Annotated[dict[str, Any], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _each_type_has_its_own(self) -> CallEvent:
        _check_own(self.type, self)
        return self


class Call(CallState):
    """A call as it is now, with what it was placed with and its events."""

    callback_url: str | None
    dynamic_variables: dict[str, Any] | None
    metadata: dict[str, Any] | None
    events: Annotated[list[CallEvent], Field(min_length=1)]


class EventData(_CallFields):
    """The call of a webhook, as it was right after the event. gates, report: as in CallEvent."""

    gates: Annotated[list[Gate], Field(default_factory=list)]
    report: Annotated[dict[str, Any], Field(default_factory=dict)]


class WebhookEvent(PublicModel):
    """The body of every webhook."""

    id: EventId
    type: EventType
    timestamp: Time
    sequence: Sequence
    data: EventData
    metadata: dict[str, Any] | None

    @model_validator(mode="after")
    def _each_type_has_its_own(self) -> WebhookEvent:
        _check_own(self.type, self.data)
        return self


def _check_own(kind: str, holder: BaseModel) -> None:
    if kind.startswith("agent.") != ("report" in holder.model_fields_set):
        raise ValueError(f"report is of agent.* only, and always: {kind}")
    if kind != "call.dialing" and "gates" in holder.model_fields_set:
        raise ValueError(f"gates is of call.dialing only: {kind}")


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────


class CallAccepted(PublicModel):
    """POST /v1/api/call."""

    status: Success
    message: str
    call_id: CallId
    room_name: RoomName
    job_id: JobId


class CallPreview(PublicModel):
    """POST /v1/api/call/preview."""

    status: Success
    decision: Decision
    waiting_for: WaitingFor | None
    earliest_ring_at: Time | None
    gates: list[Gate]


class CallCanceled(PublicModel):
    """POST /v1/api/call/{callId}/cancel."""

    status: Success
    message: str
    call_id: CallId


class CallList(PublicModel):
    """GET /v1/api/call: one page."""

    status: Success
    calls: Annotated[list[CallState], Field(max_length=100)]
    cursor: str | None


class DeliveryAttempt(PublicModel):
    """One POST to the endpoint. status: the endpoint's, of three digits."""

    at: Time
    milliseconds: Annotated[int, Field(ge=0)]
    status: Annotated[int, Field(ge=100, le=999)] | None
    error: str | None
    answer: Annotated[str, Field(max_length=500)] | None
    location: Annotated[str, Field(max_length=500)] | None


class Delivery(PublicModel):
    """The webhook of one event."""

    id: EventId
    sequence: Sequence
    type: EventType
    state: State
    next_attempt_at: Time | None
    attempts: Annotated[list[DeliveryAttempt], Field(max_length=ATTEMPTS_LISTED)]


class DeliveryList(PublicModel):
    """GET /v1/api/call/{callId}/deliveries."""

    status: Success
    call_id: CallId
    deliveries: list[Delivery]


class DeliveryReplayed(PublicModel):
    """POST /v1/api/call/{callId}/deliveries/{sequence}/replay."""

    status: Success
    message: str
    call_id: CallId
    sequence: Sequence


class ReportTaken(PublicModel):
    """POST /v1/api/call/{callId}/events. suppressed: of an opt-out only, and always."""

    status: Success
    message: str
    call_id: CallId
    event_id: EventId
    sequence: Sequence
    suppressed: Annotated[bool, Field(default_factory=lambda: True)]


class OptOutTaken(PublicModel):
    """The same, for an opt-out that holds although it could not become an event."""

    status: Success
    message: str
    call_id: CallId
    suppressed: bool


class SuppressedBy(PublicModel):
    """What made a suppression: an API key, the agent of a call, or the operator."""

    key_id: str | None
    label: str | None
    call_id: CallId | None
    operator: bool | None


class Suppression(PublicModel):
    """A suppression that has not ended."""

    scope: Scope
    reason: str | None
    at: Time
    expires_at: Time | None
    by: SuppressedBy


class SuppressedNumber(PublicModel):
    """An entry of the list."""

    number: E164
    suppressions: list[Suppression]


class NumberSuppressions(SuppressedNumber):
    """GET, PUT and DELETE /v1/api/suppression/{number}."""

    status: Success


class SuppressionList(PublicModel):
    """GET /v1/api/suppression: one page."""

    status: Success
    numbers: Annotated[list[SuppressedNumber], Field(max_length=100)]
    cursor: str | None


class ImportResult(PublicModel):
    """What became of one suppression of an import. errors: of an invalid one only."""

    result: ImportOutcome
    number: E164 | None
    errors: Annotated[list[FieldError], Field(default_factory=list, min_length=1)]


class SuppressionsImported(PublicModel):
    """POST /v1/api/suppression/import."""

    status: Success
    accepted: Annotated[int, Field(ge=0)]
    invalid: Annotated[int, Field(ge=0)]
    retry: Annotated[int, Field(ge=0)]
    results: Annotated[list[ImportResult], Field(min_length=1, max_length=1000)]


class LiveKitEventTaken(PublicModel):
    """POST /v1/livekit/events."""

    status: Success


class FieldError(PublicModel):
    """What is wrong with one field, or one parameter of the query."""

    field: Annotated[str, Field(max_length=128)]
    message: NotEmpty


class Error(PublicModel):
    """Every error of the functions."""

    status: Literal["error"]
    message: NotEmpty
    code: ErrorCode
    errors: Annotated[list[FieldError], Field(default_factory=list, min_length=1)]


class GatewayError(PublicModel):
    """API Gateway's own errors."""

    message: str
