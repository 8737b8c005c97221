"""Accepts or refuses one request to place a call.

The dial message is sent first and the record written second. So the record contains its `jobId` from its first
version, and a crash in between leaves only a message without a record, which never dials.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import string
from collections.abc import Callable

from initiate_call.rate_limit import RateLimit
from initiate_call.request import CallRequest, canonical, parse_request, read_body
from shared.authorization import authorized_workspace
from shared.call import Call, event, iso
from shared.call_store import CallStore
from shared.callback_url import AddressRefused, LookUp, Policy, check_name
from shared.durations import Durations
from shared.errors import FieldError, RequestRefused, StoreError, StoreUnclear
from shared.http_api import check_idempotency_key
from shared.messages import dial_message
from shared.number_policy import in_allowed_country, is_special
from shared.queues import Queue
from shared.raw_json import Members, json_text
from shared.workspaces import Workspace, WorkspaceCache

_ROOM_ALPHABET = string.ascii_lowercase + string.digits


@dataclasses.dataclass(frozen=True, slots=True)
class Accepting:
    """The dependencies of accepting. clock: epoch milliseconds. look_up: with a time-out, raises OSError."""

    calls: CallStore
    workspaces: WorkspaceCache
    rate_limit: RateLimit
    dial_queue: Queue
    durations: Durations
    callback_policy: Policy
    look_up: LookUp
    clock: Callable[[], int]


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted request's call. replayed: accepted earlier, with the same Idempotency-Key."""

    call: Call
    replayed: bool = False

    def body(self) -> dict[str, str]:
        """The response body of the API contract."""
        call = self.call
        return {
            "status": "success",
            "message": f"Outbound call job scheduled for agent {call.callAgentId} to number {call.to}",
            "callId": call.callId,
            "roomName": call.roomName,
            "jobId": call.jobId,
        }


def accept(
    parts: Accepting, workspace_id: str | None, api_key: str | None, idempotency_key: str | None, body: bytes
) -> Accepted:
    """Raises RequestRefused (4xx), StoreError or QueueError (not known to be accepted: repeat it).

    Refused requests and replays do not count towards the workspace's rate limit.
    """
    workspace = authorized_workspace(parts.workspaces, workspace_id, api_key)
    if idempotency_key is not None:
        check_idempotency_key(idempotency_key)
    fields = read_body(body)
    if idempotency_key is None:
        return Accepted(_place(parts, workspace, fields, secrets.token_hex(12), None)[0])
    call_id = hashlib.sha256(json.dumps([workspace.workspaceId, idempotency_key]).encode()).hexdigest()[:24]
    request_hash = hashlib.sha256(canonical(fields).encode()).hexdigest()
    # Read first: a repeat sends no message, and is answered even if the request would be refused by now.
    there = parts.calls.get(call_id)
    if there is None:
        call, mine = _place(parts, workspace, fields, call_id, request_hash)
        if mine:
            return Accepted(call)
        there = call
    if there.requestHash != request_hash:
        raise RequestRefused(
            422, "idempotency_key_reused", "This Idempotency-Key was used with another request body"
        )
    return Accepted(there, replayed=True)


def check_allowed(workspace: Workspace, request: CallRequest) -> None:
    """Raises RequestRefused: 400 when `to` equals the caller's number, 403 with every field whose value this
    workspace may not use.
    """
    if request.to == (request.from_number or next(iter(workspace.fromNumbers), None)):
        error = FieldError("to", "is the number that the call would be made from", "invalid_number")
        raise RequestRefused(400, error.code, f"{error.field} {error.message}", [error])
    errors = []
    if not in_allowed_country(request.to, workspace.allowedCallingCodes):
        errors.append(FieldError("to", "is in a country that this workspace may not call", "number_not_allowed"))
    elif not workspace.allowSpecialNumbers and is_special(request.to):
        message = (
            "is a premium-rate, personal, satellite or other special number, which this workspace may not call"
        )
        errors.append(FieldError("to", message, "number_not_allowed"))
    if workspace.agents and request.call_agent_id not in workspace.agents:
        errors.append(FieldError("call_agent_id", "is not an agent of this workspace", "agent_not_allowed"))
    if request.from_number is not None and request.from_number not in workspace.fromNumbers:
        errors.append(FieldError("from", "is not a number of this workspace", "from_not_allowed"))
    if errors:
        message = "; ".join(f"{error.field} {error.message}" for error in errors)
        raise RequestRefused(403, errors[0].code, message, errors)


def _check_callback_name(parts: Accepting, request: CallRequest) -> None:
    if request.callback_url is None:
        return
    try:
        check_name(request.callback_url, parts.callback_policy, parts.look_up)
    except AddressRefused as exc:
        error = FieldError("callback_url", str(exc), "invalid_url")
        raise RequestRefused(400, error.code, f"{error.field} {error.message}", [error]) from exc


def _place(
    parts: Accepting, workspace: Workspace, fields: Members, call_id: str, request_hash: str | None
) -> tuple[Call, bool]:
    """Sends the message and writes the record. Returns the call with that id, and whether this request created it.

    Raises RequestRefused: 400 and 403 for an invalid request, including a callback URL that resolves to a private
    address, 429 over the rate limit.
    """
    request = parse_request(fields, parts.callback_policy)
    check_allowed(workspace, request)
    _check_callback_name(parts, request)
    now = parts.clock()
    minute = parts.rate_limit.spend(workspace, now)
    message = dial_message(call_id, workspace.workspaceId)
    job_id = parts.dial_queue.send(message, group=workspace.workspaceId)
    room_suffix = "".join(secrets.choice(_ROOM_ALPHABET) for _ in range(10))
    call = Call(
        callId=call_id,
        workspaceId=workspace.workspaceId,
        callAgentId=request.call_agent_id,
        to=request.to,
        fromNumber=request.from_number,
        roomName=f"{request.call_agent_id}-{room_suffix}",
        jobId=job_id,
        createdAt=iso(now),
        status="queued",
        events=(event("call.queued", now),),
        callbackUrl=request.callback_url,
        dynamicVariables=json_text(fields, "dynamic_variables"),
        metadata=json_text(fields, "metadata"),
        requestHash=request_hash,
        ringTimeoutSeconds=request.ring_timeout_seconds,
        maxDurationSeconds=request.max_duration_seconds,
        queueDeadline=now + int(parts.durations.queue_ttl * 1000),
        checkAt=now + int(parts.durations.queued_check * 1000),
    )
    try:
        there = parts.calls.create(call).call
    except StoreUnclear:
        # A read shows whether it was written. If that fails too, the client repeats the request.
        there = parts.calls.get(call_id)
        if there is None:
            raise
    if there is None:
        raise StoreError("the call was neither written nor found")
    mine = there.jobId == job_id
    if not mine:
        parts.rate_limit.give_back(workspace, minute)
    return there, mine
