"""Time zones: the IANA names, the zone data, and which zones a phone number may be in.

The data is that of the package `tzdata` alone, never the system's: the receipt of a ring names its version
(`tz_version`), and Lambda's image may have no zone files. Packages are imported at their first need: only calls
under a policy that restricts hours need them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shared.phone_number import canonical
from shared.policies import RECIPIENT, Policy

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

# How the zones of a call were found: named by its policy, named by the call, or by the callee's number.
Source = Literal["policy", "time_zone", "number"]


def zones_for(policy: Policy, time_zone: str | None, number: str) -> tuple[tuple[str, ...], Source]:
    """The zones in which the policy's windows and holidays are meant, and how they were found. No zone when none
    is known, or when the data has none of this name (another version of it had).
    """
    if policy.zone != RECIPIENT:
        return _known((policy.zone,)), "policy"
    if time_zone is not None:
        return _known((time_zone,)), "time_zone"
    return zones_of(number), "number"


def zones_of(number: str) -> tuple[str, ...]:
    """All zones that an E.164 number may be in, sorted, by libphonenumber's table: those of its longest known
    prefix, or of its whole country code if the number tells no place, as most mobiles. Empty for a number of no
    country or in no numbering plan.

    The table gives a prefix the zone of most of its numbers, and lists those known to be elsewhere. A number that
    is not listed may be in any zone below its prefix: +1 850 is New York's, but for exchanges that are Chicago's.
    """
    from phonenumbers import (
        NumberParseException,
        PhoneNumberType,
        is_number_type_geographical,
        national_significant_number,
        number_type,
        parse,
    )
    from phonenumbers.tzdata import TIMEZONE_DATA

    try:
        parsed = parse(canonical(number))
    except NumberParseException:
        return ()
    kind = number_type(parsed)
    if kind == PhoneNumberType.UNKNOWN:
        return ()
    country_code = parsed.country_code or 0
    digits = str(country_code)
    if is_number_type_geographical(kind, country_code):
        digits += national_significant_number(parsed)
    prefixes = (digits[:length] for length in range(len(digits), 0, -1))
    prefix = next((prefix for prefix in prefixes if prefix in TIMEZONE_DATA), None)
    if prefix is None:
        return ()
    below = (zones for listed, zones in TIMEZONE_DATA.items() if listed.startswith(prefix))
    return _known(sorted({zone for zones in below for zone in zones}))


def known_zone(name: str) -> bool:
    """Whether this is the name of an IANA zone, spelled exactly so. `Factory` is none: it stands for "not set"."""
    return name in _names()


@functools.cache
def zone(name: str) -> ZoneInfo:
    """Raises ValueError when there is no such zone."""
    from zoneinfo import ZoneInfo

    if not known_zone(name):
        raise ValueError(f"no IANA time zone: {name!r}")
    with (_data() / "zoneinfo" / name).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def tz_version() -> str:
    """The IANA version of the zone data, such as 2026f."""
    import tzdata

    return str(tzdata.IANA_VERSION)


def _known(names: Sequence[str]) -> tuple[str, ...]:
    """The names if all of them are known, else none: with one unknown, no hour is open in all for sure."""
    return tuple(names) if all(map(known_zone, names)) else ()


@functools.cache
def _names() -> frozenset[str]:
    return frozenset((_data() / "zones").read_text().split()) - {"Factory"}


def _data() -> Path:
    import tzdata

    return Path(tzdata.__file__).parent
