"""What is stored of a number: suppressions, rings, and the marker that says that the table is complete."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from shared.dynamo import from_wire, to_wire
from shared.errors import StoreError, StoreUnclearError, TooManyScopesError
from shared.limits import LimitStore
from shared.numbers import (
    MARKER,
    MAXIMUM_SCOPES,
    NumberRecord,
    NumberStore,
    Suppression,
    ensure_marker,
    number_key,
    ring_write,
)
from shared.phone_number import canonical
from simulate.dynamodb_in_memory import DynamoDBInMemory
from tests.calls import NUMBERS
from tests.workspaces_table import TABLE, OneAtATime

NOW, DAY = 1_800_000_000_000, 86_400_000
KEPT_SECONDS = 31 * 86_400
TO = "+12025550123"
KEY = f"demo#{TO}"
ALL = Suppression("all", "asked", NOW, by={"call": "c1"})


class Store:
    """A table of numbers and what it contains. before, after: what happens around its next writes, in order."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.numbers = NumberStore(cast(Any, self), NUMBERS)
        self.limits = LimitStore(client, TABLE)
        self.before: list[Callable[[], Any]] = []
        self.after: list[Callable[[], Any]] = []
        self.requests: list[str] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def request(**arguments: Any) -> Any:
            self.requests.append(operation)
            if operation == "update_item" and self.before:
                self.before.pop(0)()
            answer = getattr(self.client, operation)(**arguments)
            if operation == "update_item" and self.after:
                self.after.pop(0)()
            return answer

        return request

    def item(self, key: str = KEY) -> dict[str, Any]:
        answer = self.client.get_item(TableName=NUMBERS, Key=to_wire({"id": key}), ConsistentRead=True)
        return from_wire(answer.get("Item", {}))

    def get(self) -> NumberRecord:
        return self.numbers.get("demo", TO)

    def suppress(self, scope: str = "all", until: int | None = None, now: int = NOW, **changes: Any) -> None:
        suppression = Suppression(scope, f"reason {scope}", now, until)
        self.numbers.suppress("demo", TO, dataclasses.replace(suppression, **changes), now)

    def ring(
        self, call_id: str, now: int = NOW, *, seen: NumberRecord | None = None, counted: bool = True
    ) -> bool:
        """Whether a fence's part about the number is made."""
        write = ring_write(NUMBERS, seen or self.get(), call_id, counted=counted, now_ms=now)
        try:
            self.client.transact_write_items(TransactItems=[write], ClientRequestToken=uuid.uuid4().hex)
        except ClientError as exc:
            if exc.response["Error"]["Code"] == "TransactionCanceledException":
                return False
            raise
        return True


@pytest.fixture
def store(client_of_module: OneAtATime, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for table, key in ((NUMBERS, "id"), (TABLE, "workspaceId")):
        while items := client_of_module.scan(TableName=table)["Items"]:
            for item in items:
                client_of_module.delete_item(TableName=table, Key={key: item[key]})
    return Store(client_of_module)


def other(store: Store) -> Store:
    """Another process, whose requests are not those of the test."""
    return Store(store.client)


# ── the number ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "one"),
    [
        ("+5215512345678", "+525512345678"),
        ("+525512345678", "+525512345678"),
        ("+5491123456789", "+541123456789"),
        ("+541123456789", "+541123456789"),
        ("+521551234567", "+521551234567"),
        ("+52155123456789", "+52155123456789"),
        ("+549112345678", "+549112345678"),
        ("+12025550123", "+12025550123"),
        ("+15215512345", "+15215512345"),
        ("+4915123456789", "+4915123456789"),
    ],
)
def test_a_number_has_one_spelling(number: str, one: str) -> None:
    assert canonical(number) == one == canonical(one)
    assert number_key("demo", number) == f"demo#{one}"


MEXICO, OTHER_SPELLING = "+525512345678", "+5215512345678"


@pytest.mark.parametrize(("written", "asked"), [(MEXICO, OTHER_SPELLING), (OTHER_SPELLING, MEXICO)])
def test_a_suppression_of_one_spelling_holds_for_the_other(store: Store, written: str, asked: str) -> None:
    store.numbers.suppress("demo", written, ALL, NOW)
    assert store.numbers.get("demo", asked).suppressions == (ALL,)
    assert list(store.numbers.get_many("demo", [asked])) == [MEXICO]
    assert store.numbers.get_many("demo", [asked])[MEXICO].suppressions == (ALL,)
    assert store.item(f"demo#{MEXICO}")["number"] == MEXICO


