"""The breaker of a trunk: faults in a row stop it, one call at a time tries it, a success ends the count."""

from __future__ import annotations

from typing import Any, cast

import pytest

from shared.limits import LimitStore
from shared.trunk import FAULTS_TO_STOP, Trunk
from tests.workspaces_table import TABLE, OneAtATime

NOW = 1_800_000_000_000
MINUTE = 60_000


@pytest.fixture
def limits(client: OneAtATime) -> LimitStore:
    return LimitStore(cast(Any, client), TABLE)


def fault(limits: LimitStore, call_id: str, now: int = NOW, text: str = "permission_denied 403") -> Trunk | None:
    return limits.note_trunk_fault("ST_1", call_id, text, MINUTE, 60 * MINUTE, now)


def stop(limits: LimitStore, now: int = NOW) -> Trunk:
    """Stops a trunk that has had no faults."""
    stopped = [fault(limits, call_id, now) for call_id in ("a", "b", "c")][-1]
    assert stopped is not None
    return stopped


# ── its state ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("trunk", "state"),
    [
        (Trunk("ST_1"), "in_use"),
        (Trunk("ST_1", faults=frozenset({"a", "b"})), "in_use"),
        # The times of a stop that is over are removed with it; without stops they say nothing.
        (Trunk("ST_1", stopped_until_ms=NOW + 1, probe_until_ms=NOW + 1), "in_use"),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW + 1), "stopped"),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW + 1, probe_until_ms=NOW + 9), "stopped"),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW), "to_probe"),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW - 5, probe_until_ms=NOW), "to_probe"),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW, probe_until_ms=NOW + 1), "probing"),
    ],
)
def test_the_state_of_a_trunk(trunk: Trunk, state: str) -> None:
    assert trunk.state(NOW) == state


@pytest.mark.parametrize(
    ("trunk", "faulty"),
    [
        (Trunk("ST_1"), False),
        (Trunk("ST_1", next_free_ms=NOW), False),
        (Trunk("ST_1", faults=frozenset({"a"})), True),
        (Trunk("ST_1", stops=1), True),
    ],
)
def test_a_trunk_with_faults_since_its_last_success(trunk: Trunk, faulty: bool) -> None:
    assert trunk.faulty is faulty


@pytest.mark.parametrize(
    ("trunk", "holds"),
    [
        (Trunk("ST_1"), False),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW + 1), True),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW), False),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW, probe_until_ms=NOW + 1, probe_call="other"), True),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW, probe_until_ms=NOW + 1, probe_call="mine"), False),
        (Trunk("ST_1", stops=1, stopped_until_ms=NOW, probe_until_ms=NOW, probe_call="other"), False),
    ],
)
def test_which_call_waits_for_a_trunk(trunk: Trunk, holds: bool) -> None:
    assert trunk.holds("mine", NOW) is holds


def test_the_stored_form() -> None:
    item = {
        "nextFreeAt": 1,
        "faults": {"a"},
        "stops": 2,
        "stoppedAt": 3,
        "stoppedUntil": 4,
        "probeUntil": 5,
        "probeCall": "b",
        "fault": "text",
    }
    assert Trunk.from_item("ST_1", item) == Trunk("ST_1", 1, frozenset({"a"}), 2, 3, 4, 5, "b", "text")
    assert Trunk.from_item("ST_1", None) == Trunk.from_item("ST_1", {"workspaceId": "x"}) == Trunk("ST_1")


# ── faults and stops ────────────────────────────────────────────────────────────────────────────────


def test_three_faults_stop_a_trunk_for_a_minute(limits: LimitStore) -> None:
    assert FAULTS_TO_STOP == 3
    assert [fault(limits, call_id) for call_id in ("a", "b")] == [None, None]
    assert limits.trunk("ST_1") == Trunk("ST_1", faults=frozenset({"a", "b"}))
    stopped = fault(limits, "c", NOW + 5)
    assert stopped == Trunk(
        "ST_1",
        faults=frozenset({"a", "b", "c"}),
        stops=1,
        stopped_at_ms=NOW + 5,
        stopped_until_ms=NOW + 5 + MINUTE,
        fault="permission_denied 403",
    )
    assert limits.trunk("ST_1") == stopped
    assert limits.trunk("ST_2") == Trunk("ST_2")


def test_a_call_counts_once_however_often_its_fault_is_noted(limits: LimitStore) -> None:
    assert [fault(limits, "a") for _ in range(5)] == [None] * 5
    assert fault(limits, "b") is None
    assert limits.trunk("ST_1").faults == {"a", "b"}


def test_late_faults_of_a_stopped_trunk_do_not_stop_it_again(limits: LimitStore) -> None:
    stopped = stop(limits)
    late = [fault(limits, call_id, stopped.stopped_until_ms - 1) for call_id in ("d", "e", "c")]
    assert late == [None] * 3
    assert limits.trunk("ST_1") == stopped


