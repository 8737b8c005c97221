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

from initiate_call.rate_limit import RateLimit
from initiate_call.request import CallRequest, canonical, parse_request, read_body
from shared.authorization import authorized_workspace
from shared.call import Call, event, iso
from shared.call_store import CallStore
from shared.callback_url import AddressRefusedError, LookUp, Policy, check_name
from shared.clock import Clock, to_ms
from shared.durations import Durations
from shared.errors import FieldError, RequestRefusedError, StoreError, StoreUnclearError
from shared.http_api import check_idempotency_key
from shared.messages import dial_message
from shared.number_policy import in_allowed_country, is_special
from shared.queues import Queue
from shared.raw_json import Members, json_text
from shared.workspaces import Workspace, WorkspaceCache

_ROOM_ALPHABET = string.ascii_lowercase + string.digits


@dataclasses.dataclass(frozen=True, slots=True)
class Acceptor:
    """Accepts or refuses requests. clock: epoch milliseconds. look_up: with a time-out, raises OSError."""

    calls: CallStore
    workspaces: WorkspaceCache
    rate_limit: RateLimit
    dial_queue: Queue
    durations: Durations
    callback_policy: Policy
    look_up: LookUp
    clock: Clock

    def accept(
        self, workspace_id: str | None, api_key: str | None, idempotency_key: str | None, body: bytes
    ) -> Accepted:
        """Raises RequestRefusedError (4xx), StoreError or QueueError (not known to be accepted: repeat it).

        Refused requests and replays do not count towards the workspace's rate limit.
        """
        workspace = authorized_workspace(self.workspaces, workspace_id, api_key)
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        fields = read_body(body)
        if idempotency_key is None:
            return Accepted(self._place(workspace, fields, secrets.token_hex(12), None)[0])
        call_id = hashlib.sha256(json.dumps([workspace.workspace_id, idempotency_key]).encode()).hexdigest()[:24]
        request_hash = hashlib.sha256(canonical(fields).encode()).hexdigest()
        # Read first: a repeat sends no message, and is answered even if the request would be refused by now.
        there = self.calls.get(call_id)
        if there is None:
            call, mine = self._place(workspace, fields, call_id, request_hash)
            if mine:
                return Accepted(call)
            there = call
        if there.request_hash != request_hash:
            raise RequestRefusedError(
                422, "idempotency_key_reused", "This Idempotency-Key was used with another request body"
            )
        return Accepted(there, replayed=True)

    def _check_callback_name(self, request: CallRequest) -> None:
        if request.callback_url is None:
            return
        try:
            check_name(request.callback_url, self.callback_policy, self.look_up)
        except AddressRefusedError as exc:
            error = FieldError("callback_url", str(exc), "invalid_url")
            raise RequestRefusedError(400, error.code, f"{error.field} {error.message}", [error]) from exc

    def _place(
        self, workspace: Workspace, fields: Members, call_id: str, request_hash: str | None
    ) -> tuple[Call, bool]:
        """Sends the message and writes the record. Returns the call with that id, and whether this request created
        it.

        Raises RequestRefusedError: 400 and 403 for an invalid request, including a callback URL that resolves to a
        private address, 429 over the rate limit."""
        request = parse_request(fields, self.callback_policy)
        check_allowed(workspace, request)
        self._check_callback_name(request)
        now_ms = self.clock()
        minute = self.rate_limit.spend(workspace, now_ms)
        message = dial_message(call_id, workspace.workspace_id)
        job_id = self.dial_queue.send(message, group=workspace.workspace_id)
        room_suffix = "".join(secrets.choice(_ROOM_ALPHABET) for _ in range(10))
        call = Call(
            call_id=call_id,
            workspace_id=workspace.workspace_id,
            call_agent_id=request.call_agent_id,
            to=request.to,
            from_number=request.from_number,
            room_name=f"{request.call_agent_id}-{room_suffix}",
            job_id=job_id,
            created_at=iso(now_ms),
            status="queued",
            events=(event("call.queued", now_ms),),
            callback_url=request.callback_url,
            dynamic_variables=json_text(fields, "dynamic_variables"),
            metadata=json_text(fields, "metadata"),
            request_hash=request_hash,
            ring_timeout_seconds=request.ring_timeout_seconds,
            max_duration_seconds=request.max_duration_seconds,
            queue_deadline_ms=now_ms + to_ms(self.durations.queue_ttl),
            check_at_ms=now_ms + to_ms(self.durations.queued_check),
        )
        try:
            there = self.calls.create(call).call
        except StoreUnclearError:
            # A read shows whether it was written. If that fails too, the client repeats the request.
            there = self.calls.get(call_id)
            if there is None:
                raise
        if there is None:
            raise StoreError("the call was neither written nor found")
        mine = there.job_id == job_id
        if not mine:
            self.rate_limit.give_back(workspace, minute)
        return there, mine


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
            "message": f"Outbound call job scheduled for agent {call.call_agent_id} to number {call.to}",
            "callId": call.call_id,
            "roomName": call.room_name,
            "jobId": call.job_id,
        }


def check_allowed(workspace: Workspace, request: CallRequest) -> None:
    """Raises RequestRefusedError: 400 when `to` equals the caller's number, 403 with every field whose value this
    workspace may not use.
    """
    if request.to == (request.from_number or next(iter(workspace.from_numbers), None)):
        error = FieldError("to", "is the number that the call would be made from", "invalid_number")
        raise RequestRefusedError(400, error.code, f"{error.field} {error.message}", [error])
    errors = []
    if not in_allowed_country(request.to, workspace.allowed_calling_codes):
        errors.append(FieldError("to", "is in a country that this workspace may not call", "number_not_allowed"))
    elif not workspace.allow_special_numbers and is_special(request.to):
        message = (
            "is a premium-rate, personal, satellite or other special number, which this workspace may not call"
        )
        errors.append(FieldError("to", message, "number_not_allowed"))
    if workspace.agents and request.call_agent_id not in workspace.agents:
        errors.append(FieldError("call_agent_id", "is not an agent of this workspace", "agent_not_allowed"))
    if request.from_number is not None and request.from_number not in workspace.from_numbers:
        errors.append(FieldError("from", "is not a number of this workspace", "from_not_allowed"))
    if errors:
        message = "; ".join(f"{error.field} {error.message}" for error in errors)
        raise RequestRefusedError(403, errors[0].code, message, errors)
