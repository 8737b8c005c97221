"""The request of POST /v1/api/call: what it may hold, and everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from shared.errors import FieldError, RequestRefused
from shared.json_text import members
from shared.phone_number import e164
from webhook_dispatch.address_guard import AddressRefused, Policy, check_url

MAXIMUM_BODY_BYTES = 64 * 1024
MAXIMUM_CONTEXT_BYTES = 32 * 1024

# A field's name goes back to the client in the error, no longer than this.
_NAME_CHARACTERS = 128

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _number(value: str) -> str:
    try:
        return e164(value)
    except ValueError as exc:
        raise PydanticCustomError("invalid_number", "{reason}", {"reason": str(exc)}) from exc


def _url(value: str, info: ValidationInfo) -> str:
    if len(value) > 2048:
        raise PydanticCustomError("invalid_url", "must be at most 2,048 characters")
    try:
        check_url(value, cast(Policy, info.context))
    except AddressRefused as exc:
        raise PydanticCustomError("invalid_url", "{reason}", {"reason": str(exc)}) from exc
    return value


def _variables(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) > 100:
        raise PydanticCustomError("invalid_variables", "must have at most 100 keys")
    for key, entry in value.items():
        if not 1 <= len(key) <= 128:
            raise PydanticCustomError("invalid_variables", "keys must have 1 to 128 characters")
        if not isinstance(entry, str | int | float | bool | None):
            raise PydanticCustomError(
                "invalid_variables",
                "'{key}' must be a string, a number, a boolean or null",
                {"key": key},
            )
        if _CONTROL.search(key) or (isinstance(entry, str) and _CONTROL.search(entry)):
            raise PydanticCustomError("invalid_variables", "'{key}' holds a control character", {"key": key})
    return value


def _absent_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _whole(value: Any) -> Any:
    # JSON has one kind of number: 40.0 is 40, and some languages write it so.
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Body(BaseModel):
    """Types and bounds of the fields; `null` in an optional one means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    to: Annotated[str, AfterValidator(_number)]
    call_agent_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    callback_url: Annotated[Annotated[str, AfterValidator(_url)] | None, BeforeValidator(_absent_if_empty)] = None
    dynamic_variables: Annotated[dict[str, Any], AfterValidator(_variables)] | None = None
    metadata: dict[str, Any] | None = None
    from_: Annotated[str, AfterValidator(_number)] | None = Field(default=None, alias="from")
    ring_timeout_seconds: Annotated[Annotated[int, Field(ge=10, le=60)] | None, BeforeValidator(_whole)] = None
    max_duration_seconds: Annotated[Annotated[int, Field(ge=30, le=14_400)] | None, BeforeValidator(_whole)] = None


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


_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "string_type": "must be a string",
    "dict_type": "must be an object",
}
# Of fields with one rule: what is said whichever part of it was broken.
_RULES = {
    "call_agent_id": "must be a string of 1 to 128 of A-Z, a-z, 0-9, _ and -",
    "ring_timeout_seconds": "must be a whole number from 10 to 60",
    "max_duration_seconds": "must be a whole number from 30 to 14400",
}


def parse_request(body: bytes, callbacks: Policy) -> CallRequest:
    """callbacks: where webhooks may go. Raises RequestRefused: 413 when too large, 400 with every wrong field."""
    if len(body) > MAXIMUM_BODY_BYTES:
        raise RequestRefused(413, "too_large", "The body may have at most 64 KiB")
    if not body.strip():
        raise RequestRefused(400, "invalid_json", "The body is empty; a JSON object is expected")
    fields = members(body)
    errors: list[FieldError] = []
    parsed: _Body | None = None
    try:
        parsed = _Body.model_validate({name: value for name, (value, _) in fields.items()}, context=callbacks)
    except ValidationError as exc:
        errors = [
            FieldError(str(error["loc"][0])[:_NAME_CHARACTERS], _message(error), error["type"])
            for error in exc.errors(include_url=False, include_input=False)
        ]
    texts = {
        name: fields[name][1]
        for name in ("dynamic_variables", "metadata")
        if name in fields and fields[name][0] is not None
    }
    if sum(len(text.encode()) for text in texts.values()) > MAXIMUM_CONTEXT_BYTES:
        message = "is too large: dynamic_variables and metadata together may have at most 32 KiB as JSON"
        errors += [FieldError(name, message) for name in texts]
    if errors or parsed is None:
        only = {error.code for error in errors}
        code = only.pop() if len(only) == 1 else "invalid_request"
        raise RequestRefused(
            400,
            code if code.startswith("invalid_") else "invalid_request",
            "; ".join(f"{error.field} {error.message}" for error in errors),
            errors,
        )
    return CallRequest(
        to=parsed.to,
        call_agent_id=parsed.call_agent_id,
        callback_url=parsed.callback_url,
        dynamic_variables=texts.get("dynamic_variables"),
        metadata=texts.get("metadata"),
        from_number=parsed.from_,
        ring_timeout_seconds=parsed.ring_timeout_seconds or 40,
        max_duration_seconds=parsed.max_duration_seconds or 1800,
    )


def canonical(body: bytes) -> str:
    """The request as one text, whatever its white space and key order: what an Idempotency-Key covers."""
    fields = {
        name: json.loads(text, parse_int=_as_written, parse_float=_as_written)
        for name, (_, text) in members(body).items()
    }
    return json.dumps(fields, sort_keys=True)


def _as_written(number: str) -> dict[str, str]:
    # Read as numbers, 1e400 and 1e500 would be the same. No valid body can hold this key.
    return {"\ud800": number}


def _message(error: Any) -> str:
    kind, field = error["type"], error["loc"][0]
    if kind not in ("missing", "extra_forbidden") and field in _RULES:
        return _RULES[field]
    return _MESSAGES.get(kind, str(error["msg"]))
