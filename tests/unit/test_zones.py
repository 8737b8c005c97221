"""The zones of a number, and where their data is from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zoneinfo
from importlib.resources import files
from pathlib import Path

import phonenumbers
import pytest
from phonenumbers import PhoneNumberType
from phonenumbers.timezone import UNKNOWN_TIMEZONE, time_zones_for_number
from phonenumbers.tzdata import TIMEZONE_DATA

from shared.policies import Policy, Window
from shared.zones import known_zone, tz_version, zone, zones_for, zones_of

ROOT = Path(__file__).parents[2]
NOON = (Window(frozenset(range(7)), 720, 780),)


@pytest.mark.parametrize(
    ("number", "zones"),
    [
        ("+16025550123", ("America/Phoenix",)),
        ("+14155550100", ("America/Los_Angeles",)),
        ("+18084567890", ("Pacific/Honolulu",)),
        ("+16712345678", ("Pacific/Guam",)),
        # Area codes of two zones or more. Which one an exchange is in is listed for some.
        ("+17095550123", ("America/Halifax", "America/St_Johns")),
        ("+12085550123", ("America/Boise", "America/Denver", "America/Los_Angeles")),
        ("+18505550123", ("America/Chicago", "America/New_York")),
        ("+18502345678", ("America/Chicago",)),
        ("+61735550123", ("Australia/Brisbane",)),
        ("+493012345678", ("Europe/Berlin",)),
        ("+4915112345678", ("Europe/Berlin",)),
        # Mobiles without an area code: every zone of the country.
        ("+351912345678", ("Atlantic/Azores", "Europe/Lisbon")),
        ("+34612345678", ("Atlantic/Canary", "Europe/Madrid")),
        ("+525512345678", ("America/Mexico_City",)),
        ("+5215512345678", ("America/Mexico_City",)),
        ("+541112345678", ("America/Buenos_Aires",)),
        ("+5491112345678", ("America/Buenos_Aires",)),
        # Numbers of no country, of no plan, and no numbers.
        ("+80012345678", ()),
        ("+881612345678", ()),
        ("+870123456789", ()),
        ("+99912345678", ()),
        ("+447700900123", ()),
        ("+499999999999999", ()),
        ("+", ()),
        ("", ()),
    ],
)
def test_the_zones_of_a_number(number: str, zones: tuple[str, ...]) -> None:
    assert zones_of(number) == zones


def test_a_number_without_an_area_code_may_be_anywhere_in_its_country() -> None:
    australian = zones_of("+61412345678")
    assert {"Australia/Sydney", "Australia/Perth", "Australia/Adelaide", "Australia/Lord_Howe"} <= {*australian}
    toll_free = zones_of("+18002345678")
    assert {"America/New_York", "Pacific/Honolulu", "America/St_Johns", "Pacific/Guam"} <= {*toll_free}


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS))
def test_no_zone_of_libphonenumbers_own_answer_is_left_out(region: str) -> None:
    for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE, PhoneNumberType.TOLL_FREE):
        number = phonenumbers.example_number_for_type(region, kind)
        if number:
            own = {*time_zones_for_number(number)} - {UNKNOWN_TIMEZONE}
            assert own <= {*zones_of(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))}


def test_every_zone_of_libphonenumbers_table_is_known() -> None:
    assert all(known_zone(name) for names in TIMEZONE_DATA.values() for name in names)


@pytest.mark.parametrize(
    "name", ["Europe/Berlin", "America/Argentina/Buenos_Aires", "UTC", "Asia/Calcutta", "Etc/GMT+5"]
)
def test_names_of_zones(name: str) -> None:
    assert known_zone(name)
    assert zone(name).key == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "Factory", "europe/berlin", "EUROPE/BERLIN", "Europe/Berlin ", " Europe/Berlin", "Europe/Berlin\n"),
        *("Europe", "Europe/", "/Europe/Berlin", "Europe//Berlin", "./Europe/Berlin", "Europe/../Europe/Berlin"),
        *(
            "../zones",
            "posix/Europe/Berlin",
            "right/Europe/Berlin",
            "posixrules",
            "localtime",
            "local",
            "recipient",
        ),
        *(
            "zone.tab",
            "tzdata.zi",
            "leapseconds",
            "__init__.py",
            "Mars/Olympus",
            "EST5EDT4",
            "+01:00",
            "Europe\0Berlin",
        ),
    ],
)
def test_what_is_no_zone(name: str) -> None:
    assert not known_zone(name)
    with pytest.raises(ValueError, match="no IANA time zone"):
        zone(name)


def test_every_known_zone_has_data() -> None:
    names = (files("tzdata") / "zones").read_text().split()
    assert len(names) > 500
    assert {name for name in names if known_zone(name) and zone(name).key == name} == {*names} - {"Factory"}
    assert {name for name in zoneinfo.available_timezones() if known_zone(name)} <= {*names}


@pytest.mark.parametrize(
    ("zone_of_policy", "time_zone", "number", "expected"),
    [
        ("Europe/Berlin", "Asia/Tokyo", "+16025550123", (("Europe/Berlin",), "policy")),
        ("recipient", "Asia/Tokyo", "+16025550123", (("Asia/Tokyo",), "time_zone")),
        ("recipient", None, "+16025550123", (("America/Phoenix",), "number")),
        ("recipient", None, "+17095550123", (("America/Halifax", "America/St_Johns"), "number")),
        ("recipient", None, "+80012345678", ((), "number")),
        # What another version of the data knew: closed, rather than by the number.
        ("recipient", "Mars/Olympus", "+16025550123", ((), "time_zone")),
        ("Mars/Olympus", "Asia/Tokyo", "+16025550123", ((), "policy")),
    ],
)
def test_the_policys_zone_precedes_the_calls_and_that_the_numbers(
    zone_of_policy: str, time_zone: str | None, number: str, expected: tuple[tuple[str, ...], str]
) -> None:
    assert zones_for(Policy("calls", windows=NOON, zone=zone_of_policy), time_zone, number) == expected


def python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "functions"), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_data_is_never_the_systems(tmp_path: Path) -> None:
    """A machine whose own Berlin has Tokyo's time."""
    assert re.fullmatch(r"20[0-9]{2}[a-z]", tz_version())
    (tmp_path / "Europe").mkdir()
    shutil.copy(str(files("tzdata") / "zoneinfo" / "Asia" / "Tokyo"), tmp_path / "Europe" / "Berlin")
    told = "import datetime; print(datetime.datetime(2026, 11, 28, tzinfo={}).utcoffset())"
    own = python(
        "from zoneinfo import ZoneInfo\n" + told.format("ZoneInfo('Europe/Berlin')"), PYTHONTZPATH=str(tmp_path)
    )
    assert own == "9:00:00"
    ours = python(
        "from shared.zones import zone\n" + told.format("zone('Europe/Berlin')"), PYTHONTZPATH=str(tmp_path)
    )
    assert ours == "1:00:00"


def test_only_what_needs_zones_imports_them() -> None:
    code = """
import sys
from shared.policies import Policy
from shared.windows import next_open, open_until
from shared.zones import zones_for
assert open_until(Policy("any"), (), 0) and next_open(Policy("any"), (), 0, 1) == 0
print([name for name in ("zoneinfo", "tzdata", "phonenumbers") if name in sys.modules])
zones_for(Policy("any"), None, "+16025550123")
print([name for name in ("zoneinfo", "tzdata", "phonenumbers") if name in sys.modules])
"""
    before, after = python(code).splitlines()
    assert before == "[]"
    assert after == "['tzdata', 'phonenumbers']"
