"""Every interleaving of the bounded systems; and each condition taken away, to see that the promises rest on it.

`pytest tests/model -rP -k "looks twice"` prints how a promise is broken without that condition, a line a step.
"""

from __future__ import annotations

import re

import pytest

from tests.model.conditions import IN_FORCE, SWITCHES
from tests.model.explore import Explored, explore, explore_gates, explore_line, explore_two
from tests.model.gates import GatesConfig
from tests.model.line import LineConfig
from tests.model.state import Config
from tests.model.systems import (
    AGENTS_LATE,
    ANSWERED,
    COPIES_LINE,
    FENCES,
    LIARS,
    LIMIT,
    LINE_MESSAGES,
    LINE_OLD,
    LINE_STALE,
    LINES,
    NEEDED,
    NEEDED_OF_NUMBER,
    NUMBERS,
    ONE_CALL,
    OTHER_REASONS,
    RECONCILERS,
    SECOND_LINES,
    Breaks,
)

Report = list[tuple[str, ...]]


def explored(config: Config | LineConfig | GatesConfig) -> Explored:
    if isinstance(config, GatesConfig):
        return explore_gates(config)
    if isinstance(config, LineConfig):
        return explore_line(config)
    return explore_two(config) if config.name == LIMIT.name else explore(config)


@pytest.mark.parametrize("config", [*ONE_CALL, LIMIT, *LINES, *NUMBERS], ids=lambda config: config.name)
def test_no_order_of_events_breaks_a_promise(
    config: Config | LineConfig | GatesConfig, report_table: Report
) -> None:
    found = explored(config)
    report_table.append(("dialling protocol", config.name, f"{found.states:,} states", f"{found.seconds:.1f} s"))
    if found.promise:
        pytest.fail(found.told())
    for write in () if isinstance(config, LineConfig) else config.copied:
        executed = re.compile(rf"a late request \({write}\b.*is executed")
        assert any(map(executed.match, found.labels)), write


def test_every_write_is_executed_late_in_some_system() -> None:
    writes = {write.split(",")[0].removesuffix("_free") for write in IN_FORCE} | {"take_slot", "free_slot"}
    # Of a call that is no longer queued: whenever it is executed, it only removes the same entry.
    writes -= {"leave_line"}
    assert {write for config in ONE_CALL for write in config.copied} == writes


@pytest.mark.parametrize(("condition", "breaks"), NEEDED.items(), ids=NEEDED)
def test_without_a_condition_a_promise_is_broken(condition: str, breaks: Breaks) -> None:
    found = explored(breaks.config._replace(without=frozenset({condition})))
    print(found.told())
    assert found.promise == breaks.promise


@pytest.mark.parametrize(("condition", "breaks"), NEEDED_OF_NUMBER.items(), ids=NEEDED_OF_NUMBER)
def test_the_model_of_one_number_needs_the_calls_part_of_the_fence_too(condition: str, breaks: Breaks) -> None:
    found = explored(breaks.config._replace(without=frozenset({condition})))
    print(found.told())
    assert found.promise == breaks.promise


@pytest.mark.parametrize(("condition", "breaks"), SECOND_LINES.items(), ids=SECOND_LINES)
def test_a_second_line_holds_until_it_is_gone_too(condition: str, breaks: Breaks) -> None:
    too = frozenset(breaks.too.split(" + "))
    first_gone = explored(breaks.config._replace(without=too))
    if first_gone.promise:
        pytest.fail(first_gone.told())
    found = explored(breaks.config._replace(without=too | {condition}))
    print(found.told())
    assert found.promise == breaks.promise


@pytest.mark.parametrize(
    "config",
    [AGENTS_LATE, ANSWERED, LIARS, RECONCILERS, COPIES_LINE, LINE_MESSAGES, LINE_OLD, LINE_STALE, FENCES],
    ids=lambda config: config.name,
)
def test_what_has_other_reasons_breaks_no_promise(config: Config | LineConfig | GatesConfig) -> None:
    found = explored(config._replace(without=frozenset(OTHER_REASONS)))
    if found.promise:
        pytest.fail(found.told())


def test_every_condition_of_the_code_has_its_place() -> None:
    """One that is new in CallStore has none yet: what breaks without it?"""
    assert sorted(SWITCHES) == sorted([*NEEDED, *SECOND_LINES, *OTHER_REASONS])
