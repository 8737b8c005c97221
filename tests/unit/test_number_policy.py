"""Which numbers a workspace may call: the countries it names, and special numbers only if they are allowed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import phonenumbers
import pytest
from phonenumbers import PhoneMetadata, PhoneNumberType

from shared.number_policy import (
    _AREA_CODES_ABROAD,
    SPECIAL_AREA_CODES,
    SPECIAL_CODES,
    SPECIAL_TYPES,
    in_allowed_country,
    is_special,
)

HOME = {"US", "CA", "PR", "VI", "GU", "AS", "MP"}
REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)
FUNCTIONS = Path(__file__).parents[2] / "functions"
DOCS = Path(__file__).parents[2] / "docs"
SPECIAL = (
    PhoneNumberType.PREMIUM_RATE,
    PhoneNumberType.SHARED_COST,
    PhoneNumberType.PERSONAL_NUMBER,
    PhoneNumberType.PAGER,
)
KINDS = {kind: name for name, kind in vars(PhoneNumberType).items() if isinstance(kind, int)}


def example(region: str, kind: int) -> str | None:
    """A number of that kind in E.164, by libphonenumber."""
    number = phonenumbers.example_number_for_type(region, kind)
    return None if number is None else phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


# ── countries ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "codes", "allowed"),
    [
        ("+1234567890", {"+1"}, True),  # The contract's own example.
        ("+12025550123", {"+1"}, True),
        ("+14165550123", {"+1"}, True),
        ("+17875550123", {"+1"}, True),
        ("+15550000000", {"+1"}, True),
        ("+18765550123", {"+1"}, False),
        ("+18095550123", {"+1", "+44"}, False),
        ("+18765550123", {"+1876"}, True),
        ("+18765550123", {"+1", "+18765"}, True),
        ("+16585550123", {"+1876"}, False),
        ("+18765550123", {"+187"}, False),
        ("+12025550123", {"+1876"}, False),
        ("+12025550123", {"+1202"}, True),
        ("+442079460000", {"+44"}, True),
        ("+442079460000", {"+1"}, False),
        ("+442079460000", {"+442"}, True),
        ("+447700900123", {"+442"}, False),
        ("+12025550123", set(), False),
        ("+18765550123", set(), False),
    ],
)
def test_a_number_is_in_a_country_that_was_named(number: str, codes: set[str], allowed: bool) -> None:
    assert in_allowed_country(number, codes) is allowed


def test_the_area_codes_abroad_are_those_of_libphonenumber() -> None:
    abroad = set()
    for region in REGIONS:
        plan = PhoneMetadata.metadata_for_region(region)
        if plan is not None and plan.country_code == 1 and region not in HOME:
            assert plan.leading_digits, region
            codes = {str(code) for code in range(200, 1000) if re.match(plan.leading_digits, f"{code}2345678")}
            assert codes, region
            abroad |= codes
    assert abroad == _AREA_CODES_ABROAD


# ── special numbers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("region", REGIONS)
def test_of_every_country_the_special_kinds_are_special_and_no_other(region: str) -> None:
    for kind, name in KINDS.items():
        number = example(region, kind)
        if number is not None:
            assert is_special(number) is (kind in SPECIAL), (number, name)


@pytest.mark.parametrize(
    ("number", "special"),
    [
        ("+80812345678", True),
        ("+870773123456", True),
        ("+87810123456789", True),
        ("+881612345678", True),
        ("+8821612345678", True),
        ("+883510012345678", True),
        ("+979123456789", True),
        ("+80012345678", False),  # Free for the caller, everywhere.
        ("+88812345678901", False),
        ("+19005550123", True),
        ("+12129765550", True),
        ("+18769765550", True),
        ("+12129005550", False),
        ("+19765550123", False),
        ("+1234567890", False),
        ("+15550000000", False),
        ("+449098790123", True),
        ("+4409098790123", True),  # With the 0 that is dialled within the country.
        ("+448431234567", True),
        ("+447911123456", False),
        ("+442079460000", False),
        ("+447012345678", True),
        ("+447640123456", True),
        ("+443001234567", False),
        ("+33912345678", False),
        ("+15002345678", True),
        ("+15332345678", True),
        ("+12684061234", True),
        ("+9990123456", False),  # Of no plan.
    ],
)
def test_numbers_of_every_plan(number: str, special: bool) -> None:
    assert is_special(number) is special


def test_the_personal_area_codes_are_those_of_libphonenumber() -> None:
    personal = set()
    for region in ("US", "CA"):
        plan = PhoneMetadata.metadata_for_region(region)
        assert plan is not None
        assert plan.personal_number is not None
        pattern = re.compile(plan.personal_number.national_number_pattern or "")
        rests = [f"{exchange}{line}" for exchange in range(200, 1000) for line in ("1234", "9876", "0000")]
        personal |= {str(code) for code in range(200, 1000) if any(pattern.fullmatch(f"{code}{r}") for r in rests)}
    assert personal == {code for code, what in SPECIAL_AREA_CODES.items() if what == "personal numbers"}


def test_the_list_for_people_is_that_of_the_code() -> None:
    rows = re.findall(
        r"^\| (?:type )?`([+A-Z_0-9 ]+)` \| (.+) \|$", (DOCS / "operations.md").read_text(), re.MULTILINE
    )
    told = dict(rows)
    areas = {code: what for cell, what in rows for code in re.findall(r" (\d{3})\b", cell) if "NXX" not in cell}
    assert areas == SPECIAL_AREA_CODES
    assert {cell: what for cell, what in rows if " " not in cell} == SPECIAL_CODES | SPECIAL_TYPES
    assert told["+1 NXX 976"] == "premium rate"


@pytest.mark.parametrize("more", ["0", "12", "3456"])
def test_digits_that_an_exchange_would_ignore_hide_nothing(more: str) -> None:
    for region in ("GB", "FR", "CH", "PL", "US"):
        number = example(region, PhoneNumberType.PREMIUM_RATE)
        assert number is not None
        assert is_special((number + more)[:16]), number


def test_a_number_of_plus_one_loads_no_library() -> None:
    """It would take longer than all the rest of a request."""
    code = (
        "import sys, initiate_call.handler\n"
        "from shared.number_policy import is_special\n"
        "assert not is_special('+12025550123') and is_special('+19005550123') and is_special('+88161234567')\n"
        "assert 'phonenumbers' not in sys.modules\n"
        "assert not is_special('+442079460000')\n"
        "assert 'phonenumbers' in sys.modules\n"
    )
    names = {"CALLS_TABLE": "c", "WORKSPACES_TABLE": "w", "NUMBERS_TABLE": "n"}
    names |= {"DIAL_QUEUE_URL": "q", "AWS_DEFAULT_REGION": "us-east-1"}
    subprocess.run([sys.executable, "-c", code], cwd=FUNCTIONS, env=os.environ | names, check=True, timeout=60)
