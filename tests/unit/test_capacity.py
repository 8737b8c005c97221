"""The figures of docs/capacity.md follow from the counts and the prices, and DynamoDB's units from its rules."""

from __future__ import annotations

import copy
import re

import pytest

from bench import capacity, line_cost
from bench.units import index_units, read_units, size, write_units

KEYS = ("pk", "sk")
# LiveKit's own list (livekit/protocol, webhook/consts.go).
LIVEKIT_EVENTS = {
    *("room_started", "room_finished", "participant_joined", "participant_left", "participant_connection_aborted"),
    *("track_published", "track_unpublished", "egress_started", "egress_updated", "egress_ended"),
    *("ingress_started", "ingress_ended"),
}
DUE = {
    "KeySchema": [{"AttributeName": "dueShard"}, {"AttributeName": "checkAt"}],
    "Projection": {"ProjectionType": "KEYS_ONLY"},
}


def test_the_page_says_what_the_calculation_says() -> None:
    page = capacity.PAGE.read_text()
    assert capacity.with_computed(page, capacity.computed(*capacity.load())) == page, (
        "run `.venv/bin/python -m bench.capacity --write`"
    )


def test_a_call_that_waits_asks_as_much_more_of_aws_as_is_told() -> None:
    """Counted with few calls in the line; `python -m bench line.cost` shows that thousands change nothing."""
    assert line_cost.counts() == capacity.load()[0]["waiting"]


def test_waiting_costs_the_same_however_many_wait() -> None:
    few, more = (line_cost.traffic(waiting).spend(15) for waiting in (5, 60))
    assert (few.waiting, more.waiting) == (5, 60)
    assert few.requests() == pytest.approx(more.requests(), abs=0.2)
    assert few.write_units() == more.write_units()


def test_an_hour_in_the_line_costs_as_much_as_a_minute_but_for_storage() -> None:
    counts, table = capacity.load()
    total = sum(line.dollars for line in capacity.call_bill(counts, table, capacity.RARE))
    assert 0 < capacity.waiting_dollars(counts, table) < 0.1 * total
    assert 0 < capacity.hour_of_storage(counts, table, 1) < 0.001 * total
    assert capacity.hour_of_storage(counts, table, 1000) == pytest.approx(
        1000 * capacity.hour_of_storage(counts, table, 1)
    )


def test_a_changed_price_changes_the_page() -> None:
    counts, table = capacity.load()
    dearer = copy.deepcopy(table)
    dearer["price"]["write_unit"] *= 2
    assert capacity.computed(counts, dearer) != capacity.computed(counts, table)


def test_each_limit_gives_way_where_its_demand_meets_it() -> None:
    counts, table = capacity.load()
    found = {limit.name: limit for limit in capacity.limits(counts, table)}
    # 16 keys, 1,000 units a second each.
    assert found["due index"].rate == pytest.approx(16_000 / counts["write_units"]["due"])
    assert found["dial batches"].rate == pytest.approx(2000 / capacity.batch_seconds(table, 10))
    rates = [limit.rate for limit in capacity.limits(counts, table)]
    assert rates == sorted(rates)


def test_a_limit_that_is_reached_exactly_counts_as_reached() -> None:
    counts, table = capacity.load()
    table["quota"] = {"trunk": table["quota"]["trunk"] | {"limit": 100}}
    table["quota"]["dial-batches"] = capacity.load()[1]["quota"]["dial-batches"]
    rows = [row.split(" | ") for row in capacity.computed(counts, table).splitlines()]
    named = {row[0].removeprefix("| "): row[-1] for row in rows}
    assert "trunk" not in named["1"]
    assert "trunk" in named["100"]


def test_every_limit_says_where_it_comes_from() -> None:
    counts, table = capacity.load()
    assert all(limit.source for limit in capacity.limits(counts, table))


def bullet(begins: str) -> str:
    """Of the page's own text, the entry that begins so."""
    text = capacity.PAGE.read_text().partition(capacity.END)[2]
    return " ".join(text.split(f"- **{begins}", 1)[1].split("\n- **")[0].split())


def test_the_page_names_the_first_limits_in_their_order() -> None:
    first = capacity.limits(*capacity.load())[:7]
    words = {
        "livekit requests": "LiveKit's API",
        "workspace slots": "a workspace's concurrent calls",
        "dial batches": "`MaximumDialBatches`",
        "trunk": "a trunk's dials",
        "due index new": "a new table's index",
        "table new": "the table itself",
        "lambda concurrency": "Lambda's processes",
    }
    assert [limit.name for limit in first] == list(words)
    told = bullet("The first limits are not AWS's")
    places = [told.find(word) for word in words.values()]
    assert -1 not in places
    assert places == sorted(places)


