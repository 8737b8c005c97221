"""The figures of docs/capacity.md follow from the counts and the prices, and DynamoDB's units from its rules."""

from __future__ import annotations

import copy

import pytest

from bench import capacity
from bench.units import index_units, read_units, size, write_units

KEYS = ("pk", "sk")
DUE = {
    "KeySchema": [{"AttributeName": "dueShard"}, {"AttributeName": "checkAt"}],
    "Projection": {"ProjectionType": "KEYS_ONLY"},
}


def test_the_page_says_what_the_calculation_says() -> None:
    page = capacity.PAGE.read_text()
    assert capacity.with_computed(page, capacity.computed(*capacity.load())) == page, (
        "run `.venv/bin/python -m bench.capacity --write`"
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
    assert found["dial batches"].rate == pytest.approx(500 / table["assumed"]["dial_seconds"])
    rates = [limit.rate for limit in capacity.limits(counts, table)]
    assert rates == sorted(rates)


def test_ten_phones_in_a_process_share_its_time() -> None:
    counts, table = capacity.load()
    alone = table["assumed"]
    shared = alone | {"phones_per_process": 10}
    saved = capacity.gb_seconds(counts, alone) - capacity.gb_seconds(counts, shared)
    assert saved == pytest.approx(alone["memory_gb"] * alone["dial_seconds"] * 0.9)


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
