"""What the operator says of a workspace, as a pydantic model, and what argparse makes of its types."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from shared import phone_number
from shared.slots import MAXIMUM_SLOTS

# ── the rules of single values: each raises ValueError with what is wrong ───────────────────────────


def matching(pattern: str, what: str) -> AfterValidator:
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


def whole_number(least: int, most: int) -> BeforeValidator:
    """A number, or the text of one as it stands in an argument."""

    def check(value: Any) -> Any:
        text = str(value) if type(value) is int else value
        if not isinstance(text, str):
            return value
        # Their number first: Python parses no number of thousands of digits.
        digits = text.lstrip("0") or "0"
        if not (text.isascii() and text.isdigit() and len(digits) < 10 and least <= int(digits) <= most):
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return int(digits)

    return BeforeValidator(check)


def _label(text: str) -> str:
    if not (1 <= len(text) <= 128 and text.isprintable() and text == text.strip()):
        raise ValueError("must be 1 to 128 printable characters, without space around them")
    return text


def _comparable(text: str) -> str:
    try:
        return phone_number.e164(text)
    except ValueError as exc:
        raise ValueError(f"{text!r}: {exc}") from exc


WorkspaceId = Annotated[str, matching(r"[A-Za-z0-9_-]{1,64}", "a workspace id: 1 to 64 of A-Z, a-z, 0-9, _ and -")]
AgentId = Annotated[str, matching(r"[A-Za-z0-9_-]{1,128}", "an agent id: 1 to 128 of A-Z, a-z, 0-9, _ and -")]
SipTrunk = Annotated[str, matching(r"ST_[A-Za-z0-9_-]{1,61}", "the id of a LiveKit SIP trunk: ST_...")]
CallingCode = Annotated[str, matching(r"\+[1-9]\d{0,6}", "a calling code: + and 1 to 7 digits, the first not 0")]
E164 = Annotated[
    str, matching(r"\+[1-9]\d{6,14}", "a phone number in E.164: + and 7 to 15 digits, the first not 0")
]
# In the form that a request's `from` is compared with.
OwnNumber = Annotated[E164, AfterValidator(_comparable)]
Label = Annotated[str, AfterValidator(_label)]
ConcurrentCalls = Annotated[int, whole_number(1, MAXIMUM_SLOTS)]
CallsPerMinute = Annotated[int, whole_number(1, 60_000)]
CallsPerSecond = Annotated[int, whole_number(1, 100)]


class WorkspaceInput(BaseModel):
    """What `workspace create` and `workspace update` are told that the workspace is to have, by the names of their
    arguments. None: not given.
    """

    model_config = ConfigDict(strict=True, frozen=True, from_attributes=True)

    workspace: WorkspaceId
    name: Label | None
    agent_name: Label | None
    trunk: SipTrunk | None
    from_numbers: list[OwnNumber]
    allow: list[CallingCode]
    agents: list[AgentId]
    allow_special_numbers: bool | None
    max_concurrent_calls: ConcurrentCalls | None
    calls_per_minute: CallsPerMinute | None
    calls_per_second: CallsPerSecond | None


def argument(kind: Any) -> Callable[[str], Any]:
    """A type for argparse, which prints what is wrong with the flag's name. kind: an annotated type, as above."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def check(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as exc:
            [error] = exc.errors()
            raise argparse.ArgumentTypeError(str(error["ctx"]["error"])) from exc

    return check