def test_the_page_asks_for_the_events_that_are_read() -> None:
    """Any other may be left out at LiveKit; one of these that is lost takes a proof, or an exact time, with it."""
    source = (capacity.ROOT / "functions" / "livekit_events" / "apply_event.py").read_text()
    read = {word for word in re.findall(r'"(\w+)"', source) if word in LIVEKIT_EVENTS}
    told = bullet("LiveKit's events")
    assert read == set(re.findall(r"`(\w+)`", told))
    counts, _ = capacity.load()
    share = 100 * counts["invocations"]["livekit_events"] / sum(counts["invocations"].values())
    assert f"**LiveKit's events are {share:.0f} % of all invocations**" in capacity.PAGE.read_text()


def test_a_batch_lasts_as_long_as_its_slowest_phone() -> None:
    """Not as long as phones ring on average: of ten, one nearly always rings in vain."""
    table = {
        "assumed": {"dial_setup_seconds": 2},
        "outcome": [{"share": 0.75, "rings": [10, 10]}, {"share": 0.25, "rings": [40, 40]}],
    }
    for phones in (1, 2, 10):
        none = 0.75**phones
        assert capacity.batch_seconds(table, phones) == pytest.approx(none * 12 + (1 - none) * 42, abs=0.1)
    spread = {"assumed": {"dial_setup_seconds": 0}, "outcome": [{"share": 1, "rings": [0, 30]}]}
    # The mean, and the mean of the largest of nine, of what is as likely anywhere in 30 s.
    assert capacity.batch_seconds(spread, 1) == pytest.approx(15, abs=0.1)
    assert capacity.batch_seconds(spread, 9) == pytest.approx(27, abs=0.1)


def test_the_outcomes_of_dials_are_all_there_are() -> None:
    _, table = capacity.load()
    assert sum(outcome["share"] for outcome in table["outcome"]) == pytest.approx(1)
    assert 0 < capacity.talking(table) < 1


def test_phones_share_processes_only_when_messages_wait() -> None:
    _, table = capacity.load()
    table["quota"]["dial-batches"]["limit"] = 50
    alone, ten = capacity.batch_seconds(table, 1), capacity.batch_seconds(table, 10)
    assert capacity.dial_process_seconds(table, 1) == alone
    # All fifty are busy.
    assert capacity.dial_process_seconds(table, 10) == pytest.approx(5)
    assert capacity.dial_process_seconds(table, 1000) == pytest.approx(ten / 10)


def test_what_was_measured_sets_the_limits_of_reconciler_and_fan_out() -> None:
    _, table = capacity.load()
    table["measured"] = {"reconcile_row_ms": 4, "fan_out_record_ms": 2}
    found = capacity.measured_limits(table)
    # Four runs of a whole processor, each for 40 of its 55 s.
    assert found["reconciler"] == pytest.approx(4 * 40 * 250)
    # Four shards, ten batches each, on 512 of the 1,769 MB that are a processor.
    assert found["fan-out"] == pytest.approx(4 * 10 * 500 * 512 / 1769)


def test_an_items_size_counts_names_and_values() -> None:
    assert size({"pk": {"S": "abc"}}) == 2 + 3
    assert size({"n": {"N": "1234"}}) == 1 + 3
    assert size({"b": {"BOOL": True}}) == 1 + 1
    assert size({"ids": {"SS": ["ab", "c"]}}) == 3 + 3
    assert size({"l": {"L": [{"S": "ab"}]}}) == 1 + 3 + 1 + 2
    assert size({"m": {"M": {"k": {"S": "ab"}}}}) == 1 + 3 + 1 + 1 + 2
    assert size({"é": {"S": "é"}}) == 4


def test_a_write_costs_by_the_larger_of_before_and_after() -> None:
    small, large = {"pk": {"S": "x" * 100}}, {"pk": {"S": "x" * 1500}}
    assert (write_units(None, small), write_units(small, large), write_units(large, small)) == (1, 2, 2)


def test_a_read_costs_half_when_it_may_be_stale() -> None:
    assert read_units({"pk": {"S": "x" * 5000}}, consistent=True) == 2
    assert read_units({"pk": {"S": "x" * 5000}}, consistent=False) == 1
    assert read_units(None, consistent=True) == 1


def test_an_index_costs_a_put_a_move_or_nothing() -> None:
    item = {"pk": {"S": "p"}, "sk": {"S": "s"}, "dueShard": {"N": "1"}, "checkAt": {"N": "5"}}
    later = item | {"checkAt": {"N": "6"}}
    elsewhere = item | {"other": {"S": "x"}}
    gone = {"pk": {"S": "p"}, "sk": {"S": "s"}}
    assert index_units(DUE, KEYS, None, item) == 1
    assert index_units(DUE, KEYS, item, later) == 2
    assert index_units(DUE, KEYS, item, elsewhere) == 0
    assert index_units(DUE, KEYS, item, gone) == 1
    assert index_units(DUE, KEYS, None, gone) == 0
