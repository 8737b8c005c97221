"""Every number has one form, without a prefix after its country code."""

from __future__ import annotations

import re

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phonenumbers import PhoneMetadata, PhoneNumberFormat, PhoneNumberType

from shared.phone_number import e164

REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)
KINDS = [kind for kind in vars(PhoneNumberType).values() if isinstance(kind, int)]


def examples(region: str) -> list[str]:
    """A number of every kind that the region's plan has, in E.164, by libphonenumber."""
    found = (phonenumbers.example_number_for_type(region, kind) for kind in KINDS)
    written = [
        phonenumbers.format_number(number, PhoneNumberFormat.E164) for number in found if number is not None
    ]
    international = plan(region).international_prefix or "$"
    code = f"+{plan(region).country_code}"
    # A plan may list toll-free numbers of another country, with the prefix that leads there.
    return [text for text in written if len(text) > 7 and not re.match(international, text[len(code) :])]


def plan(region: str) -> PhoneMetadata:
    found = PhoneMetadata.metadata_for_region(region)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("spellings", "number"),
    [
        (("+1 (202) 555-0123", "+1.202.555.0123", "+12025550123"), "+12025550123"),
        (("+1234567890",), "+1234567890"),  # The contract's own example.
        (("+49 (0) 30 12345678", "+49(0)3012345678", "+49030 12345678", "+49 (030) 12345678"), "+493012345678"),
        (("+44 (0)20 7946 0000", "+4402079460000", "+44 0 20 7946 0000", "+44 20 7946 0000"), "+442079460000"),
        (("+44 (0)7700 900123", "+4407700900123"), "+447700900123"),  # Ofcom's for films: in no plan.
        (("+39 06 12345678", "+39 (0)6 12345678", "+390612345678"), "+390612345678"),
        (("+33 (0)1 23 45 67 89", "+330123456789"), "+33123456789"),
        (("+36 (06) 1 234 5678", "+36 1 234 5678"), "+3612345678"),
        (("+7 (8) 912 345-67-89", "+7 8 912 345-67-89"), "+79123456789"),
        (("+7 800 555-35-35", "+7 8 800 555-35-35"), "+78005553535"),
        (("+375 8 029 123-45-67", "+375 29 123-45-67"), "+375291234567"),
        (("+54 9 11 1234 5678", "+54 11 15 1234 5678"), "+5491112345678"),
        (("+225 07 12 34 56 78",), "+2250712345678"),
        (("+378 0549 123456",), "+3780549123456"),
        (("+9990123456",), "+9990123456"),  # Of no plan.
        (("+499999999999999",), "+499999999999999"),  # Not in its plan.
    ],
)
def test_every_spelling_is_the_same_number(spellings: tuple[str, ...], number: str) -> None:
    assert {e164(text) for text in spellings} == {number}


@pytest.mark.parametrize(
    "text",
    [
        "+1 1 900 555 0123",
        "+1 1 876 555 0123",
        "+1 (1) 202 555 0123",
        "+1 0 202 555 0123",
        "+1 (0) 202 555 0123",
        "+1 011 44 20 7946",
        "+1 00 44 20 7946 00",
        "+44 00 1 202 555 0123",
        "+44 (00) 1 202 555 012",
        "+49 00 1 202 555 0123",
        "+49 0 00 1 202 555 01",
        "+39 00 1 202 555 0123",
        "+45 00 44 20 7946 00",
        "+45 0 12 34 56 78",
        "+7 8 10 1 202 555 012",
        "+7 8 10 44 20 7946",
        "+61 0011 44 20 7946",
        "+65 001 44 20 7946",
        "+81 010 1 202 555 01",
        "+81 001 1 202 555 01",
        "+82 00700 44 20 794",
        "+225 00 44 20 7946",
        "+358 990 44 20 7946",
        "+685 0 44 20 7946",
        "+808 0 123 4567",
    ],
)
def test_a_number_that_a_prefix_would_lead_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^must not have (a 0 or 1 after \+1|the (international )?prefix \d+ after \+)"
    ):
        e164(text)


@pytest.mark.parametrize("region", REGIONS)
def test_of_every_plan_the_numbers_stay_and_the_trunk_prefix_goes(region: str) -> None:
    code, trunk = f"+{plan(region).country_code}", plan(region).national_prefix
    for number in examples(region):
        assert e164(number) == number
        if trunk is None or code == "+1":
            continue
        with_prefix = f"{code} ({trunk}) {number[len(code) :]}"
        if len(re.sub(r"\D", "", with_prefix)) > 15:
            continue
        try:
            told = e164(with_prefix)
        except ValueError as exc:
            # A few kinds are not dialled with it: 0 800 1111 may be another number.
            assert "prefix" in str(exc)  # noqa: PT017 - most are accepted
        else:
            assert told == number


@pytest.mark.parametrize("region", REGIONS)
def test_of_every_plan_the_international_prefix_is_refused(region: str) -> None:
    code, pattern = f"+{plan(region).country_code}", plan(region).international_prefix
    for prefix in ("00", "0", "010", "011", "001", "0011", "119", "810", "990", "000"):
        if pattern and re.fullmatch(pattern, prefix):
            for abroad in ("12025550123", "442079460000", "88161234567"):
                number = (code + prefix + abroad)[:16]
                with pytest.raises(ValueError, match="prefix"):
                    e164(number)


def rewritten(number: str) -> list[str]:
    """Numbers that a carrier may dial instead of a plan's, when it interprets a prefix after the country code."""
    parsed = phonenumbers.parse(number)
    assert parsed.country_code is not None
    region = phonenumbers.region_code_for_country_code(parsed.country_code)
    national = number[len(f"+{parsed.country_code}") :]
    found = PhoneMetadata.metadata_for_region(region)
    if found is None:
        return []
    abroad = [
        national[len(trunk) :] for trunk in ("00", found.national_prefix) if trunk and national.startswith(trunk)
    ]
    return [f"+{parsed.country_code}{rest}" for rest in abroad]


@given(
    st.sampled_from(sorted({code for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE})),
    st.from_regex(r"\A(0|00|8|06|810|011|1)?[0-9]{4,12}\Z"),
)
def test_a_number_that_is_taken_stays_as_it_is_and_means_one_number(code: int, national: str) -> None:
    try:
        number = e164(f"+{code}{national}")
    except ValueError:
        return
    assert e164(number) == number
    assert re.fullmatch(r"\+[1-9][0-9]{6,14}", number)
    assert number.startswith(f"+{code}")
    parsed = phonenumbers.parse(number)
    if not phonenumbers.is_valid_number(parsed):
        for other in rewritten(number):
            assert not phonenumbers.is_valid_number(phonenumbers.parse(other)), other
