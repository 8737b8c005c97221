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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from initiate_call.rate_limit import RateLimit
from initiate_call.request import CallRequest, canonical, consent_item, parse_request, read_body
from shared.authorization import authorized_workspace
from shared.call import Call, event, iso
from shared.call_store import CallStore
from shared.callback_url import AddressRefusedError, LookUp, Policy, check_name
from shared.clock import Clock, to_ms
from shared.durations import Durations
from shared.errors import (
    FieldError,
    RequestRefusedError,
    StoreError,
    StoreUnclearError,
    refusal,
    workspace_not_allowed,
)
from shared.gates import Decision, decide, preview_view, system_gates
from shared.http_api import check_idempotency_key
from shared.limits import LimitStore
from shared.messages import dial_message, hold_message
from shared.number_policy import in_allowed_country, is_special
from shared.numbers import NumberRecord, NumberStore, number_key
from shared.policies import DEFAULT
from shared.queues import Queue
from shared.raw_json import Members, json_text
from shared.scheduling import check_decision, place, schedule_errors
from shared.timestamps import PAST_MS, rfc3339_ms
from shared.workspaces import Workspace, WorkspaceCache

Found = TypeVar("Found")

_ROOM_ALPHABET = string.ascii_lowercase + string.digits


@dataclasses.dataclass(frozen=True, slots=True)
class Acceptor:
    """Accepts or refuses requests. clock: epoch milliseconds. look_up: with a time-out, raises OSError."""

    calls: CallStore
    numbers: NumberStore
    limits: LimitStore
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
            call_id, request_hash = secrets.token_hex(12), None
        else:
            named = json.dumps([workspace.workspace_id, idempotency_key]).encode()
            call_id = hashlib.sha256(named).hexdigest()[:24]
            request_hash = hashlib.sha256(canonical(fields).encode()).hexdigest()
        try:
            request = self._parsed(workspace, fields)
        except RequestRefusedError:
            # A repeat is answered even if the request would be refused by now.
            there = self.calls.get(call_id) if idempotency_key is not None else None
            if there is None:
                raise
            return _replayed(there, request_hash)
        if idempotency_key is None:
            number = self._read_beside_name_check(
                request, lambda: self.numbers.get(workspace.workspace_id, request.to)
            )
        else:
            # Read first: a repeat sends no message.
            found = self._find(workspace, call_id, request)
            if isinstance(found, Call):
                return _replayed(found, request_hash)
            number = found
            self._check_callback_name(request)
        call, decision = self._decided(workspace, request, fields, number, call_id, request_hash)
        placed, mine = self._place(workspace, call, decision)
        return Accepted(placed) if mine else _replayed(placed, request_hash)

    def preview(self, workspace_id: str | None, api_key: str | None, body: bytes) -> dict[str, Any]:
        """What would become of the request if it placed a call now. Writes nothing.

        Raises RequestRefusedError as `accept` does, StoreError.
        """
        workspace = authorized_workspace(self.workspaces, workspace_id, api_key)
        fields = read_body(body)
        request = self._parsed(workspace, fields)
        standing = self._read_beside_name_check(request, lambda: self.limits.standing(workspace, request.to))
        current, number = standing.workspace, standing.number
        if current is None or number is None:
            raise workspace_not_allowed()
        call, rules = self._decided(current, request, fields, number, "0" * 24, None)
        return preview_view(rules, system_gates(standing, call, self.clock()), self.clock())

    def _find(self, workspace: Workspace, call_id: str, request: CallRequest) -> Call | NumberRecord:
        """The call with this id if there is one, else the callee's record: one read. A repeat is answered though
        that record cannot be read.
        """
        key = {"id": number_key(workspace.workspace_id, request.to)}
        call, item = self.calls.get_beside(call_id, self.numbers.table, key)
        return call or NumberRecord.from_item(workspace.workspace_id, request.to, item)

    def _parsed(self, workspace: Workspace, fields: Members) -> CallRequest:
        """Raises RequestRefusedError: 400 and 403 for what the request itself shows to be wrong."""
        request = parse_request(fields, self.callback_policy)
        check_allowed(workspace, request)
        return request

    def _read_beside_name_check(self, request: CallRequest, read: Callable[[], Found]) -> Found:
        """What `read` returns; the host name of the callback URL is looked up meanwhile, if there is one."""
        if request.callback_url is None:
            return read()
        with ThreadPoolExecutor(1) as other:
            reading = other.submit(read)
            self._check_callback_name(request)
            return reading.result()

    def _check_callback_name(self, request: CallRequest) -> None:
        if request.callback_url is None:
            return
        try:
            check_name(request.callback_url, self.callback_policy, self.look_up)
        except AddressRefusedError as exc:
            raise refusal(400, FieldError("callback_url", str(exc), "invalid_url")) from exc

    def _decided(
        self,
        workspace: Workspace,
        request: CallRequest,
        fields: Members,
        number: NumberRecord,
        call_id: str,
        request_hash: str | None,
    ) -> tuple[Call, Decision]:
        """The call of this request, without its `jobId`, and what the gates say of it now.

        Raises RequestRefusedError: 400 for times that cannot be and for what cannot ring before its deadline, 403
        for a suppressed number.
        """
        now_ms = self.clock()
        scheduled_at_ms, expires_at_ms, errors = schedule_errors(request.scheduled_at, request.expires_at, now_ms)
        consent = request.consent
        if consent is not None and rfc3339_ms(consent.obtained_at) > now_ms + PAST_MS:
            errors.append(FieldError("consent.obtained_at", "must not be in the future"))
        if errors:
            raise refusal(400, *errors)
        room_suffix = "".join(secrets.choice(_ROOM_ALPHABET) for _ in range(10))
        call = Call(
            call_id=call_id,
            workspace_id=workspace.workspace_id,
            call_agent_id=request.call_agent_id,
            to=request.to,
            from_number=request.from_number,
            room_name=f"{request.call_agent_id}-{room_suffix}",
            job_id="",
            created_at=iso(now_ms),
            status="queued",
            events=(event("call.queued", now_ms),),
            callback_url=request.callback_url,
            dynamic_variables=json_text(fields, "dynamic_variables"),
            metadata=json_text(fields, "metadata"),
            request_hash=request_hash,
            scheduled_at_ms=scheduled_at_ms,
            expires_at_ms=expires_at_ms,
            purpose=request.purpose,
            time_zone=request.time_zone,
            consent=None if consent is None else consent_item(consent),
            dtmf=request.dtmf,
            ring_timeout_seconds=request.ring_timeout_seconds,
            max_duration_seconds=request.max_duration_seconds,
            queue_deadline_ms=(scheduled_at_ms or now_ms) + to_ms(self.durations.queue_ttl),
            check_at_ms=now_ms + to_ms(self.durations.queued_check),
        )
        ring_ms = self.durations.ring_ms(call.ring_timeout_seconds)
        decision = decide(call, workspace, number, now_ms, ring_ms, self.durations.scale)
        check_decision(call, decision)
        return call, decision

    def _place(self, workspace: Workspace, call: Call, decision: Decision) -> tuple[Call, bool]:
        """Sends the message and writes the record. Returns the call with that id, and whether this request created
        it.

        Raises RequestRefusedError: 429 over the rate limit."""
        now_ms = self.clock()
        minute = self.rate_limit.spend(workspace, now_ms)
        placed = place(call, decision, self.durations, now_ms)
        if placed.delay_seconds is None:
            message = hold_message(call.call_id, workspace.workspace_id)
        else:
            message = dial_message(call.call_id, workspace.workspace_id)
        job_id = self.dial_queue.send(
            message, group=workspace.workspace_id, delay_seconds=placed.delay_seconds or 0
        )
        call = dataclasses.replace(placed.call, job_id=job_id)
        try:
            there = self.calls.create(call).call
        except StoreUnclearError:
            # A read shows whether it was written. If that fails too, the client repeats the request.
            there = self.calls.get(call.call_id)
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


def _replayed(there: Call, request_hash: str | None) -> Accepted:
    """A call that was accepted earlier with the same Idempotency-Key. Raises RequestRefusedError (422)."""
    if there.request_hash != request_hash:
        raise RequestRefusedError(
            422, "idempotency_key_reused", "This Idempotency-Key was used with another request body"
        )
    return Accepted(there, replayed=True)


def check_allowed(workspace: Workspace, request: CallRequest) -> None:
    """Raises RequestRefusedError: 400 when `to` equals the caller's number, 403 with every field whose value this
    workspace may not use.
    """
    if request.to == (request.from_number or next(iter(workspace.from_numbers), None)):
        raise refusal(400, FieldError("to", "is the number that the call would be made from", "invalid_number"))
    if request.purpose is not None and request.purpose not in (DEFAULT, *workspace.policies):
        raise refusal(400, FieldError("purpose", "is not a policy of this workspace", "unknown_purpose"))
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
