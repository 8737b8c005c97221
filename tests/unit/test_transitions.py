"""A change of status that TRANSITIONS lacks cannot be written."""

from __future__ import annotations

import itertools

import pytest

from shared.call import TRANSITIONS, Outcome, Status, event
from shared.call_store import CallStore
from tests.calls import call_record
from tests.model.conditions import Recorder

PAIRS = list(itertools.product(sorted(TRANSITIONS), repeat=2))


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_a_change_of_status_is_one_of_the_table(source: Status, to: Status) -> None:
    recorder = Recorder()
    store = CallStore(recorder, "table")  # type: ignore[arg-type]

    def change() -> None:
        store._transition("x", source, to, event("x", 1), "a = :a", "leaseId = :a", {":a": 1}, lambda call: False)

    if to in TRANSITIONS[source]:
        change()
        assert recorder.request["ConditionExpression"] == "#status = :source AND leaseId = :a"
        values = recorder.request["ExpressionAttributeValues"]
        assert (values[":source"], values[":to"]) == ({"S": source}, {"S": to})
    else:
        with pytest.raises(ValueError, match=f"a call cannot go from {source} to {to}"):
            change()
        assert recorder.request == {}


@pytest.mark.parametrize("status", sorted(status for status in TRANSITIONS if not TRANSITIONS[status]))
def test_what_has_ended_does_not_end_again(status: Status) -> None:
    recorder = Recorder()
    store = CallStore(recorder, "table")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot go from"):
        store.end(call_record(status=status), Outcome("failed", "outcome_unknown"), 4, 1)
    assert recorder.request == {}
