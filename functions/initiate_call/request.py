"""The request of POST /v1/api/call: what it may hold, and everything that is wrong with it at once."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.callback_url import AddressRefusedError, Policy, check_url
from shared.errors import FieldError, RequestRefusedError
from shared.policies import NAME as POLICY_NAME
from shared.raw_json import LONG_NUMBER, Members, body_members, holds_long_number, json_text
from shared.request_model import (
    CONTROLS,
    PLAIN_TEXT,
    ErrorMessage,
    NullIsAbsent,
    PhoneNumber,
    RequestModel,
    validate,
)
from shared.timestamps import Timestamp

MAXIMUM_BODY_BYTES = 64 * 1024
MAXIMUM_CONTEXT_BYTES = 32 * 1024

_MAXIMUM_URL_CHARACTERS = 2048
_MAXIMUM_VARIABLES = 100
_MAXIMUM_VARIABLE_NAME = 128
_plain_text = re.compile(PLAIN_TEXT)

# For the JSON Schema alone: as much of the rules of shared/callback_url.py as a pattern can say.
_URL_PATTERN = (
    r"^([Hh][Tt][Tt][Pp][Ss]://([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)+"
    r"[A-Za-z]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(:443)?([/?#][^\u0000-\u0020\u007f\\]*)?)?$"
)


def _callback_url(url: str | None, info: ValidationInfo) -> str | None:
    """info.context: the Policy for callback URLs; without one, public addresses only."""
    if not url:
        return None
    if len(url) > _MAXIMUM_URL_CHARACTERS:
        raise PydanticCustomError("invalid_url", f"must be at most {_MAXIMUM_URL_CHARACTERS:,} characters")
    try:
        check_url(url, info.context or Policy())
    except AddressRefusedError as exc:
        raise PydanticCustomError("invalid_url", str(exc)) from exc
    return url


def _variables(variables: dict[str, Any]) -> dict[str, Any]:
    if len(variables) > _MAXIMUM_VARIABLES:
        raise PydanticCustomError("invalid_variables", f"must have at most {_MAXIMUM_VARIABLES} keys")
    for key, value in variables.items():
        if not 1 <= len(key) <= _MAXIMUM_VARIABLE_NAME:
            raise PydanticCustomError(
                "invalid_variables", f"keys must have 1 to {_MAXIMUM_VARIABLE_NAME} characters"
            )
        if not isinstance(value, str | int | float | bool | None):
            raise PydanticCustomError(
                "invalid_variables", f"'{key}' must be a string, a number, a boolean or null"
            )
        if not (_plain_text.fullmatch(key) and (not isinstance(value, str) or _plain_text.fullmatch(value))):
            raise PydanticCustomError("invalid_variables", f"'{key}' holds a control character")
    return variables


def _integer(value: Any) -> Any:
    # JSON has one kind of number: 40.0 is 40, and some languages write it so.
    return int(value) if isinstance(value, float) and value.is_integer() else value


AgentId = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-]{1,128}$"),
    ErrorMessage("must be a string of 1 to 128 of A-Z, a-z, 0-9, _ and -"),
]
CallbackUrl = Annotated[
    str | None,
    AfterValidator(_callback_url),
    WithJsonSchema({"type": ["string", "null"], "maxLength": _MAXIMUM_URL_CHARACTERS, "pattern": _URL_PATTERN}),
]
Variables = Annotated[
    dict[str, Any],
    AfterValidator(_variables),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": _MAXIMUM_VARIABLES,
            "propertyNames": {"minLength": 1, "maxLength": _MAXIMUM_VARIABLE_NAME, "pattern": PLAIN_TEXT},
            # `integer` keeps generated code from making 2.0 of 2, and `not` leaves the types to it as they are.
            "additionalProperties": {
                "type": ["string", "integer", "number", "boolean", "null"],
                "not": {"type": "string", "pattern": f"[{CONTROLS}]"},
            },
        }
    ),
]
RingTimeout = Annotated[
    int,
    Field(ge=10, le=60),
    BeforeValidator(_integer),
    ErrorMessage("must be a whole number from 10 to 60"),
    NullIsAbsent(),
]
MaximumDuration = Annotated[
    int,
    Field(ge=30, le=14_400),
    BeforeValidator(_integer),
    ErrorMessage("must be a whole number from 30 to 14400"),
    NullIsAbsent(),
]


def _time_zone(name: str) -> str:
    # Imported here: the list of zones is read from a file.
    from shared.zones import known_zone

    if not known_zone(name):
        raise PydanticCustomError("invalid_time_zone", "must be an IANA time zone such as America/Phoenix")
    return name


Purpose = Annotated[
    str,
    Field(pattern=rf"^{POLICY_NAME.pattern}$"),
    ErrorMessage("must be the name of a policy: 1 to 64 of a-z, 0-9, _ and -, the first a letter"),
]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Dtmf = Annotated[
    str,
    Field(pattern=r"^[0-9*#A-Dw]{1,64}$"),
    ErrorMessage("must be 1 to 64 of 0-9, *, #, A-D and w, which waits for half a second"),
]


class Consent(RequestModel, extra="forbid"):
    """Why the callee may be called, as the client keeps it: it is stored with the call and returned unchanged."""

    basis: Annotated[str, Field(min_length=1, max_length=128, pattern=PLAIN_TEXT)]
    obtained_at: Timestamp
    reference: Annotated[str | None, Field(max_length=512, pattern=PLAIN_TEXT)] = None


def consent_item(consent: Consent) -> dict[str, str]:
    """As it is stored with the call and returned."""
    given = {"basis": consent.basis, "obtainedAt": consent.obtained_at, "reference": consent.reference}
    return {name: value for name, value in given.items() if value is not None}


class CallRequest(RequestModel, extra="forbid"):
    """The body. What goes on of `dynamic_variables` and `metadata` is their text as written (`json_text`)."""

    to: PhoneNumber
    call_agent_id: AgentId
    callback_url: CallbackUrl = None
    dynamic_variables: Variables | None = None
    metadata: dict[str, Any] | None = None
    from_number: Annotated[PhoneNumber | None, Field(alias="from")] = None
    ring_timeout_seconds: RingTimeout = 40
    max_duration_seconds: MaximumDuration = 1800
    scheduled_at: Timestamp | None = None
    expires_at: Timestamp | None = None
    purpose: Purpose | None = None
    time_zone: TimeZone | None = None
    consent: Consent | None = None
    dtmf: Dtmf | None = None


def read_body(body: bytes) -> Members:
    """The members of the JSON object. Raises RequestRefusedError: 413 when too large, 400 when it is none."""
    return body_members(body, MAXIMUM_BODY_BYTES)


def parse_request(fields: Members, callbacks: Policy) -> CallRequest:
    """callbacks: where webhooks may go. Raises RequestRefusedError (400) with every wrong field."""
    request, errors = validate(
        CallRequest,
        {name: value for name, (value, _) in fields.items()},
        unknown="is not a field of this request",
        context=callbacks,
    )
    errors += _text_errors(fields, {error.field for error in errors})
    if request is None or errors:
        codes = {error.code for error in errors}
        raise RequestRefusedError(
            400,
            codes.pop() if len(codes) == 1 else "invalid_request",
            "; ".join(f"{error.field} {error.message}" for error in errors),
            errors,
        )
    return request


def _text_errors(fields: Members, wrong: set[str]) -> list[FieldError]:
    """What is wrong with `dynamic_variables` and `metadata` as they are written. wrong: fields that need no check
    of their numbers.
    """
    texts = {
        name: text for name in ("dynamic_variables", "metadata") if (text := json_text(fields, name)) is not None
    }
    errors = [
        FieldError(name, LONG_NUMBER, "invalid_variables" if name == "dynamic_variables" else "invalid_request")
        for name, text in texts.items()
        if name not in wrong and holds_long_number(text)
    ]
    if sum(len(text.encode()) for text in texts.values()) > MAXIMUM_CONTEXT_BYTES:
        message = "is too large: dynamic_variables and metadata together may have at most 32 KiB as JSON"
        errors += [FieldError(name, message) for name in texts]
    return errors


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
