"""How the production durations nest; tests/infra compares the template's numbers with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from shared.durations import END_BOUND, PATIENT, Durations
from shared.table_keys import RETENTION_SECONDS
from webhook_dispatch.deliver import DEATHS_FORGIVEN

D = Durations()
LONGEST_RING = 60


def test_livekits_answer_comes_within_its_own_limit() -> None:
    """LiveKit itself gives a waiting dial 80 s (livekit.md A2)."""
    assert LONGEST_RING + D.answer_margin <= 80


def test_a_message_without_a_record_outlives_every_request() -> None:
    assert D.orphan_read < D.orphan_step < D.orphan_drop


def test_what_is_left_of_the_published_bound_is_enough_for_the_last_look() -> None:
    """A look that was put off, the reconciler's minute, its run."""
    assert D.second_look + 60 + 55 <= END_BOUND - D.end_margin
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"at most {END_BOUND / 60:g} minutes after its `max_duration_seconds`" in readme


def test_a_call_that_is_kept_for_a_schedule_outlives_it() -> None:
    """Each wait as long as a receiver's Retry-After can make it, with a tenth more, and the deaths in between."""
    waits = len(D.webhook_schedule) * max(D.webhook_schedule) * 1.1
    deaths = len(D.webhook_schedule) * DEATHS_FORGIVEN * (D.webhook_lease + 120)
    assert waits + deaths < RETENTION_SECONDS - 86400


def test_two_looks_are_further_apart_than_livekit_needs_to_join_a_room() -> None:
    assert D.second_look >= 30
    assert D.second_look < D.live_check


def test_an_attempt_at_a_webhook_is_over_before_its_lease() -> None:
    assert D.webhook_connect < D.webhook_attempt < D.webhook_lease


def test_webhooks_are_retried_for_three_days() -> None:
    assert 3 * 86400 <= sum(D.webhook_schedule) <= 3.6 * 86400
    assert len(D.webhook_schedule) == 10


def test_every_duration_is_scaled_by_the_same_factor() -> None:
    scaled = D.scaled(0.5)
    for field in dataclasses.fields(D):
        full, half = getattr(D, field.name), getattr(scaled, field.name)
        if isinstance(full, tuple):
            assert half == tuple(value / 2 for value in full)
        else:
            assert half == full / 2


def test_the_factor_comes_from_the_environment_and_is_one_without_it() -> None:
    assert Durations.from_environment({}) == D
    assert Durations.from_environment({"TIME_SCALE": "0.05"}).scale == 0.05


def test_no_answer_is_waited_for_less_than_the_local_stack_says() -> None:
    scaled = Durations.from_environment({"TIME_SCALE": "0.05", "LEAST_PATIENCE": "4"})
    for field in dataclasses.fields(D):
        least = PATIENT.get(field.name, 0) * 4
        value = getattr(D.scaled(0.05), field.name)
        assert getattr(scaled, field.name) == (value if isinstance(value, tuple) else max(value, least))
    assert Durations.from_environment({"LEAST_PATIENCE": "4"}) == D


def test_an_operator_sets_how_long_a_call_may_wait() -> None:
    set_by_operator = Durations.from_environment({"QUEUE_TTL_SECONDS": "600", "TIME_SCALE": "0.05"})
    assert set_by_operator == dataclasses.replace(D, queue_ttl=600).scaled(0.05)
