"""Times in requests: RFC 3339 with a date, a time to the second and an offset."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.clock import to_ms

# Times that have just passed mean now: clocks differ, and requests take a moment.
PAST_MS = 60_000

_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
_RFC_3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:)([0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_LARGEST_OFFSET_MINUTES = 14 * 60


def rfc3339_ms(text: str) -> int:
    """The time in epoch milliseconds; digits of a second beyond that are dropped. Of the years 1970 to 9999 in
    UTC: `iso` can write no later one.

    Raises ValueError with a message for the client.
    """
    found = _RFC_3339.fullmatch(text)
    if found is None:
        raise ValueError(
            "must be a date and time with an offset, as in RFC 3339: 2026-11-24T09:30:00Z or "
            "2026-11-24T10:30:00+01:00"
        )
    date, minutes, seconds, fraction, offset = found.groups()
    if seconds == "60":
        raise ValueError("must not be a leap second: clocks of computers do not have them")
    if offset not in "Zz":
        hours, offset_minutes = int(offset[1:3]), int(offset[4:6])
        if offset_minutes > 59 or 60 * hours + offset_minutes > _LARGEST_OFFSET_MINUTES:
            raise ValueError("must have an offset of at most 14:00, as every zone has")
    try:
        whole = datetime.datetime.fromisoformat(
            f"{date}T{minutes}{seconds}{'+00:00' if offset in 'Zz' else offset}"
        )
    except ValueError:
        raise ValueError("must be a date and time that exists") from None
    try:
        ms = to_ms(whole.astimezone(datetime.UTC).timestamp())
    except OverflowError:
        ms = -1
    if ms < 0:
        raise ValueError("must be of the years 1970 to 9999 in UTC")
    return ms + int((fraction or "0").ljust(3, "0")[:3])


def _timestamp(text: str) -> str:
    try:
        rfc3339_ms(text)
    except ValueError as exc:
        raise PydanticCustomError("invalid_request", str(exc)) from exc
    return text


# The text as it was given; `rfc3339_ms` reads it.
Timestamp = Annotated[str, AfterValidator(_timestamp), WithJsonSchema({"type": "string", "pattern": _PATTERN})]
