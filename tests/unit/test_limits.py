"""The limits: slots, pacing, the switch, and what is read of them together. The breaker: test_trunk.py."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from shared.errors import StoreError
from shared.limits import Everything, LimitStore, Standing
from shared.slots import SlotsItem
from shared.switch import Switch
from shared.trunk import Trunk
from shared.workspaces import Workspace, WorkspaceStore
from tests.one_call import WORKSPACE
from tests.workspaces_table import TABLE, OneAtATime


@pytest.fixture
def limits(client: OneAtATime) -> LimitStore:
    return LimitStore(cast(Any, client), TABLE)


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_slots_than_the_limit(limits: LimitStore) -> None:
    assert [limits.take_slot("acme", call, 2) for call in ("a", "b", "c")] == [True, True, False]
    assert limits.active_calls("acme") == {"a", "b"}


def test_taking_a_slot_twice_takes_one(limits: LimitStore) -> None:
    assert limits.take_slot("acme", "a", 1)
    assert limits.take_slot("acme", "a", 1)
    assert limits.active_calls("acme") == {"a"}


def test_freeing_a_slot_twice_frees_one(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 2)
    limits.take_slot("acme", "b", 2)
    limits.free_slot("acme", "a")
    limits.free_slot("acme", "a")
    limits.free_slot("unknown", "a")
    assert limits.active_calls("acme") == {"b"}
    assert limits.take_slot("acme", "c", 2)


@pytest.mark.parametrize("item", [0, 1, 24])
def test_items_of_slots_have_capacities_of_their_own(limits: LimitStore, item: int) -> None:
    assert limits.take_slot("acme", "a", 1, item=item)
    assert not limits.take_slot("acme", "b", 1, item=item)
    assert limits.take_slot("acme", "a", 0, item=item), "it has one"
    assert limits.take_slot("acme", "b", 1, item=item + 1)
    assert limits.active_calls("acme", 26) == {"a", "b"}
    assert limits.active_calls("acme", item + 1) == {"a"}
    assert limits.free_slot("acme", "b", item) is None
    assert limits.free_slot("acme", "a", item) == SlotsItem(item, frozenset({"a"}))
    assert limits.active_calls("acme", 26) == {"b"}


def test_a_freed_slot_tells_the_item_as_it_was(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 2)
    limits.take_slot("acme", "b", 2)
    limits.note_crowded("acme", 0, 5000, 0)
    assert limits.free_slot("acme", "a") == SlotsItem(0, frozenset({"a", "b"}), 5000)
    assert limits.free_slot("acme", "a") is None, "it was free already"
    assert limits.free_slot("acme", "c") is None
    assert limits.free_slot("unknown", "a") is None
    assert limits.free_slot("acme", "b") == SlotsItem(0, frozenset({"b"}), 5000)
    assert limits.slots("acme", 1) == (SlotsItem(0, frozenset(), 5000),)


def test_a_newcomer_leaves_the_slots_to_those_that_wait(limits: LimitStore) -> None:
    assert limits.take_slot("acme", "a", 2, admitted=False, now_ms=1000)
    limits.note_crowded("acme", 0, 5000, 0)
    assert not limits.take_slot("acme", "new", 2, admitted=False, now_ms=5000)
    assert limits.take_slot("acme", "a", 2, admitted=False, now_ms=1000), "it has one"
    assert limits.take_slot("acme", "old", 2, admitted=True, now_ms=1000)
    limits.free_slot("acme", "old")
    assert limits.take_slot("acme", "new", 2, admitted=False, now_ms=5001)
    assert not limits.take_slot("acme", "newer", 2, admitted=False, now_ms=5001), "no more than the limit"


def test_an_item_is_crowded_until_a_time(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 2, item=1)
    assert limits.note_crowded("acme", 1, 5000, 3000) == SlotsItem(1, frozenset({"a"}), 5000)
    # It is stored for long enough, and the answer of a lost condition has no item.
    assert limits.note_crowded("acme", 1, 9000, 5000) is None
    assert limits.slots("acme", 2) == (SlotsItem(0), SlotsItem(1, frozenset({"a"}), 5000))
    assert limits.note_crowded("acme", 1, 9000, 5001) == SlotsItem(1, frozenset({"a"}), 9000)
    assert limits.note_crowded("acme", 0, 7000, 1) == SlotsItem(0, frozenset(), 7000), "an item that is made by it"


def test_the_last_slot_freed_leaves_room_for_all(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 1)
    limits.free_slot("acme", "a")
    assert limits.active_calls("acme") == frozenset()
    assert limits.take_slot("acme", "b", 1)


def test_workspaces_do_not_share_slots(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 1)
    assert limits.take_slot("other", "b", 1)


def test_threads_together_take_no_more_than_the_limit(limits: LimitStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda number: limits.take_slot("acme", f"call-{number}", 5), range(16)))
    assert taken.count(True) == 5
    assert len(limits.active_calls("acme")) == 5


# ── pacing ──────────────────────────────────────────────────────────────────────────────────────────

LATER = 10**9


def test_a_trunk_that_is_free_is_given_now(limits: LimitStore) -> None:
    assert limits.trunk("ST_1").next_free_ms == 0
    assert limits.reserve_trunk("ST_1", 1000, 5_000, LATER) == 5_000
    assert limits.trunk("ST_1").next_free_ms == 6_000


def test_moments_of_one_trunk_are_a_gap_apart(limits: LimitStore) -> None:
    assert [limits.reserve_trunk("ST_1", 1000, now, LATER) for now in (5_000, 5_000, 5_100)] == [
        5_000,
        6_000,
        7_000,
    ]


def test_a_trunk_left_alone_is_free_again(limits: LimitStore) -> None:
    limits.reserve_trunk("ST_1", 1000, 5_000, LATER)
    assert limits.reserve_trunk("ST_1", 1000, 60_000, LATER) == 60_000


def test_a_moment_that_is_too_late_is_left_to_others(limits: LimitStore) -> None:
    assert limits.reserve_trunk("ST_1", 1000, 5_000, 5_000) == 5_000
    assert limits.reserve_trunk("ST_1", 1000, 5_000, 5_999) is None
    assert limits.trunk("ST_1").next_free_ms == 6_000
    assert limits.reserve_trunk("ST_1", 1000, 5_000, 6_000) == 6_000


def test_trunks_do_not_wait_for_each_other(limits: LimitStore) -> None:
    limits.reserve_trunk("ST_1", 1000, 5_000, LATER)
    assert limits.reserve_trunk("ST_2", 1000, 5_000, LATER) == 5_000


def test_threads_are_given_moments_a_gap_apart(limits: LimitStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        moments = list(threads.map(lambda number: limits.reserve_trunk("ST_1", 100, 5_000, LATER), range(16)))
    assert sorted(moment for moment in moments if moment) == [5_000 + 100 * number for number in range(16)]


# ── the switch ──────────────────────────────────────────────────────────────────────────────────────


def test_the_switch_pauses_and_resumes(limits: LimitStore) -> None:
    assert limits.switch() == Switch()
    limits.resume(3)
    assert limits.switch() == Switch()
    limits.pause(7)
    assert limits.switch() == Switch(7)
    limits.resume(9)
    assert limits.switch() == Switch(None, ((7, 9),))
    limits.resume(11)
    assert limits.switch() == Switch(None, ((7, 9),))
    limits.pause(20)
    assert limits.switch() == Switch(20, ((7, 9),))
    limits.resume(25)
    assert limits.switch() == Switch(None, ((7, 9), (20, 25)))


def test_pausing_again_keeps_the_first_moment(limits: LimitStore) -> None:
    limits.pause(7)
    limits.pause(9)
    assert limits.switch().paused_at_ms == 7


def test_a_pause_that_another_resumes_and_begins_again_meanwhile_is_ended(limits: LimitStore) -> None:
    """Neither of the two intervals is lost."""
    limits.pause(7)
    read = limits.switch
    others: list[bool] = []

    def behind() -> Switch:
        seen = read()
        if not others:
            others.append(True)
            limits.resume(8)
            limits.pause(10)
        return seen

    limits.switch = behind  # type: ignore[method-assign]
    limits.resume(15)
    assert read() == Switch(None, ((7, 8), (10, 15)))


def test_a_switch_that_never_stays_is_an_error(limits: LimitStore) -> None:
    reads = []

    def moves() -> Switch:
        reads.append(True)
        return Switch(len(reads))

    limits.switch = moves  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="again and again"):
        limits.resume(15)
    assert len(reads) == 20


# ── what a dial depends on ──────────────────────────────────────────────────────────────────────────


def stored_workspace(client: OneAtATime, **changes: Any) -> Workspace:
    workspace = dataclasses.replace(WORKSPACE, **changes)
    WorkspaceStore(cast(Any, client), TABLE).put(workspace)
    return workspace


def test_a_standing_is_one_read(limits: LimitStore, client: OneAtATime) -> None:
    workspace = stored_workspace(client, max_concurrent_calls=100)
    limits.take_slot("demo", "a", 40, item=2)
    limits.take_slot("demo", "b", 40)
    limits.note_crowded("demo", 1, 5000, 1)
    limits.take_slot("demo", "c", 40, item=3)
    limits.reserve_trunk("ST_1", 500, 9, 9)
    limits.note_trunk_fault("ST_1", "a", "text", 1, 1, 9)
    limits.pause(7)
    client.requests.clear()
    standing = limits.standing(workspace)
    assert client.requests == ["batch_get_item"]
    assert standing == Standing(
        workspace,
        Switch(7),
        Trunk("ST_1", 509, frozenset({"a"})),
        (SlotsItem(0, frozenset({"b"})), SlotsItem(1, frozenset(), 5000), SlotsItem(2, frozenset({"a"}))),
    )
    assert limits.standing(workspace, slots=False) == dataclasses.replace(standing, slots=())


def test_a_standing_of_nothing_but_a_workspace(limits: LimitStore, client: OneAtATime) -> None:
    workspace = stored_workspace(client)
    assert limits.standing(workspace) == Standing(workspace, Switch(), Trunk("ST_1"), (SlotsItem(0),))


def test_a_workspace_that_is_gone_has_no_standing(limits: LimitStore) -> None:
    assert limits.standing(WORKSPACE).workspace is None


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        # What was read for the workspace as it was cached covers it as it is.
        ({"name": "New"}, 1),
        ({"max_concurrent_calls": 40}, 1),
        ({"sip_trunk_id": "ST_2"}, 2),
        ({"max_concurrent_calls": 41}, 2),
    ],
)
def test_a_workspace_that_has_changed_is_read_with_what_belongs_to_it(
    limits: LimitStore, client: OneAtATime, changes: dict[str, Any], reads: int
) -> None:
    workspace = stored_workspace(client, **changes)
    limits.reserve_trunk(workspace.sip_trunk_id, 500, 9, 9)
    client.requests.clear()
    standing = limits.standing(WORKSPACE)
    assert client.requests == ["batch_get_item"] * reads
    assert (standing.workspace, standing.trunk) == (workspace, Trunk(workspace.sip_trunk_id, 509))
    assert len(standing.slots) == workspace.slots_items


def test_a_lowered_limit_keeps_its_items_in_view(limits: LimitStore, client: OneAtATime) -> None:
    workspace = stored_workspace(client, max_concurrent_calls=10, slots_items_used=3)
    limits.take_slot("demo", "a", 40, item=2)
    assert limits.standing(workspace).item_of("a") == 2


def test_a_workspace_that_changes_at_each_read_is_an_error(
    limits: LimitStore, client: OneAtATime, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_workspace(client)
    reads = []

    def from_item(item: dict[str, Any]) -> Workspace:
        reads.append(item)
        return dataclasses.replace(WORKSPACE, sip_trunk_id=f"ST_{1 + len(reads)}")

    monkeypatch.setattr(Workspace, "from_item", from_item)
    with pytest.raises(StoreError, match="again and again"):
        limits.standing(WORKSPACE)
    assert len(reads) == 3


@pytest.mark.parametrize(
    ("crowded", "expected"), [((0, 0), False), ((4999, 0), False), ((5000, 0), True), ((0, 5000), True)]
)
def test_a_workspace_is_crowded_if_one_of_its_items_is(crowded: tuple[int, int], expected: bool) -> None:
    slots = tuple(SlotsItem(number, frozenset(), until) for number, until in enumerate(crowded))
    assert Standing(WORKSPACE, Switch(), Trunk("ST_1"), slots).crowded(5000) is expected


def test_the_item_of_a_call_and_the_free_slots() -> None:
    slots = (SlotsItem(0, frozenset({"a", "b"})), SlotsItem(1, frozenset({"c"})))
    standing = Standing(WORKSPACE, Switch(), Trunk("ST_1"), slots)
    assert [standing.item_of(call_id) for call_id in ("b", "c", "d")] == [0, 1, None]
    assert (standing.free(42), standing.free(3)) == ([38, 1], [0, 0])


# ── everything ──────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_found_on_every_page(limits: LimitStore, client: OneAtATime) -> None:
    """A page in memory has three items."""
    expected = {}
    for n in range(4):
        stored_workspace(
            client,
            workspace_id=f"w{n}",
            max_concurrent_calls=20 * (n + 1),
            calls_per_second=1 + n,
            disabled=n == 3,
            slots_items_used=n,
            sip_trunk_id=f"ST_{n}",
            api_key_hashes=frozenset({"hash"}),
            webhook_secrets=("whsec",),
        )
        for item in range(n):
            limits.take_slot(f"w{n}", f"call-{n}-{item}", 5, item=item)
        expected[f"w{n}"] = {SlotsItem(item, frozenset({f"call-{n}-{item}"})) for item in range(n)}
    limits.note_crowded("waits only", 1, 5, 1)
    limits.take_permits("w1", 7, 10, None)
    limits.reserve_trunk("ST_9", 1000, 5, LATER)
    for call_id in ("a", "b", "c"):
        limits.note_trunk_fault("ST_1", call_id, "text", 10, 10, 7)
    limits.claim_probe(limits.trunk("ST_1"), "a", 30, 20)
    limits.pause(5)
    limits.resume(6)
    limits.pause(8)
    client.requests.clear()
    found = limits.everything()
    assert set(client.requests) == {"scan"}
    assert {key: set(slots) for key, slots in found.slots.items()} == {
        **{key: slots for key, slots in expected.items() if slots},
        "waits only": {SlotsItem(1, frozenset(), 5)},
    }
    assert {key: (w.max_concurrent_calls, w.calls_per_second) for key, w in found.workspaces.items()} == {
        f"w{n}": (20 * (n + 1), 1 + n) for n in range(4)
    }
    workspace = found.workspaces["w3"]
    assert (workspace.disabled, workspace.slots_items_used, workspace.sip_trunk_id) == (True, 3, "ST_3")
    assert (workspace.api_key_hashes, workspace.webhook_secrets) == (frozenset(), ())
    assert found.switch == Switch(8, ((5, 6),))
    assert set(found.trunks) == {"ST_1", "ST_9"}
    trunk = limits.trunk("ST_1")
    # The pace and the call that tries a trunk are the worker's alone.
    assert found.trunks["ST_1"] == dataclasses.replace(trunk, next_free_ms=0, probe_call="")
    assert found.trunks["ST_1"].state(20) == trunk.state(20) == "probing"
    assert found.standing(found.workspaces["w1"]).trunk == found.trunks["ST_1"]


def test_a_workspace_that_cannot_be_read_does_not_hold_up_the_others(
    limits: LimitStore, client: OneAtATime, caplog: pytest.LogCaptureFixture
) -> None:
    stored_workspace(client)
    client.put_item(TableName=TABLE, Item={"workspaceId": {"S": "broken"}, "name": {"S": "Broken"}})
    client.put_item(TableName=TABLE, Item={"workspaceId": {"S": "trunk#broken"}, "faults": {"N": "5"}})
    client.put_item(TableName=TABLE, Item={"workspaceId": {"S": "broken#slots"}, "activeCalls": {"N": "1"}})
    assert set(limits.everything().workspaces) == {"demo"}
    unreadable = sorted(record.__dict__["workspace_id"] for record in caplog.records)
    assert unreadable == ["broken", "broken#slots", "trunk#broken"]


@pytest.mark.parametrize(("numbers", "expected"), [([], [0]), ([0], [0]), ([1], [0, 1]), ([3, 1], [0, 1, 2, 3])])
def test_a_standing_of_everything_has_each_item(numbers: list[int], expected: list[int]) -> None:
    there = [SlotsItem(number, frozenset({"a"}), 7) for number in numbers]
    standing = Everything({}, {"demo": there}, {}, Switch(5)).standing(WORKSPACE)
    assert standing == Standing(
        WORKSPACE,
        Switch(5),
        Trunk("ST_1"),
        tuple(next((item for item in there if item.number == n), SlotsItem(n)) for n in expected),
    )


def test_a_standing_of_everything_has_the_items_that_the_limit_needs() -> None:
    workspace = dataclasses.replace(WORKSPACE, max_concurrent_calls=100)
    assert Everything().standing(workspace).slots == (SlotsItem(0), SlotsItem(1), SlotsItem(2))
