"""What the models of request bodies have in common, and pydantic's errors as the API's own.

pydantic adds a quarter to a cold start: only the functions that read a client's or an agent's body import this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUseDefault, core_schema

from shared.errors import FieldError
from shared.phone_number import e164

# No control characters other than tab and line breaks.
CONTROLS = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f"
PLAIN_TEXT = rf"^[^{CONTROLS}]*$"

# For the JSON Schema alone: as much of the rules of shared/phone_number.py as a pattern can say.
_NUMBER_PATTERN = r"^[ .()-]*\+[ .()-]*(1[ .()-]*[2-9]([ .()-]*[0-9]){5,13}|[2-9]([ .()-]*[0-9]){6,14})[ .()-]*$"

# The name of a field that the request made up goes back to the client, no longer than this.
_NAME_CHARACTERS = 128

# What a client is told in place of pydantic's own message, by the type of pydantic's error.
_MESSAGES = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be a list",
}


class RequestModel(BaseModel):
    """Values are of the JSON type that is asked for, never converted. Unknown fields are dropped unless a model
    forbids them.
    """

    model_config = ConfigDict(strict=True, frozen=True)


Model = TypeVar("Model", bound=RequestModel)


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorMessage:
    """Annotates a type: whatever is wrong with a value of it is one `invalid_request` with this message."""

    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="invalid_request", custom_error_message=self.message
        )


class NullIsAbsent:
    """Annotates a type: `null` gives the field its default, as if the field were not there."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return core_schema.no_info_before_validator_function(
            _default_if_null, schema, json_schema_input_schema=core_schema.nullable_schema(schema)
        )


def _default_if_null(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


def _phone_number(text: str) -> str:
    try:
        return e164(text)
    except ValueError as exc:
        raise PydanticCustomError("invalid_number", str(exc)) from exc


PhoneNumber = Annotated[str, AfterValidator(_phone_number), Field(json_schema_extra={"pattern": _NUMBER_PATTERN})]


def validate(
    model: type[Model], values: Mapping[str, Any], *, unknown: str = "", below: str = "", context: Any = None
) -> tuple[Model | None, list[FieldError]]:
    """The model of these values, or None and everything that is wrong with them: first its fields in their order,
    then the fields that it does not have, in the request's order.

    unknown: the message for a field that the model does not have. below: the path of the values in the request,
    put before each field's name. context: for the model's own validators. A validator's PydanticCustomError has
    the error's code as its type.
    """
    try:
        return model.model_validate(values, context=context), []
    except ValidationError as exc:
        found = exc.errors(include_url=False, include_input=False)
    messages = _MESSAGES | {"extra_forbidden": unknown}
    errors = []
    for error in found:
        kind = error["type"]
        message = messages.get(kind, error["msg"])
        name = ".".join(map(str, (below, *error["loc"]) if below else error["loc"]))[:_NAME_CHARACTERS]
        errors.append(FieldError(name, message, kind if kind.startswith("invalid_") else "invalid_request"))
    return None, errors
