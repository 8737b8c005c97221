"""Policies: the rules of a workspace under which its calls may ring. A call's `purpose` names one.

They are configuration of the operator's, never advice. Without a policy nothing restricts a call but suppression
(numbers.py). gates.py applies them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

# The policy of a call without a purpose.
DEFAULT = "default"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
MAXIMUM_POLICIES = 20

# The zone of a policy's windows that stands for the callee's.
RECIPIENT = "recipient"

# Rings of a number are kept for as long as the longest period of a cap, and one more than the largest cap counts:
# a call's own earlier ring does not (numbers.py).
LONGEST_CAP_SECONDS = 30 * 24 * 3600
LARGEST_CAP = 99


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Hours of some days of the week at which phones may ring, by the clock on the wall: from `start` until before
    `end`, minutes after midnight. An `end` of at most `start` is on the next day; 1440 is midnight.

    days: 0 is Monday. A window over midnight belongs to the day on which it starts.
    """

    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Window:
        return cls(frozenset(item["days"]), item["start"], item["end"])

    def to_item(self) -> dict[str, Any]:
        return {"days": sorted(self.days), "start": self.start, "end": self.end}


@dataclasses.dataclass(frozen=True, slots=True)
class Cap:
    """At most `count` rings of one number in any `seconds` (rolling)."""

    count: int
    seconds: int

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Cap:
        return cls(item["count"], item["seconds"])

    def to_item(self) -> dict[str, Any]:
        return {"count": self.count, "seconds": self.seconds}


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """version: incremented by each change. windows: no window means any time. zone: `recipient` or an IANA zone,
    in which windows and holidays are meant. holidays: dates (YYYY-MM-DD) on which nothing rings. caps and
    min_gap_seconds (between two rings): of one number, by all calls of the workspace, whatever their purpose.
    description, source and checked_at (YYYY-MM-DD: when the source was read) are for people.
    """

    name: str
    version: int = 1
    windows: tuple[Window, ...] = ()
    zone: str = RECIPIENT
    holidays: frozenset[str] = frozenset()
    caps: tuple[Cap, ...] = ()
    min_gap_seconds: int = 0
    consent_required: bool = False
    description: str = ""
    source: str = ""
    checked_at: str = ""

    @property
    def restricts_hours(self) -> bool:
        """Whether there is a time at which nothing rings (windows.py)."""
        return bool(self.windows or self.holidays)

    @property
    def periods_seconds(self) -> tuple[int, ...]:
        """For how long each of its rules counts a ring."""
        gap = (self.min_gap_seconds,) if self.min_gap_seconds else ()
        return (*(cap.seconds for cap in self.caps), *gap)

    @classmethod
    def from_item(cls, name: str, item: dict[str, Any]) -> Policy:
        """Raises KeyError or TypeError when the item is not a policy."""
        return cls(
            name=name,
            version=item["version"],
            windows=tuple(Window.from_item(window) for window in item.get("windows", ())),
            zone=item.get("zone", RECIPIENT),
            holidays=frozenset(item.get("holidays", ())),
            caps=tuple(Cap.from_item(cap) for cap in item.get("caps", ())),
            min_gap_seconds=item.get("minGapSeconds", 0),
            consent_required=item.get("consentRequired", False),
            description=item.get("description", ""),
            source=item.get("source", ""),
            checked_at=item.get("checkedAt", ""),
        )

    def to_item(self) -> dict[str, Any]:
        """What is stored below the policy's name: no name, and nothing that has its default."""
        item: dict[str, Any] = {
            "version": self.version,
            "windows": [window.to_item() for window in self.windows],
            "zone": self.zone,
            "holidays": sorted(self.holidays),
            "caps": [cap.to_item() for cap in self.caps],
            "minGapSeconds": self.min_gap_seconds,
            "consentRequired": self.consent_required,
            "description": self.description,
            "source": self.source,
            "checkedAt": self.checked_at,
        }
        return {name: value for name, value in item.items() if value}
