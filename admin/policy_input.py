"""A policy as the operator writes it: the JSON file, its pydantic model, and the file of a stored policy."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from admin.terminal import AdminError
from admin.workspace_input import matching
from shared.errors import RequestRefusedError
from shared.policies import (
    LARGEST_CAP,
    LONGEST_CAP_SECONDS,
    NAME,
    RECIPIENT,
    Cap,
    Policy,
    Window,
)
from shared.raw_json import members
from shared.request_model import ErrorMessage, RequestModel, validate
from shared.zones import known_zone

# The templates' names are those of their files.
TEMPLATES = Path(__file__).parents[1] / "infra" / "policies"

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MIDNIGHT = 24 * 60
MAXIMUM_WINDOWS = 14
MAXIMUM_HOLIDAYS = 400
MAXIMUM_CAPS = 10
# A phone rings for up to 60 s, and ringing must end inside the window.
SHORTEST_WINDOW_MINUTES = 2
SHORTEST_CAP_SECONDS = 60
# So that the workspace's item, which has up to 20 policies, stays below DynamoDB's 400 KB.
MAXIMUM_TEXT = 1000
MAXIMUM_FILE_BYTES = 256 * 1024

_DAYS_MESSAGE = 'must be days or ranges of days: ["mon", "thu-sat"] or "mon-fri"'
_time = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00", re.ASCII)


# ── the rules of single values ──────────────────────────────────────────────────────────────────────


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_request", message)


def _days(value: Any) -> frozenset[int]:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts:
        raise _wrong(_DAYS_MESSAGE)
    found: set[int] = set()
    for part in parts:
        ends = part.split("-") if isinstance(part, str) else []
        if not (1 <= len(ends) <= 2 and all(end in DAYS for end in ends)):
            raise _wrong(_DAYS_MESSAGE)
        first, last = DAYS.index(ends[0]), DAYS.index(ends[-1])
        found |= {(first + step) % 7 for step in range((last - first) % 7 + 1)}
    return frozenset(found)


def _minutes(value: Any) -> int:
    if not (isinstance(value, str) and _time.fullmatch(value)):
        raise _wrong("must be a time like 08:00")
    return int(value[:2]) * 60 + int(value[3:])


def _start(minutes: int) -> int:
    if minutes == MIDNIGHT:
        raise _wrong("must be a time from 00:00 to 23:59: 24:00 can only end a window")
    return minutes


def _end(minutes: int, info: ValidationInfo) -> int:
    """Midnight is 1440, however it is written. info.data has no start when that is wrong itself."""
    start = info.data.get("start")
    if minutes == start:
        raise _wrong("must not equal start: the whole day is 00:00 to 24:00")
    end = minutes or MIDNIGHT
    if start is not None and (end - start if end > start else end + MIDNIGHT - start) < SHORTEST_WINDOW_MINUTES:
        raise _wrong(
            f"must be at least {SHORTEST_WINDOW_MINUTES} minutes after start: ringing must end inside a window"
        )
    return end


def _date(value: Any) -> str:
    try:
        if not (isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value)):
            raise ValueError
        datetime.date.fromisoformat(value)
    except ValueError as exc:
        raise _wrong("must be a date that exists, like 2026-12-25") from exc
    return value


def _zone(value: Any) -> str:
    if not (isinstance(value, str) and (value == RECIPIENT or known_zone(value))):
        raise _wrong(f"must be {RECIPIENT} (the callee's zone) or an IANA zone like Europe/Berlin")
    return value


def _text(value: Any) -> str:
    if not (isinstance(value, str) and len(value) <= MAXIMUM_TEXT and value.isprintable()):
        raise _wrong(f"must be a string of at most {MAXIMUM_TEXT:,} printable characters, without line breaks")
    return value


def _at_most(number: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, list) and len(value) > number:
            raise _wrong(f"must have at most {number} entries")
        return value

    return BeforeValidator(check)


def _no_scope(name: str) -> str:
    if name == "all":
        raise ValueError("'all' is no policy's name: it is the scope of a suppression for every purpose")
    return name


PolicyName = Annotated[
    str,
    matching(NAME.pattern, "a policy's name: 1 to 64 of a-z, 0-9, _ and -, the first a letter"),
    AfterValidator(_no_scope),
]
Date = Annotated[str, BeforeValidator(_date)]
Text = Annotated[str, BeforeValidator(_text)]
Count = Annotated[
    int, Field(ge=1, le=LARGEST_CAP), ErrorMessage(f"must be a whole number from 1 to {LARGEST_CAP}")
]
CapSeconds = Annotated[
    int,
    Field(ge=SHORTEST_CAP_SECONDS, le=LONGEST_CAP_SECONDS),
    ErrorMessage(f"must be a whole number from {SHORTEST_CAP_SECONDS} to {LONGEST_CAP_SECONDS} (30 days)"),
]
# 0: none.
GapSeconds = Annotated[
    int,
    Field(ge=0, le=LONGEST_CAP_SECONDS),
    ErrorMessage(f"must be a whole number from 0 (no gap) to {LONGEST_CAP_SECONDS} (30 days)"),
]


class WindowInput(RequestModel, extra="forbid"):
    days: Annotated[frozenset[int], BeforeValidator(_days)]
    start: Annotated[int, BeforeValidator(_minutes), AfterValidator(_start)]
    end: Annotated[int, BeforeValidator(_minutes), AfterValidator(_end)]


class CapInput(RequestModel, extra="forbid"):
    count: Count
    seconds: CapSeconds


class PolicyInput(RequestModel, extra="forbid"):
    """The file. docs/policies.md describes its fields; what is absent restricts nothing."""

    description: Text = ""
    source: Text = ""
    checked_at: Date = ""
    zone: Annotated[str, BeforeValidator(_zone)] = RECIPIENT
    windows: Annotated[list[WindowInput], _at_most(MAXIMUM_WINDOWS)] = Field(default_factory=list)
    holidays: Annotated[list[Date], _at_most(MAXIMUM_HOLIDAYS)] = Field(default_factory=list)
    caps: Annotated[list[CapInput], _at_most(MAXIMUM_CAPS)] = Field(default_factory=list)
    min_gap_seconds: GapSeconds = 0
    consent_required: bool = False

    def policy(self, name: str, version: int) -> Policy:
        return Policy(
            name=name,
            version=version,
            windows=tuple(Window(window.days, window.start, window.end) for window in self.windows),
            zone=self.zone,
            holidays=frozenset(self.holidays),
            caps=tuple(Cap(cap.count, cap.seconds) for cap in self.caps),
            min_gap_seconds=self.min_gap_seconds,
            consent_required=self.consent_required,
            description=self.description,
            source=self.source,
            checked_at=self.checked_at,
        )


# ── files ───────────────────────────────────────────────────────────────────────────────────────────


def templates() -> list[str]:
    return sorted(path.stem for path in TEMPLATES.glob("*.json"))


def read(file_or_template: str) -> PolicyInput:
    """The policy in a template or a file. Raises AdminError with everything that is wrong with it."""
    if file_or_template in templates():
        return read_file(TEMPLATES / f"{file_or_template}.json")
    return read_file(Path(file_or_template))


def read_file(path: Path) -> PolicyInput:
    """Raises AdminError with everything that is wrong with the file."""
    try:
        with path.open("rb") as file:
            body = file.read(MAXIMUM_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        raise AdminError(f"there is no file {path}, and the templates are {', '.join(templates())}") from exc
    except (OSError, ValueError) as exc:
        raise AdminError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if len(body) > MAXIMUM_FILE_BYTES:
        raise AdminError(f"{path} is larger than {MAXIMUM_FILE_BYTES // 1024} KiB: it is no policy")
    return parsed(body, str(path))


def parsed(body: bytes, where: str) -> PolicyInput:
    """Raises AdminError with everything that is wrong with the JSON. where: it comes from."""
    try:
        fields = {name: value for name, (value, _) in members(body).items()}
    except RequestRefusedError as exc:
        raise AdminError(f"{where}: {exc.message.replace('The body is', 'it is', 1)}") from exc
    found, errors = validate(PolicyInput, fields, unknown="is not a field of a policy")
    if found is None:
        # A field's name comes from the file: on a terminal no control character of it may act.
        wrong = "; ".join(f"{ascii(error.field)[1:-1]} {error.message}" for error in errors)
        raise AdminError(f"{where}: {wrong}")
    return found


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────


def written(policy: Policy) -> dict[str, Any]:
    """The file of a policy: `PolicyInput` makes the same policy of it. Rules that restrict nothing are included:
    an editor shows what can be written.
    """
    texts = {"description": policy.description, "source": policy.source, "checked_at": policy.checked_at}
    return {name: text for name, text in texts.items() if text} | {
        "zone": policy.zone,
        "windows": [
            {"days": days_of(window), "start": time_of(window.start), "end": time_of(window.end)}
            for window in policy.windows
        ],
        "holidays": sorted(policy.holidays),
        "caps": [{"count": cap.count, "seconds": cap.seconds} for cap in policy.caps],
        "min_gap_seconds": policy.min_gap_seconds,
        "consent_required": policy.consent_required,
    }


def days_of(window: Window) -> str | list[str]:
    """A range when the days are one, else a list."""
    days = sorted(window.days)
    if len(days) > 1 and days == list(range(days[0], days[-1] + 1)):
        return f"{DAYS[days[0]]}-{DAYS[days[-1]]}"
    return [DAYS[day] for day in days]


def time_of(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