def test_a_ring_keeps_the_spelling_of_its_number(store: Store) -> None:
    """The fence has read the number as its call spells it."""
    store.numbers.suppress("demo", MEXICO, ALL, NOW)
    record = dataclasses.replace(store.numbers.get("demo", MEXICO), number=OTHER_SPELLING)
    assert store.ring("c1", seen=record)
    assert store.item(f"demo#{MEXICO}")["number"] == MEXICO
    assert store.numbers.get_many("demo", [OTHER_SPELLING])[MEXICO].rings == {"c1": NOW}
    assert [found.number for found in store.numbers.suppressed("demo", 9)[0]] == [MEXICO]


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_known_of_a_number(store: Store) -> None:
    assert store.get() == NumberRecord("demo", TO, (), {}, None)


def test_a_record_is_what_was_written(store: Store) -> None:
    store.suppress("sales", NOW + 5, by={"key": "k1", "label": "crm"})
    store.suppress()
    assert store.ring("c1")
    record = store.get()
    assert record.suppressions == (
        Suppression("all", "reason all", NOW),
        Suppression("sales", "reason sales", NOW, NOW + 5, {"key": "k1", "label": "crm"}),
    )
    assert record.rings == {"c1": NOW}
    assert record.version


@pytest.mark.parametrize(
    "item",
    [
        {"suppressed": {"all": {"at": NOW}}},
        {"suppressed": {"all": {"reason": "x"}}},
        {"suppressed": {"all": None}},
        {"suppressed": {"all": "since yesterday"}},
        {"suppressed": {"all": [1]}},
        {"suppressed": ["all"]},
        {"suppressed": "all"},
        {"suppressed": 1},
        {"suppressed": None},
        {"rings": [1]},
        {"rings": "c1"},
        {"rings": 5},
        {"rings": None},
    ],
)
def test_a_record_that_cannot_be_read_lets_nothing_ring(item: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        NumberRecord.from_item("demo", TO, {"id": KEY, "version": "v"} | item)


@pytest.mark.parametrize(
    "item",
    [
        {"suppressed": {"all": {"reason": "x", "at": "2027-01-01"}}},
        {"suppressed": {"all": {"reason": "x", "at": NOW, "until": "2027-01-01"}}},
        {"rings": {"c1": "2027-01-01"}},
        {"rings": {"c1": None}},
    ],
)
def test_values_of_another_type_let_nothing_ring(item: dict[str, Any]) -> None:
    """They would fail where they are compared, in the middle of a dial."""
    with pytest.raises(StoreError, match="cannot be read"):
        NumberRecord.from_item("demo", TO, {"id": KEY, "version": "v"} | item)


# ── suppressions ────────────────────────────────────────────────────────────────────────────────────


def test_one_of_the_same_scope_is_replaced(store: Store) -> None:
    store.suppress(until=NOW + DAY)
    first = store.get().version
    store.suppress(reason="again")
    [found] = store.get().suppressions
    assert (found.reason, found.until_ms) == ("again", None)
    assert store.get().version not in (None, first)


def test_scopes_are_released_one_by_one_or_all_together(store: Store) -> None:
    for scope in ("sales", "care", "all"):
        store.suppress(scope)
    before, after = store.numbers.release("demo", TO, "sales", NOW)
    assert [found.scope for found in before.suppressions] == ["all", "care", "sales"]
    assert [found.scope for found in after.suppressions] == ["all", "care"]
    assert after.suppressions == store.get().suppressions
    before, after = store.numbers.release("demo", TO, None, NOW)
    assert (len(before.suppressions), after.suppressions, store.get().suppressions) == (2, (), ())
    assert "suppressedIn" not in store.item()


@pytest.mark.parametrize("scope", ["sales", None])
def test_releasing_what_is_not_suppressed_writes_nothing(store: Store, scope: str | None) -> None:
    before, after = store.numbers.release("demo", TO, scope, NOW)
    assert before == after
    assert (store.item(), store.requests) == ({}, ["get_item"])


def test_a_number_has_suppressions_of_twenty_scopes_and_of_all(store: Store) -> None:
    for n in range(MAXIMUM_SCOPES):
        store.suppress(f"p{n}")
    with pytest.raises(TooManyScopesError, match="at most 20 scopes"):
        store.suppress("one-more")
    store.suppress("p3", reason="changed")
    store.suppress("all")
    store.suppress("all", reason="changed")
    store.suppress("p3", reason="changed again")
    assert len(store.get().suppressions) == MAXIMUM_SCOPES + 1
    assert MAXIMUM_SCOPES == 20


def test_a_suppression_keeps_the_rings_and_a_ring_the_suppressions(store: Store) -> None:
    assert store.ring("c1")
    store.suppress()
    assert store.ring("c2", NOW + 1)
    store.suppress("sales")
    record = store.get()
    assert record.rings == {"c1": NOW, "c2": NOW + 1}
    assert [found.scope for found in record.suppressions] == ["all", "sales"]


@pytest.mark.parametrize("known", [True, False])
def test_what_another_process_writes_meanwhile_is_kept(store: Store, known: bool) -> None:
    if known:
        store.suppress("care")
    store.before = [lambda: other(store).suppress("sales"), lambda: other(store).ring("c1")]
    store.suppress()
    record = store.get()
    assert [found.scope for found in record.suppressions] == ["all", *(["care"] if known else []), "sales"]
    assert record.rings == {"c1": NOW}
    assert store.requests.count("update_item") == 3 + known


def test_a_number_that_others_change_without_end_is_an_error(store: Store) -> None:
    store.before = [lambda n=n: other(store).ring(f"c{n}") for n in range(99)]  # type: ignore[misc]
    with pytest.raises(StoreError, match="again and again"):
        store.suppress()
    assert store.get().suppressions == ()


def lost() -> None:
    raise StoreUnclearError("no answer")


@pytest.mark.parametrize("executed", [True, False])
def test_an_answer_that_is_lost_is_found_out_by_a_read(store: Store, executed: bool) -> None:
    if executed:
        store.after = [lost]
    else:
        store.before = [lost]
    store.suppress()
    assert [found.scope for found in store.get().suppressions] == ["all"]
    store.after, store.before = ([lost], []) if executed else ([], [lost])
    before, after = store.numbers.release("demo", TO, None, NOW)
    assert ([found.scope for found in before.suppressions], after.suppressions) == (["all"], ())
    assert store.get().suppressions == ()


def test_what_dynamodb_refuses_is_an_error(store: Store) -> None:
    def refused() -> None:
        answer: Any = {"Error": {"Code": "ValidationException"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise ClientError(answer, "UpdateItem")

    store.before = [refused]
    with pytest.raises(StoreError, match="ValidationException"):
        store.suppress()


def test_many_processes_suppress_at_once(store: Store) -> None:
    """Each in its own thread: none is lost."""
    stores = [other(store) for _ in range(4)]
    threads = [threading.Thread(target=store.suppress, args=(f"p{n}",)) for n, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.scope for found in stores[0].get().suppressions] == ["p0", "p1", "p2", "p3"]


def test_those_that_are_suppressed_are_listed_page_by_page(store: Store) -> None:
    numbers = [f"+1202555010{n}" for n in range(5)]
    for number in numbers:
        store.numbers.suppress("demo", number, ALL, NOW)
    store.numbers.suppress("other", TO, ALL, NOW)
    store.numbers.release("demo", numbers[3], None, NOW)
    assert store.ring("c1")
    left = [number for number in numbers if number != numbers[3]]
    first, after = store.numbers.suppressed("demo", 3)
    assert [found.number for found in first] == left[:3]
    assert all(found.suppressions == (ALL,) for found in first)
    assert after == left[2]
    rest, end = store.numbers.suppressed("demo", 3, after)
    assert ([found.number for found in rest], end) == (left[3:], None)


# ── how long it is kept ─────────────────────────────────────────────────────────────────────────────


def test_a_suppression_without_an_end_keeps_the_record_for_ever(store: Store) -> None:
    store.suppress("sales", NOW + 5)
    assert store.item()["expiresAt"] == (NOW + 5) // 1000 + KEPT_SECONDS
    store.suppress()
    assert "expiresAt" not in store.item()
    # A ring does not give it an end.
    assert store.ring("c1")
    assert "expiresAt" not in store.item()
    store.numbers.release("demo", TO, "all", NOW)
    assert store.item()["expiresAt"] == (NOW + 5) // 1000 + KEPT_SECONDS


@pytest.mark.parametrize("until", [NOW + 1_000, NOW + 400 * DAY])
def test_a_record_outlives_what_counts_last(store: Store, until: int) -> None:
    """A suppression with an early end must not take the rings away with it."""
    assert store.ring("c1", NOW)
    assert store.item()["expiresAt"] == NOW // 1000 + KEPT_SECONDS
    store.suppress("sales", until)
    assert store.item()["expiresAt"] == max(NOW, until) // 1000 + KEPT_SECONDS
    assert store.ring("c2", NOW + DAY)
    assert store.item()["expiresAt"] == max(NOW + DAY, until) // 1000 + KEPT_SECONDS
    store.numbers.release("demo", TO, None, NOW + DAY)
    assert store.item()["expiresAt"] == (NOW + DAY) // 1000 + KEPT_SECONDS
    assert set(store.get().rings) == {"c1", "c2"}


@given(
    ends=st.lists(st.one_of(st.none(), st.integers(NOW - DAY, NOW + 400 * DAY)), max_size=4),
    late=st.integers(0, 40 * DAY),
)
def test_what_holds_is_never_expired(ends: list[int | None], late: int) -> None:
    store = Store(DynamoDBInMemory())
    for n, end in enumerate(ends):
        store.suppress(f"p{n}", end)
    assert store.ring("c1", NOW + late)
    expires = store.item().get("expiresAt")
    if None in ends:
        assert expires is None
    else:
        assert expires is not None
        counts = max(NOW + late + 30 * DAY, *(end for end in ends if end is not None), 0)
        assert counts < expires * 1000 <= counts + 32 * DAY


# ── rings ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_ring_is_stored_with_its_time(store: Store) -> None:
    assert store.ring("c1")
    item = store.item()
    assert item.pop("version")
    assert item == {
        "id": KEY,
        "workspaceId": "demo",
        "number": TO,
        "rings": {"c1": NOW},
        "expiresAt": NOW // 1000 + KEPT_SECONDS,
    }
    assert store.ring("c1", NOW + 5)
    assert store.get().rings == {"c1": NOW + 5}, "its own is replaced"


def test_without_rules_on_frequency_nothing_is_stored(store: Store) -> None:
    assert store.ring("c1", counted=False)
    assert store.item() == {}
    store.suppress("sales")
    before = store.item()
    assert store.ring("c2", counted=False)
    assert store.item() == before


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_number_that_has_changed_since_lets_nothing_ring(store: Store, known: bool, counted: bool) -> None:
    if known:
        store.suppress("care")
    seen = store.get()
    store.suppress()
    assert not store.ring("c1", seen=seen, counted=counted)
    assert store.get().rings == {}
    store.numbers.release("demo", TO, "all", NOW)
    assert not store.ring("c1", seen=seen, counted=counted), "what it has read is not there any more"
    assert store.ring("c1", counted=counted)


def test_a_hundred_rings_are_kept_the_latest(store: Store) -> None:
    record = NumberRecord("demo", TO, rings={f"c{n}": NOW + n for n in range(150)})
    assert store.ring("new", NOW + 150, seen=record)
    assert store.get().rings == {f"c{n}": NOW + n for n in range(51, 150)} | {"new": NOW + 150}
    assert len(store.get().rings) == 100


def test_rings_are_kept_for_the_longest_period_of_a_cap(store: Store) -> None:
    record = NumberRecord("demo", TO, rings={"old": NOW - 30 * DAY, "counts": NOW - 30 * DAY + 1})
    assert store.ring("new", seen=record)
    assert set(store.get().rings) == {"counts", "new"}


@pytest.mark.parametrize(
    ("call_id", "at", "left"),
    [("c1", NOW, {"c2"}), ("c1", NOW + 1, {"c1", "c2"}), ("c3", NOW, {"c1", "c2"}), ("c2", NOW, {"c1", "c2"})],
)
def test_only_the_very_ring_that_did_not_happen_is_forgotten(
    store: Store, call_id: str, at: int, left: set[str]
) -> None:
    store.suppress()
    assert store.ring("c1")
    assert store.ring("c2", NOW + 5)
    before = store.get()
    store.numbers.forget_ring("demo", TO, call_id, at)
    after = store.get()
    assert set(after.rings) == left
    assert after.suppressions == before.suppressions
    assert (after.version == before.version) is (after.rings == before.rings), "others decide anew"


def test_there_is_no_ring_to_forget(store: Store) -> None:
    store.numbers.forget_ring("demo", TO, "c1", NOW)
    assert store.item() == {}
    store.suppress()
    before = store.item()
    store.numbers.forget_ring("demo", TO, "c1", NOW)
    assert store.item() == before


def test_a_ring_that_may_not_be_forgotten_is_an_error(store: Store) -> None:
    assert store.ring("c1")
    store.before = [lost]
    with pytest.raises(StoreUnclearError):
        store.numbers.forget_ring("demo", TO, "c1", NOW)


# ── the marker ──────────────────────────────────────────────────────────────────────────────────────


def test_the_marker_is_written_once_in_a_deployments_life(store: Store) -> None:
    assert not store.numbers.marked()
    assert ensure_marker(store.limits, store.numbers, NOW)
    assert (store.numbers.marked(), store.limits.numbers_noted()) == (True, True)
    assert ensure_marker(store.limits, store.numbers, NOW + 5)
    assert store.item(MARKER)["since"] == NOW
    # The table is lost.
    store.client.delete_item(TableName=NUMBERS, Key={"id": {"S": MARKER}})
    for _ in range(2):
        assert not ensure_marker(store.limits, store.numbers, NOW + 9)
        assert not store.numbers.marked()
    # An operator has restored it.
    store.numbers.mark(NOW + 10)
    assert ensure_marker(store.limits, store.numbers, NOW + 11)


def test_a_process_that_dies_between_the_marker_and_its_note_leaves_a_marker(store: Store) -> None:
    """The note first would make a table that never had a marker look like one that was lost."""
    order: list[str] = []
    mark, note = store.numbers.mark, store.limits.note_numbers

    def marks(now_ms: int) -> None:
        order.append("mark")
        mark(now_ms)

    def notes(now_ms: int) -> None:
        order.append("note")
        note(now_ms)

    store.numbers.mark = marks  # type: ignore[method-assign]
    store.limits.note_numbers = notes  # type: ignore[method-assign]
    assert ensure_marker(store.limits, store.numbers, NOW)
    assert order == ["mark", "note"]
    store.client.delete_item(TableName=TABLE, Key={"workspaceId": {"S": "#numbers"}})
    assert ensure_marker(store.limits, store.numbers, NOW + 5)
    assert store.limits.numbers_noted(), "the next run notes it"


def test_the_marker_stands_for_no_number(store: Store) -> None:
    store.numbers.mark(NOW)
    assert store.numbers.suppressed("demo", 9) == ([], None)
    assert store.get() == NumberRecord("demo", TO)


# ── many at a time ──────────────────────────────────────────────────────────────────────────────────


def test_many_are_read_together(store: Store) -> None:
    store.suppress()
    found = store.numbers.get_many("demo", [TO, "+12025550199", TO])
    assert found == {TO: store.get(), "+12025550199": NumberRecord("demo", "+12025550199")}
    assert store.requests.count("batch_get_item") == 1


def conflicts(times: int) -> Iterator[Callable[[], None]]:
    answer: Any = {"Error": {"Code": "TransactionConflictException"}, "ResponseMetadata": {"HTTPStatusCode": 400}}

    def conflict() -> None:
        raise ClientError(answer, "UpdateItem")

    for _ in range(times):
        yield conflict


@pytest.mark.parametrize(("times", "written"), [(9, True), (10, False)])
def test_a_write_that_meets_a_fence_is_made_again(store: Store, times: int, written: bool) -> None:
    store.before = list(conflicts(times))
    if written:
        store.suppress()
        assert store.get().suppressions
        return
    with pytest.raises(StoreError, match="TransactionConflictException"):
        store.suppress()
    assert store.item() == {}
