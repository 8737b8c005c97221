"""The request of POST /v1/api/call: what it may hold, and everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

from shared.callback_url import AddressRefused, Policy, check_url
from shared.errors import FieldError, RequestRefused
from shared.fields import Fields, Wrong, json_object, string, whole_number
from shared.phone_number import e164
from shared.raw_json import LONG_NUMBER, Members, holds_long_number, members

MAXIMUM_BODY_BYTES = 64 * 1024
MAXIMUM_CONTEXT_BYTES = 32 * 1024

_AGENT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _number(value: Any) -> str:
    text = string(value)
    try:
        return e164(text)
    except ValueError as exc:
        raise Wrong(str(exc), "invalid_number") from exc


def _agent(value: Any) -> str:
    if not (isinstance(value, str) and _AGENT.fullmatch(value)):
        raise Wrong("must be a string of 1 to 128 of A-Z, a-z, 0-9, _ and -")
    return value


def _url(callbacks: Policy, value: Any) -> str | None:
    url = string(value)
    if not url:
        return None
    if len(url) > 2048:
        raise Wrong("must be at most 2,048 characters", "invalid_url")
    try:
        check_url(url, callbacks)
    except AddressRefused as exc:
        raise Wrong(str(exc), "invalid_url") from exc
    return url


def _variables(value: Any) -> dict[str, Any]:
    variables = json_object(value)
    if len(variables) > 100:
        raise Wrong("must have at most 100 keys", "invalid_variables")
    for key, entry in variables.items():
        if not 1 <= len(key) <= 128:
            raise Wrong("keys must have 1 to 128 characters", "invalid_variables")
        if not isinstance(entry, str | int | float | bool | None):
            raise Wrong(f"'{key}' must be a string, a number, a boolean or null", "invalid_variables")
        if _CONTROL.search(key) or (isinstance(entry, str) and _CONTROL.search(entry)):
            raise Wrong(f"'{key}' holds a control character", "invalid_variables")
    return variables


def _fields(callbacks: Policy) -> Fields:
    return Fields(
        {
            "to": _number,
            "call_agent_id": _agent,
            "callback_url": functools.partial(_url, callbacks),
            "dynamic_variables": _variables,
            "metadata": json_object,
            "from": _number,
            "ring_timeout_seconds": whole_number(10, 60),
            "max_duration_seconds": whole_number(30, 14_400),
        },
        required=frozenset({"to", "call_agent_id"}),
        unknown="is not a field of this request",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class CallRequest:
    """A valid request. `dynamic_variables` and `metadata` are the JSON texts as the client wrote them."""

    to: str
    call_agent_id: str
    callback_url: str | None
    dynamic_variables: str | None
    metadata: str | None
    from_number: str | None
    ring_timeout_seconds: int
    max_duration_seconds: int


def read_body(body: bytes) -> Members:
    """The members of the JSON object. Raises RequestRefused: 413 when too large, 400 when it is none."""
    if len(body) > MAXIMUM_BODY_BYTES:
        raise RequestRefused(413, "too_large", "The body may have at most 64 KiB")
    if not body.strip():
        raise RequestRefused(400, "invalid_json", "The body is empty; a JSON object is expected")
    return members(body)


def parse_request(fields: Members, callbacks: Policy) -> CallRequest:
    """callbacks: where webhooks may go. Raises RequestRefused (400) with every wrong field."""
    values, errors = _fields(callbacks).check({name: value for name, (value, _) in fields.items()})
    texts = {
        name: fields[name][1]
        for name in ("dynamic_variables", "metadata")
        if name in fields and fields[name][0] is not None
    }
    for name, text in texts.items():
        if holds_long_number(text) and name in values:
            code = "invalid_variables" if name == "dynamic_variables" else "invalid_request"
            errors.append(FieldError(name, LONG_NUMBER, code))
    if sum(len(text.encode()) for text in texts.values()) > MAXIMUM_CONTEXT_BYTES:
        message = "is too large: dynamic_variables and metadata together may have at most 32 KiB as JSON"
        errors += [FieldError(name, message) for name in texts]
    if errors:
        only = {error.code for error in errors}
        code = only.pop() if len(only) == 1 else "invalid_request"
        raise RequestRefused(
            400,
            code if code.startswith("invalid_") else "invalid_request",
            "; ".join(f"{error.field} {error.message}" for error in errors),
            errors,
        )
    return CallRequest(
        to=values["to"],
        call_agent_id=values["call_agent_id"],
        callback_url=values.get("callback_url"),
        dynamic_variables=texts.get("dynamic_variables"),
        metadata=texts.get("metadata"),
        from_number=values.get("from"),
        ring_timeout_seconds=values.get("ring_timeout_seconds", 40),
        max_duration_seconds=values.get("max_duration_seconds", 1800),
    )


def canonical(fields: Members) -> str:
    """The request as one text, whatever its white space and key order: what an Idempotency-Key covers."""
    values = {
        name: json.loads(text, parse_int=_as_written, parse_float=_as_written)
        for name, (_, text) in fields.items()
    }
    return json.dumps(values, sort_keys=True)


def _as_written(number: str) -> dict[str, str]:
    # Read as numbers, 1e400 and 1e500 would be the same. No valid body can hold this key.
    return {"\ud800": number}
