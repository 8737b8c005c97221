"""What the templates in infra/policies/, and the example in docs/policies.md, let ring and what not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from admin import policy_input
from admin.policy_input import TEMPLATES, parsed, read, templates
from shared.durations import Durations
from shared.gates import Decision, decide
from shared.numbers import NumberRecord, Suppression
from shared.policies import LARGEST_CAP, LONGEST_CAP_SECONDS, MAXIMUM_POLICIES, RECIPIENT, Policy
from shared.workspaces import Workspace
from tests.calls import call_record

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")

NEW_YORK, LOS_ANGELES, PARIS, REUNION = "+12025550123", "+12135550123", "+33123456789", "+262262123456"
# Area code 850 of Florida: Pensacola is in Chicago's zone, Tallahassee in New York's.
FLORIDA = "+18505550123"
CONSENT = {"basis": "written"}
HOUR = 3_600_000
RING_MS = Durations().ring_ms(40)


def at(local: str, zone: str = "America/New_York") -> int:
    """Epoch ms of a wall clock's time."""
    return round(datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def local(at_ms: int | None, zone: str = "America/New_York") -> str | None:
    """The wall clock's time of an instant."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone)).strftime("%a %Y-%m-%d %H:%M:%S")


def asked(policy: Policy, at_ms: int, rings: Sequence[int] = (), **given: Any) -> Decision:
    """What the gates say at that time of a call to a number that rang at those times. given: fields of the call,
    and the number's `suppressions`.
    """
    suppressions = given.pop("suppressions", ())
    call = call_record(**{"to": NEW_YORK, "consent": CONSENT} | given)
    workspace = Workspace(
        *("demo", "Demo", "outbound", "ST_1", ("+12025550100",)),
        allowed_calling_codes=frozenset({"+1", "+33", "+262"}),
        policies={policy.name: policy},
    )
    by_call = {f"{number:024}": then for number, then in enumerate(rings, 1)}
    return decide(call, workspace, NumberRecord("demo", call.to, suppressions, by_call), at_ms, RING_MS)


def rings(decision: Decision) -> bool:
    assert decision.passed == (decision.failed is None)
    return decision.passed


def template(name: str) -> Policy:
    return read(name).policy("default", 1)


US = template("us-telemarketing")
CUSTOMERS = template("own-customers")
FRANCE = parsed(
    re.findall(r"^```json\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)[0].encode(), "docs/policies.md"
).policy("default", 1)


# ── the files ───────────────────────────────────────────────────────────────────────────────────────


def test_every_template_is_tested_and_documented() -> None:
    assert templates() == ["own-customers", "us-telemarketing"]
    assert {path.stem for path in TEMPLATES.iterdir()} == set(templates())
    for name in templates():
        assert f"| `{name}` |" in DOCUMENT


@pytest.mark.parametrize("policy", [US, CUSTOMERS, FRANCE], ids=["us-telemarketing", "own-customers", "france"])
def test_it_has_a_source_a_date_and_says_that_it_is_an_example(policy: Policy) -> None:
    assert policy.description.startswith("An example to be checked by counsel before use")
    assert policy.source
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", policy.checked_at)


def test_every_field_is_documented() -> None:
    described = set(re.findall(r"^\| `([a-z_A-Z.]+)` \|", DOCUMENT, re.MULTILINE))
    assert described >= set(json.loads((TEMPLATES / "us-telemarketing.json").read_text()))
    assert {"windows.N.days", "windows.N.start", "windows.N.end", "caps.N.count", "caps.N.seconds"} < described


def test_the_documented_limits_are_those_of_the_code() -> None:
    for field, limit in (
        ("windows", f"list of up to {policy_input.MAXIMUM_WINDOWS}"),
        ("holidays", f"list of up to {policy_input.MAXIMUM_HOLIDAYS} dates"),
        ("caps", f"list of up to {policy_input.MAXIMUM_CAPS}"),
        ("caps.N.count", f"1 to {LARGEST_CAP}"),
        ("caps.N.seconds", f"{policy_input.SHORTEST_CAP_SECONDS} to {LONGEST_CAP_SECONDS}"),
        ("min_gap_seconds", f"0 to {LONGEST_CAP_SECONDS}"),
        ("description", f"up to {policy_input.MAXIMUM_TEXT:,} characters"),
        ("source", f"up to {policy_input.MAXIMUM_TEXT:,} characters"),
    ):
        assert re.search(rf"^\| `{re.escape(field)}` \|[^|]*\b{re.escape(limit)}\b", DOCUMENT, re.MULTILINE), field
    assert f"at most {policy_input.MAXIMUM_FILE_BYTES // 1024} KiB" in DOCUMENT
    assert f"may have {MAXIMUM_POLICIES} policies" in DOCUMENT


# ── us-telemarketing: 8 to 21 in the callee's zone, three calls in 24 hours, with consent ───────────


@pytest.mark.parametrize(
    ("time", "zone", "to"),
    [
        ("2027-01-12T08:00:00", "America/New_York", NEW_YORK),
        ("2027-01-12T20:59:17", "America/New_York", NEW_YORK),
        ("2027-01-12T08:00:00", "America/Los_Angeles", LOS_ANGELES),
        ("2027-01-12T20:59:17", "America/Los_Angeles", LOS_ANGELES),
        # In summer the clock on the wall counts too.
        ("2027-07-13T08:00:00", "America/New_York", NEW_YORK),
        # Sundays and holidays are not left out.
        ("2027-01-10T12:00:00", "America/New_York", NEW_YORK),
        ("2026-12-25T12:00:00", "America/New_York", NEW_YORK),
        # Open in both zones of the area code.
        ("2027-01-12T09:00:00", "America/New_York", FLORIDA),
        ("2027-01-12T20:59:17", "America/New_York", FLORIDA),
    ],
)
def test_us_telemarketing_lets_ring_from_8_to_21_where_the_callee_is(time: str, zone: str, to: str) -> None:
    assert rings(asked(US, at(time, zone), to=to))


@pytest.mark.parametrize(
    ("time", "zone", "to", "opens"),
    [
        ("2027-01-12T07:59:59", "America/New_York", NEW_YORK, "Tue 2027-01-12 08:00:00"),
        # Ringing would not end before 21:00.
        ("2027-01-12T20:59:18", "America/New_York", NEW_YORK, "Wed 2027-01-13 08:00:00"),
        ("2027-01-12T21:00:00", "America/New_York", NEW_YORK, "Wed 2027-01-13 08:00:00"),
        ("2027-01-12T03:00:00", "America/New_York", NEW_YORK, "Tue 2027-01-12 08:00:00"),
        ("2027-07-13T07:59:59", "America/New_York", NEW_YORK, "Tue 2027-07-13 08:00:00"),
        # 10:59 in New York.
        ("2027-01-12T07:59:59", "America/Los_Angeles", LOS_ANGELES, "Tue 2027-01-12 08:00:00"),
        # Closed in one of the two zones: before 9 and after 21 in New York.
        ("2027-01-12T08:59:59", "America/New_York", FLORIDA, "Tue 2027-01-12 09:00:00"),
        ("2027-01-12T20:59:18", "America/New_York", FLORIDA, "Wed 2027-01-13 09:00:00"),
    ],
)
def test_us_telemarketing_lets_nothing_ring_at_other_hours(time: str, zone: str, to: str, opens: str) -> None:
    decision = asked(US, at(time, zone), to=to)
    assert (decision.refused, decision.waiting_for) == (None, "calling_window")
    assert local(decision.until_ms, zone) == opens


def test_us_telemarketing_believes_a_calls_time_zone() -> None:
    nine = at("2027-01-12T09:00:00")
    assert rings(asked(US, nine))
    moved = asked(US, nine, time_zone="America/Los_Angeles")
    assert (moved.waiting_for, local(moved.until_ms)) == ("calling_window", "Tue 2027-01-12 11:00:00")
    assert rings(asked(US, at("2027-01-12T08:00:00"), to=FLORIDA, time_zone="America/New_York"))


def test_us_telemarketing_lets_a_number_ring_three_times_in_24_hours() -> None:
    noon = at("2027-01-12T12:00:00")
    twice = (noon - 4 * HOUR, noon - HOUR)
    assert rings(asked(US, noon, twice))
    # However shortly after each other.
    assert rings(asked(US, noon, (noon - 2, noon - 1)))
    # A ring of a day ago does not count; a millisecond less, and it does.
    assert rings(asked(US, noon, (noon - 24 * HOUR, *twice)))
    fourth = asked(US, noon, (noon - 24 * HOUR + 1, *twice))
    assert (fourth.waiting_for, fourth.until_ms) == ("frequency", noon + 1)
    # Its own earlier dial does not count.
    assert rings(asked(US, noon, (noon - 3 * HOUR, *twice), call_id=f"{1:024}"))


def test_us_telemarketing_waits_for_the_cap_and_the_hours_together() -> None:
    evening = at("2027-01-12T20:00:00")
    # A day after the first of them it is 21:30: too late.
    first = at("2027-01-11T21:30:00")
    fourth = asked(US, evening, (first, first + HOUR, first + 2 * HOUR))
    assert fourth.waiting_for == "frequency"
    assert local(fourth.until_ms) == "Wed 2027-01-13 08:00:00"


def test_us_telemarketing_lets_nothing_ring_without_consent() -> None:
    decision = asked(US, at("2027-01-12T12:00:00"), consent=None)
    assert decision.refused == "not_allowed"
    assert decision.failed is not None
    assert decision.failed.name == "consent"


# ── own-customers: Monday to Saturday, 9 to 20, twice in 24 hours, 4 hours apart ────────────────────


@pytest.mark.parametrize(
    "time", ["2027-01-11T09:00:00", "2027-01-12T12:00:00", "2027-01-16T19:59:17", "2026-12-25T12:00:00"]
)
def test_own_customers_lets_ring_from_monday_to_saturday(time: str) -> None:
    assert rings(asked(CUSTOMERS, at(time)))
    assert rings(asked(CUSTOMERS, at(time, "Europe/Paris"), to=PARIS))


@pytest.mark.parametrize(
    ("time", "opens"),
    [
        ("2027-01-11T08:59:59", "Mon 2027-01-11 09:00:00"),
        ("2027-01-12T19:59:18", "Wed 2027-01-13 09:00:00"),
        ("2027-01-16T20:00:00", "Mon 2027-01-18 09:00:00"),
        ("2027-01-17T12:00:00", "Mon 2027-01-18 09:00:00"),
    ],
)
def test_own_customers_lets_nothing_ring_on_sundays_and_in_the_evening(time: str, opens: str) -> None:
    decision = asked(CUSTOMERS, at(time))
    assert (decision.waiting_for, local(decision.until_ms)) == ("calling_window", opens)


def test_own_customers_lets_a_number_ring_twice_in_24_hours_four_hours_apart() -> None:
    noon = at("2027-01-12T12:00:00")
    assert rings(asked(CUSTOMERS, noon, (noon - 4 * HOUR,)))
    soon = asked(CUSTOMERS, noon, (noon - 4 * HOUR + 1,))
    assert (soon.waiting_for, soon.until_ms) == ("frequency", noon + 1)
    yesterday = at("2027-01-11T18:00:00")
    third = asked(CUSTOMERS, noon, (yesterday, noon - 5 * HOUR))
    assert (third.waiting_for, local(third.until_ms)) == ("frequency", "Tue 2027-01-12 18:00:00")
    assert rings(asked(CUSTOMERS, noon, (noon - 24 * HOUR, noon - 5 * HOUR)))


def test_own_customers_asks_for_no_consent() -> None:
    assert rings(asked(CUSTOMERS, at("2027-01-12T12:00:00"), consent=None))


@pytest.mark.parametrize("policy", [US, CUSTOMERS], ids=["us-telemarketing", "own-customers"])
def test_no_template_lets_a_suppressed_number_ring(policy: Policy) -> None:
    noon = at("2027-01-12T12:00:00")
    assert rings(asked(policy, noon))
    opted_out = (Suppression("all", "opt_out", noon - HOUR),)
    assert asked(policy, noon, suppressions=opted_out).refused == "suppressed"


# ── the worked example: France ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("time", "zone", "to"),
    [
        ("2027-01-12T10:00:00", "Europe/Paris", PARIS),
        ("2027-01-12T12:59:17", "Europe/Paris", PARIS),
        ("2027-01-12T14:00:00", "Europe/Paris", PARIS),
        ("2027-01-12T19:59:17", "Europe/Paris", PARIS),
        ("2027-01-12T10:00:00", "Indian/Reunion", REUNION),
    ],
)
def test_france_lets_ring_on_weekdays_but_at_noon(time: str, zone: str, to: str) -> None:
    assert rings(asked(FRANCE, at(time, zone), to=to))


@pytest.mark.parametrize(
    ("time", "opens"),
    [
        ("2027-01-12T09:59:59", "Tue 2027-01-12 10:00:00"),
        ("2027-01-12T12:59:18", "Tue 2027-01-12 14:00:00"),
        ("2027-01-12T19:59:18", "Wed 2027-01-13 10:00:00"),
        ("2027-01-16T12:00:00", "Mon 2027-01-18 10:00:00"),
        # Bastille Day, a Wednesday; Easter Monday after Easter's weekend.
        ("2027-07-14T11:00:00", "Thu 2027-07-15 10:00:00"),
        ("2027-03-26T20:00:00", "Tue 2027-03-30 10:00:00"),
    ],
)
def test_france_lets_nothing_ring_at_noon_on_weekends_and_holidays(time: str, opens: str) -> None:
    decision = asked(FRANCE, at(time, "Europe/Paris"), to=PARIS)
    assert (decision.waiting_for, local(decision.until_ms, "Europe/Paris")) == ("calling_window", opens)


def test_france_lets_a_number_ring_four_times_in_thirty_days() -> None:
    now = at("2027-02-10T11:00:00", "Europe/Paris")
    earlier = tuple(now - days * 24 * HOUR for days in (20, 10, 1))
    assert rings(asked(FRANCE, now, earlier, to=PARIS))
    assert rings(asked(FRANCE, now, (now - 30 * 24 * HOUR, *earlier), to=PARIS))
    fifth = asked(FRANCE, now, (now - 30 * 24 * HOUR + 1, *earlier), to=PARIS)
    assert (fifth.waiting_for, fifth.until_ms) == ("frequency", now + 1)
    assert (FRANCE.zone, FRANCE.consent_required) == (RECIPIENT, True)
