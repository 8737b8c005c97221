"""Phone numbers as people write them, and as E.164 (ITU-T E.164: a plus and at most 15 digits).

What is allowed, dialled, stored and looked up is one form of a number, `e164`. Behind its country code it has no
prefix that is dialled in front of a number: a carrier may strip such a prefix or obey it, and the call then
reaches another number than the one that was allowed.
"""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[ .()\-]")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


def e164(text: str) -> str:
    """The number without spaces, dots, dashes and parentheses, and without the trunk prefix that is dialled only
    within its country: `+49 (0) 30 12345678` is +493012345678. Italy's 0 is part of the number and stays.

    Raises ValueError, its message for a client.
    """
    number = _PUNCTUATION.sub("", text)
    if not _E164.fullmatch(number):
        raise ValueError("must be a phone number in E.164: +, then 7 to 15 digits, the first not 0")
    if not number.startswith("+1"):
        return _as_its_plan_has_it(number)
    if number[2] in "01":
        # 1 is the trunk prefix of this plan, 011 its international prefix.
        raise ValueError(
            "must not have a 0 or 1 after +1: no area code begins so, and carriers take it for a prefix"
        )
    return number


def _as_its_plan_has_it(number: str) -> str:
    """The number by its country's plan. One that is not in it stays as it is if it begins with no prefix: plans
    grow faster than what is published of them. Raises ValueError.
    """
    # Imported here: it takes longer than all the rest of a request, and +1 needs none of it.
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
    # Also where the plan lists such a number: +7 810 800... is dialled so for another country's toll-free number.
    international = plan.international_prefix and re.match(plan.international_prefix, national)
    if international:
        raise ValueError(f"must not have the international prefix {international.group()} after {code}")
    # `parse` has taken the trunk prefix away, if there was one.
    stripped = format_number(parsed, PhoneNumberFormat.E164)
    if stripped != number:
        return e164(stripped)
    trunk = plan.national_prefix or "0"
    if national.startswith(("0", trunk)) and not is_valid_number(parsed):
        # Where no trunk prefix is 0, a number may begin with one; the plan's shape of all its numbers says so.
        shape = plan.general_desc.national_number_pattern if plan.national_prefix != "0" else None
        if not re.fullmatch(shape or "", national):
            raise ValueError(
                f"must not have the prefix {trunk} after {code}: it is dialled within the country only"
            )
    return number