def test_each_stop_is_twice_as_long_up_to_an_hour(limits: LimitStore) -> None:
    minutes = []
    now = NOW
    stop(limits)
    for number in range(1, 10):
        trunk = limits.trunk("ST_1")
        assert trunk.stops == number
        minutes.append((trunk.stopped_until_ms - trunk.stopped_at_ms) // MINUTE)
        now = trunk.stopped_until_ms
        assert trunk.stopped_at_ms < now
        assert fault(limits, f"probe-{number}", now) is not None
    assert minutes == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_trunk_that_is_stopped_for_weeks_is_stopped_for_an_hour_each_time(limits: LimitStore) -> None:
    stop(limits)
    limits._table.update_item("trunk#ST_1", "SET stops = :stops", None, {":stops": 5_000})
    trunk = fault(limits, "d", NOW + MINUTE)
    assert trunk is not None
    assert (trunk.stops, trunk.stopped_until_ms) == (5_001, NOW + 61 * MINUTE)


def test_of_two_that_stop_a_trunk_one_has_stopped_it(
    limits: LimitStore, client: OneAtATime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read it with three faults and not stopped."""
    for call_id in ("a", "b"):
        fault(limits, call_id)
    read = LimitStore.trunk
    other: list[Trunk | None] = []

    def behind(store: LimitStore, trunk_id: str) -> Trunk:
        seen = read(store, trunk_id)
        monkeypatch.setattr(LimitStore, "trunk", read)
        other.append(fault(limits, "d", NOW + 1))
        return seen

    monkeypatch.setattr(LimitStore, "trunk", behind)
    assert fault(limits, "c", NOW + 9) is None
    assert other[0] is not None
    assert limits.trunk("ST_1") == other[0]
    assert (other[0].stops, other[0].stopped_at_ms) == (1, NOW + 1)


def test_a_long_text_of_a_fault_is_cut(limits: LimitStore) -> None:
    for call_id in ("a", "b", "c"):
        fault(limits, call_id, text="x" * 900)
    assert limits.trunk("ST_1").fault == "x" * 200


def test_a_stop_keeps_the_trunks_pace(limits: LimitStore) -> None:
    limits.reserve_trunk("ST_1", 500, NOW, NOW)
    stop(limits)
    assert limits.trunk("ST_1").next_free_ms == NOW + 500


# ── the call that tries it ──────────────────────────────────────────────────────────────────────────


def test_one_call_tries_a_trunk_whose_stop_is_over(limits: LimitStore) -> None:
    seen = stop(limits)
    now = seen.stopped_until_ms
    assert limits.claim_probe(seen, "p", now + 9_000, now)
    claimed = limits.trunk("ST_1")
    assert (claimed.probe_call, claimed.probe_until_ms) == ("p", now + 9_000)
    assert claimed.state(now + 8_999) == "probing"
    for reader in (seen, claimed):
        assert not limits.claim_probe(reader, "q", now + 90_000, now + 8_999)
    assert limits.claim_probe(seen, "p", now + 10_000, now + 1), "its own call may, and the SDK's second try"
    assert limits.trunk("ST_1").probe_until_ms == now + 10_000
    assert limits.claim_probe(seen, "q", now + 90_000, now + 10_000), "the process of the first is over"
    assert limits.trunk("ST_1").probe_call == "q"


def test_a_trunk_that_was_stopped_again_is_not_claimed_by_an_older_read(limits: LimitStore) -> None:
    seen = stop(limits)
    fault(limits, "d", seen.stopped_until_ms)
    assert not limits.claim_probe(seen, "p", NOW + 9 * MINUTE, NOW + 2 * MINUTE)
    assert limits.trunk("ST_1").probe_call == ""


def test_a_trunk_that_works_again_is_not_claimed(limits: LimitStore) -> None:
    seen = stop(limits)
    limits.reset_trunk("ST_1")
    assert not limits.claim_probe(seen, "p", NOW + 9 * MINUTE, NOW + 2 * MINUTE)
    assert limits.trunk("ST_1") == Trunk("ST_1")


def test_a_claim_ends_with_the_next_stop(limits: LimitStore) -> None:
    seen = stop(limits)
    now = seen.stopped_until_ms
    limits.claim_probe(seen, "p", now + 10 * MINUTE, now)
    trunk = fault(limits, "p", now + 1)
    assert trunk is not None
    assert (trunk.probe_call, trunk.probe_until_ms) == ("", 0)
    assert trunk.state(trunk.stopped_until_ms) == "to_probe"


# ── a success ───────────────────────────────────────────────────────────────────────────────────────


def test_a_success_forgets_the_faults(limits: LimitStore) -> None:
    fault(limits, "a")
    fault(limits, "b")
    assert limits.reset_trunk("ST_1")
    assert not limits.reset_trunk("ST_1")
    assert limits.trunk("ST_1") == Trunk("ST_1")
    assert [fault(limits, call_id) for call_id in ("c", "d")] == [None, None], "not in a row"


def test_a_success_ends_a_stop_and_the_next_one_is_a_minute_again(limits: LimitStore) -> None:
    limits.reserve_trunk("ST_1", 500, NOW, NOW)
    seen = stop(limits)
    fault(limits, "d", seen.stopped_until_ms)
    limits.claim_probe(limits.trunk("ST_1"), "p", NOW + 9 * MINUTE, NOW + 3 * MINUTE)
    assert limits.reset_trunk("ST_1")
    assert limits.trunk("ST_1") == Trunk("ST_1", next_free_ms=NOW + 500)
    assert stop(limits, NOW + 9 * MINUTE).stopped_until_ms == NOW + 10 * MINUTE


def test_a_trunk_without_faults_is_not_reset(limits: LimitStore) -> None:
    assert not limits.reset_trunk("ST_1")
    limits.reserve_trunk("ST_1", 500, NOW, NOW)
    assert not limits.reset_trunk("ST_1")
