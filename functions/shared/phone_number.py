"""Phone numbers as people write them, and as E.164 (ITU-T E.164: a plus and at most 15 digits).

Checks, dials, records and queries use the same form of a number, `e164`. After the country code it has no trunk or
international prefix: a carrier may strip or interpret one, and the call would reach another number than the one
that was checked.
"""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[ .()\-]")
E164 = re.compile(r"\+[1-9][0-9]{6,14}")
# Mobile numbers that are also written, and reached, without the digit after the country code. Source:
# libphonenumber's metadata of MX and AR.
_MOBILE_DIGITS = ((re.compile(r"\+521([0-9]{10})"), "+52"), (re.compile(r"\+549([0-9]{10})"), "+54"))


def e164(text: str) -> str:
    """The number without spaces, dots, dashes and parentheses, and without the trunk prefix that is dialled only
    within its country: `+49 (0) 30 12345678` is +493012345678. Italy's 0 is part of the number and is kept.

    Raises ValueError with a message for the client.
    """
    number = _PUNCTUATION.sub("", text)
    if not E164.fullmatch(number):
        raise ValueError("must be a phone number in E.164: +, then 7 to 15 digits, the first not 0")
    if not number.startswith("+1"):
        return _as_its_plan_has_it(number)
    if number[2] in "01":
        # 1 is the trunk prefix of this plan, 011 its international prefix.
        raise ValueError(
            "must not have a 0 or 1 after +1: no area code begins so, and carriers take it for a prefix"
        )
    return number


def canonical(number: str) -> str:
    """One spelling of an E.164 number that has two: a suppression of one must hold for the other."""
    for pattern, code in _MOBILE_DIGITS:
        if found := pattern.fullmatch(number):
            return code + found[1]
    return number


def _as_its_plan_has_it(number: str) -> str:
    """The number normalised by its country's plan. A number that is not in the plan is returned unchanged if it
    begins with no prefix: published plans lag behind. Raises ValueError.
    """
    # Imported here: the import takes longer than the rest of a request, and +1 does not need it.
    from phonenumbers import (
        NumberParseException,
        PhoneMetadata,
        PhoneNumberFormat,
        format_number,
        is_valid_number,
        parse,
        region_code_for_country_code,
    )

    try:
        parsed = parse(number)
    except NumberParseException:
        return number  # Of no plan.
    country = parsed.country_code or 0
    plan = PhoneMetadata.metadata_for_region_or_calling_code(country, region_code_for_country_code(country))
    if plan is None or plan.general_desc is None:
        return number
    code = f"+{country}"
    national = number[len(code) :]
    # Even if the plan lists such a number: +7 810 800... dials another country's toll-free number.
    international = plan.international_prefix and re.match(plan.international_prefix, national)
    if international:
        raise ValueError(f"must not have the international prefix {international.group()} after {code}")
    # `parse` has removed the trunk prefix, if there was one.
    stripped = format_number(parsed, PhoneNumberFormat.E164)
    if stripped != number:
        return e164(stripped)
    trunk = plan.national_prefix or "0"
    if national.startswith(("0", trunk)) and not is_valid_number(parsed):
        # If the trunk prefix is not 0, a number may begin with 0: the plan's general pattern decides.
        shape = plan.general_desc.national_number_pattern if plan.national_prefix != "0" else None
        if not re.fullmatch(shape or "", national):
            raise ValueError(
                f"must not have the prefix {trunk} after {code}: it is dialled within the country only"
            )
    return number
