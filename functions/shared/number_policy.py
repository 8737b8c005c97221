"""Which numbers a workspace may call: allowed countries, and special numbers (premium rate, satellite, ...)."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A special number costs more than a call to its country, and often its holder gets a share.
# docs/operations.md documents the same list.

# Codes of no country; every number of them is special. Source: ITU-T E.164, list of assigned country codes.
SPECIAL_CODES = {
    "+808": "shared cost",
    "+870": "satellite: Inmarsat",
    "+878": "personal numbers",
    "+881": "satellite: Iridium, Globalstar",
    "+882": "international networks, satellites among them",
    "+883": "international networks",
    "+979": "premium rate",
}

# Types of numbers that are special in every country's plan. Source: libphonenumber, PhoneNumberType. Not special:
# VOIP, UAN (companies' numbers at a normal rate, as +44 3), TOLL_FREE, VOICEMAIL.
SPECIAL_TYPES = {
    "PREMIUM_RATE": "premium rate",
    "SHARED_COST": "shared cost",
    "PERSONAL_NUMBER": "personal numbers, forwarded to any other, as +44 70",
    "PAGER": "pagers: no voice, at a separate tariff",
}

# The special area codes of +1. Source: NANPA, 5XX and 9XX codes; 976 after any area code is premium rate too.
SPECIAL_AREA_CODES = {
    "900": "premium rate",
    **dict.fromkeys(("500", "521", "522", "523", "524", "525", "526", "527", "528", "529"), "personal numbers"),
    **dict.fromkeys(("532", "533", "544", "566", "577", "588", "622", "633"), "personal numbers"),
}
_NORTH_AMERICAN_PREMIUM = re.compile(r"\+1[2-9][0-9]{2}976")

# +1 is shared by many countries. The area codes of those other than the United States, their territories and
# Canada: they have separate tariffs and are common targets of toll fraud.
_AREA_CODES_ABROAD = frozenset(
    {
        *("242", "246", "264", "268", "284", "345", "441", "473", "649", "658", "664", "721", "758", "767", "784"),
        *("809", "829", "849", "868", "869", "876"),
    }
)

# Exchanges ignore digits after a complete number.
_SHORTEST = 7


def in_allowed_country(number: str, calling_codes: Iterable[str]) -> bool:
    """Whether an E.164 number begins with one of the codes. A bare `+1` is the United States and Canada only."""
    shortest = len("+1876") if number.startswith("+1") and number[2:5] in _AREA_CODES_ABROAD else len("+1")
    return any(len(code) >= shortest and number.startswith(code) for code in calling_codes)


def is_special(number: str) -> bool:
    """Whether an E.164 number has one of the special codes or types above."""
    if number.startswith(tuple(SPECIAL_CODES)):
        return True
    if number.startswith("+1"):
        if number[2:5] in SPECIAL_AREA_CODES or _NORTH_AMERICAN_PREMIUM.match(number):
            return True
        if number[2:5] not in _AREA_CODES_ABROAD:
            return False
    # Imported here: the import takes longer than the rest of a request, and the countries of a bare +1 do not need
    # it.
    from phonenumbers import NumberParseException, PhoneNumberType, number_type, parse

    special = {getattr(PhoneNumberType, name) for name in SPECIAL_TYPES}
    # A number unknown to the plan may be a known one with additional digits.
    for end in range(len(number), _SHORTEST, -1):
        try:
            kind = number_type(parse(number[:end]))
        except NumberParseException:
            return False
        if kind != PhoneNumberType.UNKNOWN:
            return kind in special
    return False
