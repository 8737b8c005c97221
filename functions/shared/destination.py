"""Where a number leads: into a country that a workspace may call, and whether to a line that costs more there."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Codes of no country whose every number is shared cost, satellite, personal or premium rate (ITU-T E.164, list of
# assigned codes): 808 shared cost, 870 Inmarsat, 878 personal numbers, 881 to 883 satellites and international
# networks, 979 premium rate.
_SPECIAL_CODES = ("+808", "+870", "+878", "+881", "+882", "+883", "+979")

# +1 is many countries. The area codes of those that are not the United States, their territories or Canada: with
# tariffs of their own, and a favourite of toll fraud.
_AREA_CODES_ABROAD = frozenset(
    {
        *("242", "246", "264", "268", "284", "345", "441", "473", "649", "658", "664", "721", "758", "767", "784"),
        *("809", "829", "849", "868", "869", "876"),
    }
)
_NORTH_AMERICAN_PREMIUM = re.compile(r"\+1(900|[2-9][0-9]{2}976)")

# Exchanges ignore digits that come after a whole number.
_SHORTEST = 7


def in_allowed_country(number: str, calling_codes: Iterable[str]) -> bool:
    """Whether an E.164 number begins with one of the codes. A bare `+1` is the United States and Canada only."""
    shortest = len("+1876") if number.startswith("+1") and number[2:5] in _AREA_CODES_ABROAD else len("+1")
    return any(len(code) >= shortest and number.startswith(code) for code in calling_codes)


def is_special(number: str) -> bool:
    """Whether an E.164 number is of a premium-rate or shared-cost type, or a satellite's."""
    if number.startswith(_SPECIAL_CODES):
        return True
    if number.startswith("+1"):
        return bool(_NORTH_AMERICAN_PREMIUM.match(number))
    # Imported here: it takes longer than all the rest of a request, and +1 needs none of it.
    from phonenumbers import NumberParseException, PhoneNumberType, number_type, parse

    # A number that the plan does not know may be one that it knows and some digits more.
    for end in range(len(number), _SHORTEST, -1):
        try:
            kind = number_type(parse(number[:end]))
        except NumberParseException:
            return False
        if kind != PhoneNumberType.UNKNOWN:
            return kind in (PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST)
    return False
