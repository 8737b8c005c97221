"""Times in requests: RFC 3339 with a date and an offset."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.call import iso
from shared.timestamps import rfc3339_ms

NINE = 1_800_003_600_000  # 2027-01-15T09:00:00Z


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2027-01-15T09:00:00Z", NINE),
        ("2027-01-15t09:00:00z", NINE),
        ("2027-01-15T10:00:00+01:00", NINE),
        ("2027-01-15T03:30:00-05:30", NINE),
        ("2027-01-15T23:00:00+14:00", NINE),
        ("2027-01-14T19:00:00-14:00", NINE),
        ("2027-01-15T09:00:00-00:00", NINE),
        ("2027-01-15T09:00:00.1Z", NINE + 100),
        ("2027-01-15T09:00:00.12Z", NINE + 120),
        ("2027-01-15T09:00:00.123Z", NINE + 123),
        ("2027-01-15T09:00:00.123999999Z", NINE + 123),
        ("2028-02-29T00:00:00Z", 1_835_395_200_000),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_a_time(text: str, ms: int) -> None:
    assert rfc3339_ms(text) == ms
    # As floats are: to a millisecond in the year 9999.
    assert abs(rfc3339_ms(iso(ms)) - ms) <= 1


FORM = "must be a date and time with an offset"
EXISTS = "must be a date and time that exists"
YEARS = "must be of the years 1970 to 9999 in UTC"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", FORM),
        ("9999-12-31T23:59:59-01:00", YEARS),
        ("9999-12-31T23:59:59-14:00", YEARS),
        ("9999-12-31T23:59:00-00:01", YEARS),
        ("0001-01-01T00:00:00+14:00", YEARS),
        ("0001-01-01T00:00:00Z", YEARS),
        ("1969-12-31T23:59:59.500Z", YEARS),
        ("1970-01-01T00:59:59+01:00", YEARS),
        ("tomorrow", FORM),
        ("09:00:00Z", FORM),
        ("2027-01-15", FORM),
        ("2027-01-15T09:00:00", FORM),
        ("2027-01-15T09:00Z", FORM),
        ("2027-01-15 09:00:00Z", FORM),
        ("2027-01-15T09:00:00+0100", FORM),
        ("2027-01-15T09:00:00+01", FORM),
        ("2027-01-15T09:00:00 Z", FORM),
        ("2027-01-15T09:00:00.Z", FORM),
        ("2027-01-15T09:00:00.1234567890Z", FORM),
        ("2027-01-15T09:00:00,5Z", FORM),
        ("20270115T090000Z", FORM),
        ("2027-W02-5T09:00:00Z", FORM),
        ("1800003600", FORM),
        ("2027-01-15T09:00:00Z\n", FORM),
        (" 2027-01-15T09:00:00Z", FORM),
        ("٢٠٢٧-01-15T09:00:00Z", FORM),
        ("2027-01-15T09:00:00Z[Europe/Berlin]", FORM),
        ("2027-01-15T09:00:60Z", "leap second"),
        ("2016-12-31T23:59:60Z", "leap second"),
        ("2027-01-15T09:00:00+14:01", "offset of at most 14:00"),
        ("2027-01-15T09:00:00-15:00", "offset of at most 14:00"),
        ("2027-01-15T09:00:00+01:60", "offset of at most 14:00"),
        ("2027-01-15T09:00:00+99:99", "offset of at most 14:00"),
        ("2027-02-29T09:00:00Z", EXISTS),
        ("2027-13-01T09:00:00Z", EXISTS),
        ("2027-00-01T09:00:00Z", EXISTS),
        ("2027-01-15T24:00:00Z", EXISTS),
        ("2027-01-15T25:00:00Z", EXISTS),
        ("2027-01-15T09:61:00Z", EXISTS),
        ("2027-01-15T09:00:61Z", EXISTS),
        ("0000-01-01T00:00:00Z", EXISTS),
    ],
)
def test_what_is_no_time(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rfc3339_ms(text)


@given(
    moment=st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1)),
    offset=st.integers(-14 * 60, 14 * 60),
)
def test_every_time_is_read_as_the_instant_it_is(moment: datetime.datetime, offset: int) -> None:
    zone = datetime.timezone(datetime.timedelta(minutes=offset))
    there = moment.replace(tzinfo=datetime.UTC)
    exact = (there - datetime.datetime.fromtimestamp(0, datetime.UTC)) // datetime.timedelta(milliseconds=1)
    assert rfc3339_ms(there.astimezone(zone).isoformat(timespec="microseconds")) == exact
