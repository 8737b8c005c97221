"""The request of POST /v1/api/call: what it may hold, and everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from shared.errors import FieldError, RequestRefused
from shared.json_text import members

MAXIMUM_BODY_BYTES = 64 * 1024
MAXIMUM_CONTEXT_BYTES = 32 * 1024

_PUNCTUATION = re.compile(r"[ .()\-]")
_E164 = re.compile(r"\+[1-9]\d{6,14}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _number(value: str) -> str:
    number = _PUNCTUATION.sub("", value)
    if not _E164.fullmatch(number):
        raise PydanticCustomError(
            "invalid_number", "must be a phone number in E.164: +, then 7 to 15 digits, the first not 0"
        )
    return number


def _url(value: str) -> str:
    if len(value) > 2048:
        raise PydanticCustomError("invalid_url", "must be at most 2,048 characters")
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


class _Body(BaseModel):
    """Types and bounds of the fields; `null` in an optional one means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    to: Annotated[str, AfterValidator(_number)]
    call_agent_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    callback_url: Annotated[Annotated[str, AfterValidator(_url)] | None, BeforeValidator(_absent_if_empty)] = None
    dynamic_variables: Annotated[dict[str, Any], AfterValidator(_variables)] | None = None
    metadata: dict[str, Any] | None = None
    from_: Annotated[str, AfterValidator(_number)] | None = Field(default=None, alias="from")
    ring_timeout_seconds: Annotated[int, Field(ge=10, le=60)] | None = None
    max_duration_seconds: Annotated[int, Field(ge=30, le=14_400)] | None = None


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
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
}


def parse_request(body: bytes) -> CallRequest:
    """Raises RequestRefused: 413 when too large, 400 with every field that is wrong."""
    if len(body) > MAXIMUM_BODY_BYTES:
        raise RequestRefused(413, "too_large", "The body may have at most 64 KiB")
    if not body.strip():
        raise RequestRefused(400, "invalid_json", "The body is empty; a JSON object is expected")
    fields = members(body)
    errors: list[FieldError] = []
    parsed: _Body | None = None
    try:
        parsed = _Body.model_validate({name: value for name, (value, _) in fields.items()})
    except ValidationError as exc:
        errors = [
            FieldError(str(error["loc"][0]), _message(error), error["type"])
            for error in exc.errors(include_url=False, include_input=False)
        ]
    texts = {
        name: fields[name][1]
        for name in ("dynamic_variables", "metadata")
        if name in fields and fields[name][0] is not None
    }
    if sum(len(text.encode()) for text in texts.values()) > MAXIMUM_CONTEXT_BYTES:
        errors += [FieldError(name, "together at most 32 KiB as JSON", "too_large") for name in texts]
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
    return json.dumps({name: value for name, (value, _) in members(body).items()}, sort_keys=True)


def _message(error: Any) -> str:
    kind = error["type"]
    if kind == "string_pattern_mismatch":
        return "must have 1 to 128 of A-Z, a-z, 0-9, _ and -"
    return _MESSAGES.get(kind, str(error["msg"]).replace("Input should be", "must be"))
