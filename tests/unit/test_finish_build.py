"""What is cut from the artifact: nothing that a function reads."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from infra.finish_build import IMPORTED_LATER, remove_unused

FUNCTIONS = Path(__file__).parents[2] / "functions"
READS_ALL = """
import datetime
import importlib
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)

from shared import number_policy, phone_number, windows, zones
from shared.policies import Policy, Window

names = zones._names()
assert len(names) > 500
for name in names:
    datetime.datetime(2026, 11, 28, tzinfo=zones.zone(name)).utcoffset()
assert zones.tz_version() and zones.zones_of("+17095550123") == ("America/Halifax", "America/St_Johns")
assert phone_number.e164("+49 (0) 30 12345678") == "+493012345678"
assert number_policy.is_special("+449098790000")
noon = Policy("calls", windows=(Window(frozenset(range(7)), 720, 780),))
assert windows.next_open(noon, zones.zones_of("+61412345678"), 0, 1) is None
"""


def installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent


def test_numbers_and_zones_are_read_from_what_is_left(tmp_path: Path) -> None:
    for service in ("botocore", "boto3"):
        (tmp_path / service / "data").mkdir(parents=True)
    for package in (installed("phonenumbers"), installed("tzdata"), FUNCTIONS / "shared"):
        # Links: names of places alone are 19 MB.
        shutil.copytree(package, tmp_path / package.name, copy_function=os.symlink)
    remove_unused(tmp_path)
    left = {path.name for path in (tmp_path / "phonenumbers").iterdir()}
    assert {"tzdata", "timezone.py", "data"} <= left
    assert not left & {"geodata", "geocoder.py", "carrierdata", "carrier.py"}
    assert not (tmp_path / "tzdata" / "zoneinfo" / "tzdata.zi").exists()
    subprocess.run(
        [sys.executable, "-sSc", READS_ALL, *IMPORTED_LATER],
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )
