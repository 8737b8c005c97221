"""Nobody is rung who must not be: the rules of a workspace, from the POST to the ring."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from shared.call_store import CallStore
from shared.errors import StoreError
from shared.limits import LimitStore
from shared.livekit.client import LiveKit
from shared.numbers import MARKER, ensure_marker
from shared.policies import Cap, Policy
from tests.clock import MINUTE, START
from tests.in_memory import RoomsInMemory
from tests.interleaving import once, rooms
from tests.ruled import HOUR, IDAHO, NEW_YORK, Ruled, hours
from tests.system import System, demo_workspace

NUMBER = "+15550400001"
# A rule that counts rings: the fence then writes the number instead of only checking it.
COUNTS = Policy("default", caps=(Cap(50, 3600),))


@pytest.fixture
def world(system: System) -> Ruled:
    return Ruled(system)


# ── calling windows ─────────────────────────────────────────────────────────────────────────────────


def test_a_call_outside_the_window_waits_until_it_opens(world: Ruled) -> None:
    """It is 3 in the morning in New York."""
    world.set_policies(hours(9, 17))
    assert world.refused() == (400, "cannot_ring_in_time")
    call_id = world.accept(expires_at="2027-01-15T20:00:00Z")
    assert world.waits(call_id) == ("calling_window", "2027-01-15T14:00:00.000Z")
    world.run_to(START + 6 * HOUR - 2 * MINUTE)
    assert (world.rang(), world.call(call_id).attempts) == ([], 0)
    world.run_to(START + 6 * HOUR)
    assert world.rang() == ["2027-01-15T14:00:00.000Z"]
    seen = world.receipt(call_id)["calling_window"]
    assert seen["zonesFrom"] == "number"
    assert seen["localTime"] == {"America/New_York": "2027-01-15T09:00:00-05:00"}
    assert seen["openUntil"] == {"America/New_York": "2027-01-15T17:00:00-05:00"}


def test_a_window_that_closes_while_the_call_waits_keeps_it_until_the_next_day(world: Ruled) -> None:
    world.set_policies(hours(2, 4))
    call_id = world.accept(expires_at="2027-01-17T00:00:00Z")
    world.limits.pause(world.clock())
    world.step()
    assert world.waits(call_id) == ("paused", None)
    world.run_to(START + HOUR)
    world.limits.resume(world.clock())
    world.run_to(START + 2 * HOUR)
    assert world.waits(call_id) == ("calling_window", "2027-01-16T07:00:00.000Z")
    world.run_to(START + 24 * HOUR)
    assert world.rang() == ["2027-01-16T07:00:00.000Z"]


def test_ringing_ends_inside_the_window(world: Ruled) -> None:
    """40 s of ringing do not fit into the last half minute."""
    world.set_policies(hours(2, 4))
    world.clock.now = START + 58 * MINUTE + 30_000
    call_id = world.accept(expires_at="2027-01-17T00:00:00Z", ring_timeout_seconds=40)
    assert world.waits(call_id)[0] == "calling_window"
    # LiveKit has 3 s from the request to the INVITE.
    in_time = world.accept(ring_timeout_seconds=27)
    world.step()
    assert world.rang() == ["2027-01-15T08:59:30.000Z"]
    assert world.call(in_time).status == "in_progress"


def test_a_worker_that_stalls_before_the_dial_until_the_window_closes_rings_nothing(
    world: Ruled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fence stored is undone: the call waits for the next day and its ring does not count."""
    world.set_policies(hours(2, 4, caps=(Cap(1, 3600),)))
    world.clock.now = START + 58 * MINUTE + 15_000
    call_id = world.accept(expires_at="2027-01-17T00:00:00Z", ring_timeout_seconds=40)

    def stall() -> None:
        world.clock.now += 9_000

    once(monkeypatch, CallStore, "fence", after=stall)
    world.step()
    assert world.livekit.rang == []
    assert (world.call(call_id).status, world.rings_stored()) == ("queued", {})
    assert world.call(call_id).room_name not in world.livekit.rooms
    world.run_to(START + 2 * HOUR)
    assert world.waits(call_id)[0] == "calling_window"
    world.run_to(START + 24 * HOUR)
    assert world.rang() == ["2027-01-16T07:00:00.000Z"]
    assert list(world.rings_stored()) == [call_id]


def test_a_number_that_may_be_in_two_zones_rings_only_while_both_are_open(world: Ruled) -> None:
    """Idaho: Boise and Denver an hour before Los Angeles."""
    world.set_policies(hours(9, 17))
    morning, evening = "2027-01-15T16:30:00Z", "2027-01-16T00:30:00Z"
    call_id = world.accept(IDAHO, scheduled_at=morning, expires_at="2027-01-17T00:00:00Z")
    assert world.waits(call_id)[1] == "2027-01-15T17:00:00.000Z"
    late = world.accept(IDAHO, scheduled_at=evening, expires_at="2027-01-17T00:00:00Z")
    assert world.waits(late)[1] == "2027-01-16T17:00:00.000Z"
    # The client knows where the callee is.
    known = world.accept(IDAHO, scheduled_at=morning, expires_at="2027-01-17T00:00:00Z", time_zone="America/Boise")
    assert world.waits(known)[1] == "2027-01-15T16:30:00.000Z"
    world.run_to(START + 34 * HOUR)
    assert world.rang(IDAHO) == [
        "2027-01-15T16:30:00.000Z",
        "2027-01-15T17:00:00.000Z",
        "2027-01-16T17:00:00.000Z",
    ]
    zones = {"America/Boise", "America/Denver", "America/Los_Angeles"}
    assert set(world.receipt(call_id)["calling_window"]["localTime"]) == zones
    assert world.receipt(known)["calling_window"]["zonesFrom"] == "time_zone"


# ── rules that change while a call waits ────────────────────────────────────────────────────────────


def soon(world: Ruled, **fields: Any) -> str:
    """A call that waits in the line for half an hour."""
    return world.accept(scheduled_at="2027-01-15T08:31:00Z", **fields)


@pytest.mark.parametrize("change", ["policy removed", "workspace disabled", "country", "consent"])
def test_a_rule_that_forbids_the_call_while_it_waits_ends_it(world: Ruled, change: str) -> None:
    sales = Policy("sales")
    world.set_policies(sales)
    call_id = soon(world, purpose="sales")
    match change:
        case "policy removed":
            world.set_policies()
        case "workspace disabled":
            world.set_policies(sales, disabled=True)
        case "country":
            world.set_policies(sales, allowed_calling_codes=frozenset({"+44"}))
        case "consent":
            world.set_policies(Policy("sales", consent_required=True))
    world.run_to(START + 35 * MINUTE)
    assert (world.end(call_id), world.livekit.rang) == (("failed", "not_allowed"), [])
    world.assert_nothing_left(call_id)


def test_consent_is_asked_for_where_the_policy_requires_it_and_is_in_the_receipt(world: Ruled) -> None:
    world.set_policies(Policy("sales", consent_required=True))
    assert world.refused(purpose="sales") == (400, "consent_required")
    consent = {"basis": "written", "obtained_at": "2027-01-01T00:00:00Z", "reference": "form-7"}
    call_id = world.accept(purpose="sales", consent=consent)
    world.step()
    assert len(world.rang()) == 1
    given = world.receipt(call_id)["consent"]
    assert given["required"] is True
    assert given["given"]["reference"] == "form-7"
    # Another purpose asks for none.
    world.accept()
    world.step()
    assert len(world.rang()) == 2


@pytest.mark.parametrize("scope", ["all", "sales"])
def test_a_number_suppressed_while_its_call_waits_is_not_rung(world: Ruled, scope: str) -> None:
    world.set_policies(Policy("sales"), Policy("service"))
    suppressed = soon(world, purpose="sales")
    other = soon(world, purpose="service")
    world.suppress(NEW_YORK, scope)
    assert world.refused(purpose="sales") == (403, "number_suppressed")
    world.run_to(START + 40 * MINUTE)
    assert world.end(suppressed) == ("failed", "suppressed")
    world.assert_nothing_left(suppressed)
    if scope == "all":
        assert (world.end(other), world.rang()) == (("failed", "suppressed"), [])
    else:
        assert (world.call(other).status, len(world.rang())) == ("in_progress", 1)


def test_the_end_of_a_suppressed_call_is_one_event_and_one_webhook(system: System) -> None:
    call_id = system.place(NUMBER)
    Ruled(system).suppress(NUMBER)
    system.forget_workspaces()
    system.run_until(lambda: system.ended(call_id) and len(system.received(call_id)) == 2)
    assert system.events(call_id) == ["call.queued", "call.ended"]
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("failed", "suppressed")
    told = json.loads(system.received(call_id)[-1]["body"])
    assert (told["type"], told["data"]["endReason"]) == ("call.ended", "suppressed")
    assert system.calls_placed() == []


# ── an opt-out at every step of a dial ──────────────────────────────────────────────────────────────


STEPS: list[tuple[type, str, str]] = [
    (CallStore, "get", "after"),
    (LimitStore, "standing", "after"),
    (CallStore, "take_lease", "before"),
    (CallStore, "take_lease", "after"),
    (LimitStore, "take_slot", "before"),
    (LimitStore, "take_slot", "after"),
    (LiveKit, "create_room", "before"),
    (LiveKit, "create_room", "after"),
    (LiveKit, "view_room", "after"),
    (LimitStore, "reserve_trunk", "before"),
    (LimitStore, "reserve_trunk", "after"),
    (CallStore, "fence", "before"),
]


def second(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, does: Callable[[], object]) -> None:
    """Runs `does` after the second call of a method."""
    once(monkeypatch, owner, method, after=lambda: once(monkeypatch, owner, method, after=does))


def assert_suppressed_unrung(system: System, call_id: str) -> None:
    system.run_until(lambda: system.ended(call_id))
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("failed", "suppressed")
    assert system.events(call_id) == ["call.queued", "call.ended"]
    assert system.calls_placed() == []
    assert system.limits.active_calls("demo") == frozenset()
    assert rooms(system) == []


@pytest.mark.parametrize("policies", [{}, {"default": COUNTS}], ids=["checked", "counted"])
@pytest.mark.parametrize(("owner", "method", "when"), STEPS)
def test_an_opt_out_before_the_fence_lets_nothing_ring(
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    when: str,
    policies: dict[str, Policy],
) -> None:
    system.workspaces.put(demo_workspace(policies=policies))
    call_id = system.place(NUMBER)
    once(monkeypatch, owner, method, **{when: lambda: opt_out(system)})
    assert_suppressed_unrung(system, call_id)


@pytest.mark.parametrize("policies", [{}, {"default": COUNTS}], ids=["checked", "counted"])
@pytest.mark.parametrize("when", ["after the last read", "at the transaction itself"])
def test_an_opt_out_between_the_last_read_and_the_fence_lets_nothing_ring(
    system: System, monkeypatch: pytest.MonkeyPatch, when: str, policies: dict[str, Policy]
) -> None:
    """The worker has read that the number is not suppressed. Its write fails: the number's version is another."""
    system.workspaces.put(demo_workspace(policies=policies))
    call_id = system.place(NUMBER)
    if when == "after the last read":
        second(monkeypatch, LimitStore, "standing", lambda: opt_out(system))
        assert_suppressed_unrung(system, call_id)
        return
    at_work: list[None] = []

    def opt_out_first(**_: Any) -> None:
        if not at_work:
            at_work.append(None)
            opt_out(system)

    events = system.modules["dial_worker"].dynamodb.meta.events
    events.register_first("before-send.dynamodb.TransactWriteItems", opt_out_first)
    try:
        assert_suppressed_unrung(system, call_id)
    finally:
        events.unregister("before-send.dynamodb.TransactWriteItems", opt_out_first)
    assert at_work == [None]


@pytest.mark.parametrize("policies", [{}, {"default": COUNTS}], ids=["checked", "counted"])
def test_an_opt_out_after_the_fence_is_too_late_for_this_call_and_holds_for_the_next(
    system: System, monkeypatch: pytest.MonkeyPatch, policies: dict[str, Policy]
) -> None:
    # One slot: the second waits in the line while the first rings.
    system.workspaces.put(demo_workspace(policies=policies, max_concurrent_calls=1))
    first, second_call = system.place(NUMBER), system.place(NUMBER)
    once(monkeypatch, CallStore, "fence", after=lambda: opt_out(system))
    system.run_until(lambda: system.ended(first) and system.ended(second_call))
    ends = sorted(system.item(call_id)["events"][-1]["reason"] for call_id in (first, second_call))
    assert ends == ["hangup", "suppressed"]
    assert len(system.calls_placed()) == 1


def opt_out(system: System) -> None:
    """Acknowledged when this returns."""
    Ruled(system).suppress(NUMBER)


# ── what only a worker that stalls between its read and its write may miss ──────────────────────────

LATE: dict[str, Callable[[Ruled], None]] = {
    "workspace disabled": lambda world: world.set_policies(COUNTS, disabled=True),
    "policy with other hours": lambda world: world.set_policies(hours(9, 17)),
    "dialling paused": lambda world: world.limits.pause(world.clock()),
}


@pytest.mark.parametrize("change", LATE)
def test_the_exception_a_worker_that_stalls_between_read_and_write_misses_workspace_policy_and_switch(
    world: Ruled, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Only these, which are not part of the fence's transaction, and only if it stalls after its decision."""
    world.set_policies(COUNTS)
    call_id = world.accept()

    def meanwhile() -> None:
        LATE[change](world)
        world.clock.now += 5_000

    once(monkeypatch, CallStore, "fence", before=meanwhile)
    world.step()
    assert len(world.rang()) == 1
    assert world.call(call_id).status == "in_progress"


@pytest.mark.parametrize("change", LATE)
def test_a_worker_that_stalls_while_it_reads_reads_again(
    world: Ruled, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    world.set_policies(COUNTS)
    call_id = world.accept(expires_at="2027-01-15T20:00:00Z")

    def meanwhile() -> None:
        LATE[change](world)
        world.clock.now += 5_000

    second(monkeypatch, LimitStore, "standing", meanwhile)
    world.step()
    assert world.livekit.rang == []
    assert world.call(call_id).room_name not in world.livekit.rooms


def test_a_decision_is_not_dialled_by_after_ten_seconds(world: Ruled, monkeypatch: pytest.MonkeyPatch) -> None:
    world.set_policies(COUNTS)
    call_id = world.accept()

    def stall() -> None:
        world.clock.now += 11_000

    once(monkeypatch, CallStore, "fence", after=stall)
    world.dial()
    assert (world.livekit.rang, world.call(call_id).status, world.rings_stored()) == ([], "queued", {})
    world.run_to(world.clock() + 2 * MINUTE)
    assert len(world.rang()) == 1
    assert list(world.rings_stored()) == [call_id]


# ── the table of numbers ────────────────────────────────────────────────────────────────────────────


def test_without_its_marker_nothing_rings_and_what_waits_rings_once_it_is_back(
    system: System, world: Ruled
) -> None:
    first = world.accept()
    system.dynamodb.delete_item(TableName="NumbersTable", Key={"id": {"S": MARKER}})
    second_call = world.accept(IDAHO)
    world.run_to(START + 10 * MINUTE)
    assert (world.livekit.rang, world.waits(first), world.waits(second_call)) == (
        [],
        ("paused", None),
        ("paused", None),
    )
    # Only an operator may say that the table is complete.
    assert not system.numbers.marked()
    system.numbers.mark(world.clock())
    world.run_to(START + 12 * MINUTE)
    assert (len(world.rang()), len(world.rang(IDAHO))) == (1, 1)


def test_a_marker_that_is_lost_while_the_agent_comes_lets_nothing_ring(
    system: System, world: Ruled, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = world.accept()
    key = {"id": {"S": MARKER}}
    once(
        monkeypatch,
        RoomsInMemory,
        "create_room",
        after=lambda: system.dynamodb.delete_item(TableName="NumbersTable", Key=key),
    )
    world.step()
    assert (world.livekit.rang, world.waits(call_id)) == ([], ("paused", None))
    assert world.livekit.rooms == {}
    assert system.limits.active_calls("demo", 3) == frozenset()


@pytest.mark.parametrize("lost", ["before the dial", "while the agent comes", "right before the fence"])
def test_without_the_table_of_numbers_nothing_rings_and_nothing_is_lost(
    system: System, world: Ruled, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    call_id = world.accept()

    def lose() -> None:
        system.dynamodb.delete_table(TableName="NumbersTable")

    match lost:
        case "before the dial":
            lose()
        case "while the agent comes":
            once(monkeypatch, RoomsInMemory, "create_room", after=lose)
        case "right before the fence":
            once(monkeypatch, CallStore, "fence", before=lose)
    world.run_to(START + 15 * MINUTE)
    assert (world.livekit.rang, world.call(call_id).status) == ([], "queued")
    with pytest.raises(StoreError):
        world.accept()
    system.make_table("NumbersTable")
    world.run_to(START + 20 * MINUTE)
    # An empty table is not taken for complete.
    assert (world.livekit.rang, world.call(call_id).status) == ([], "queued")
    system.numbers.mark(world.clock())
    world.run_to(START + 30 * MINUTE)
    assert len(world.rang()) == 1


def test_the_marker_is_made_once_in_a_deployments_life(system: System, world: Ruled) -> None:
    for table, key in (
        ("NumbersTable", {"id": {"S": MARKER}}),
        ("WorkspacesTable", {"workspaceId": {"S": MARKER}}),
    ):
        system.dynamodb.delete_item(TableName=table, Key=key)
    world.reconcile()
    assert system.numbers.marked()
    system.dynamodb.delete_item(TableName="NumbersTable", Key={"id": {"S": MARKER}})
    for _ in range(2):
        world.reconcile()
        assert not system.numbers.marked()
    assert not ensure_marker(system.limits, system.numbers, world.clock())


# ── the receipt ─────────────────────────────────────────────────────────────────────────────────────


def test_the_receipt_says_what_let_it_ring(world: Ruled) -> None:
    world.set_policies(hours(2, 4, caps=(Cap(3, 7 * 24 * 3600),), min_gap_seconds=60, version=7))
    first = world.accept()
    world.step()
    world.clock.now += 2 * MINUTE
    again = world.accept()
    world.step()
    assert list(world.receipt(first)) == [
        "workspace",
        "destination",
        "policy",
        "consent",
        "suppression",
        "calling_window",
        "frequency",
    ]
    receipt = world.receipt(again)
    assert receipt["policy"] == {"purpose": "default", "version": 7}
    assert receipt["suppression"] == {"readAt": "2027-01-15T08:03:00.000Z"}
    assert receipt["frequency"] == {
        "caps": [{"count": 3, "seconds": 7 * 24 * 3600, "rings": 1}],
        "minGapSeconds": 60,
        "lastRingAt": "2027-01-15T08:01:00.000Z",
    }
    assert receipt["calling_window"]["tzVersion"]


def test_the_fence_and_its_receipt_are_one_record_of_the_stream(system: System) -> None:
    """What a receiver is told comes from there."""
    call_id = system.place(NUMBER)
    system.run_until(lambda: system.ended(call_id) and len(system.received(call_id)) == 4)
    types = [json.loads(told["body"])["type"] for told in system.received(call_id)]
    assert sorted(types) == ["call.answered", "call.dialing", "call.ended", "call.queued"]
    [dialing] = [entry for entry in system.item(call_id)["events"] if entry["type"] == "call.dialing"]
    assert [gate["name"] for gate in json.loads(dialing["gates"])][:3] == ["workspace", "destination", "policy"]
