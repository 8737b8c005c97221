"""Calls that are restored from a backup: each ends once, with its event, and no phone rings again."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from admin.command import parser
from admin.restore import bring_back, seal
from admin.target import CallsTable, Target
from admin.terminal import AdminError, Terminal
from shared.call_store import CallStore
from shared.clock import now_ms
from tests.interleaving import change
from tests.system import System

RESTORED = "CallsTable-restored"
SOON = 60_000


def run(system: System, *words: str) -> dict[str, int]:
    """`admin restore seal`, answered with yes: what it says as JSON."""
    import json

    arguments = parser().parse_args(["restore", "seal", *(words or (RESTORED,)), "--yes", "--json"])
    output = io.StringIO()
    terminal = Terminal(io.StringIO(), output, io.StringIO(), as_json=True, assume_yes=True)
    target = Target(system.workspaces, system.limits, "the test's", calls=store(system), calls_table=table(system))
    seal(target, terminal, arguments)
    told: dict[str, int] = json.loads(output.getvalue())
    return told


def store(system: System) -> CallStore:
    return CallStore(system.dynamodb, "CallsTable")


def table(system: System) -> CallsTable:
    return CallsTable(system.dynamodb, "CallsTable")


def back_up(system: System, table: str = "CallsTable", into: str = RESTORED) -> None:
    """What PITR gives: all items as they are now, in a table of another name."""
    system.dynamodb.restore_table_from_backup(TargetTableName=into, BackupArn=backup_of(system, table))


def backup_of(system: System, table: str) -> str:
    """The name of a backup of a table as it is now; AWS makes one by itself of a table that is deleted."""
    made = system.dynamodb.create_backup(TableName=table, BackupName=f"{table}-backup")
    return made["BackupDetails"]["BackupArn"]


def everything(system: System) -> list[dict[str, Any]]:
    return list(system.dynamodb.scan(TableName="CallsTable")["Items"])


def lose_everything(system: System) -> None:
    for item in everything(system):
        system.dynamodb.delete_item(TableName="CallsTable", Key={"pk": item["pk"], "sk": item["sk"]})


def queued(system: System) -> str:
    return system.place("+15550000000")


def leased(system: System) -> str:
    """A worker had it, and had not dialled."""
    call_id = system.place("+15550000000")
    now = int(time.time() * 1000)
    change(system, call_id, lease_id="lost", lease_until_ms=now + SOON, attempts=1, check_at_ms=now + SOON)
    system.limits.take_slot("demo", call_id, 10)
    return call_id


def dialing(system: System) -> str:
    """A worker had it, and may have dialled; it died."""
    call_id = system.place("+15550000000")
    now = int(time.time() * 1000)
    change(
        system, call_id, status="dialing", lease_id="lost", lease_until_ms=now - 1, attempts=1, dialed_at_ms=now
    )
    system.limits.take_slot("demo", call_id, 10)
    return call_id


def in_progress(system: System) -> str:
    """A call that is still in progress at LiveKit."""
    call_id = system.place("+15550000012")
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    return call_id


def asked_to_hang_up(system: System) -> str:
    call_id = dialing(system)
    change(system, call_id, hangup={"reason": "canceled_by_api", "at": 1})
    return call_id


@pytest.mark.parametrize("state", [queued, leased, dialing, in_progress])
def test_an_open_call_ends_once_and_never_rings_again(system: System, state: Any) -> None:
    call_id = state(system)
    rung = len(system.calls_placed())
    back_up(system)
    lose_everything(system)
    system.limits.pause(now := int(time.time() * 1000) + 1)
    assert system.item(call_id) == {}

    assert run(system)["sealed"] == 1
    end = system.item(call_id)["events"][-1]
    assert (end["type"], end["status"], end["reason"]) == ("call.ended", "failed", "outcome_unknown")
    # Again, as after a death: nothing changes.
    assert run(system) == {"broughtBack": 0, "sealed": 0, "slotsFreed": 0}
    system.limits.resume(now_ms())

    def cleared() -> bool:
        change(system, call_id, check_at_ms=1) if "checkAt" in system.item(call_id) else None
        if "leaseUntil" in system.item(call_id):
            change(system, call_id, lease_until_ms=now - 1)
        system.reconcile()
        return "dueShard" not in system.item(call_id)

    system.run_until(cleared)
    system.run_until(lambda: system.dial() + system.deliver() == 0)
    assert len(system.calls_placed()) == rung
    assert system.events(call_id).count("call.ended") == 1
    assert system.limits.active_calls("demo") == frozenset()
    # A phone that still talked has been hung up.
    assert all(placed["outcome"] is not None for placed in system.calls_placed())


def test_the_end_reaches_a_receiver_that_has_seen_more_than_the_backup(system: System) -> None:
    """It knows the second event as `call.dialing`; the end has the same place, and another id."""
    call_id = system.place("+15550000012")
    system.pump_stream()
    back_up(system)
    system.run_until(lambda: len(system.received(call_id)) == 3)
    lose_everything(system)
    system.limits.pause(int(time.time() * 1000) + 1)
    run(system)
    system.run_until(lambda: any(event["type"] == "call.ended" for event in system.received(call_id)))
    heard = [(event["id"], event["type"]) for event in system.received(call_id)]
    assert (f"evt_{call_id}_2", "call.dialing") in heard
    assert (f"evt_{call_id}_2r", "call.ended") in heard
    shown = system.api("GET /v1/api/call/{callId}/deliveries", call_id)["json"]["deliveries"]
    assert [entry["id"] for entry in shown] == [f"evt_{call_id}_1", f"evt_{call_id}_2r"]


def test_a_request_to_hang_up_keeps_its_reason(system: System) -> None:
    call_id = asked_to_hang_up(system)
    back_up(system)
    lose_everything(system)
    system.limits.pause(int(time.time() * 1000) + 1)
    assert run(system)["sealed"] == 1
    end = system.item(call_id)["events"][-1]
    assert (end["status"], end["reason"]) == ("canceled", "canceled_by_api")


def test_a_call_accepted_after_the_pause_is_dialled_once_it_goes_on(system: System) -> None:
    system.limits.pause(int(time.time() * 1000) - 1)
    call_id = system.place("+15550000000")
    back_up(system)
    lose_everything(system)
    assert run(system) == {"broughtBack": 1, "sealed": 0, "slotsFreed": 0}
    system.limits.resume(now_ms())
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1
    assert system.item(call_id)["status"] == "completed"


def test_what_the_table_still_has_stays_as_it_is(system: System) -> None:
    call_id = in_progress(system)
    back_up(system)
    before = system.item(call_id)
    system.limits.pause(int(time.time() * 1000) + 1)
    assert run(system) == {"broughtBack": 0, "sealed": 0, "slotsFreed": 0}
    assert system.item(call_id) == before
    assert system.limits.active_calls("demo") == {call_id}


def test_slots_of_calls_without_a_record_are_freed(system: System) -> None:
    """Accepted after the backup, and lost with the table."""
    back_up(system)
    call_id = in_progress(system)
    lose_everything(system)
    system.limits.pause(int(time.time() * 1000) + 1)
    assert system.limits.active_calls("demo") == {call_id}
    assert run(system)["slotsFreed"] == 1
    assert system.limits.active_calls("demo") == frozenset()


def test_a_copy_that_was_not_ended_yet_is_ended_by_the_repeat(system: System) -> None:
    """The command died between its two steps."""
    call_id = queued(system)
    back_up(system)
    lose_everything(system)
    system.limits.pause(now := int(time.time() * 1000) + 1)
    assert bring_back(table(system), RESTORED, now) >= 1
    assert run(system)["sealed"] == 1
    assert system.ended(call_id)


def test_nothing_is_done_while_dialling_goes_on(system: System) -> None:
    with pytest.raises(AdminError, match="not paused"):
        run(system)


def test_the_stacks_own_table_is_not_taken_for_a_backup(system: System) -> None:
    system.limits.pause(1)
    with pytest.raises(AdminError, match="own table"):
        run(system, "CallsTable")


# ── a table is gone ─────────────────────────────────────────────────────────────────────────────────


def test_a_deleted_table_of_calls_comes_back_into_an_empty_one(system: System) -> None:
    """docs/operations.md: an empty table in its place, the backup into another, what was open is ended."""
    call_id = in_progress(system)
    over = system.place("+15550000001")
    system.run_until(lambda: system.ended(over))
    rung, view = len(system.calls_placed()), system.item(over)
    backup = backup_of(system, "CallsTable")
    system.dynamodb.delete_table(TableName="CallsTable")
    assert system.post({"to": "+15550000000", "call_agent_id": "a"})["statusCode"] == 503

    system.limits.pause(int(time.time() * 1000) + 1)
    system.make_table("CallsTable")
    system.dynamodb.restore_table_from_backup(TargetTableName=RESTORED, BackupArn=backup)
    assert run(system)["sealed"] == 1
    system.limits.resume(now_ms())
    # By the new table's stream.
    system.run_until(lambda: any(event["type"] == "call.ended" for event in system.received(call_id)))
    assert system.item(call_id)["events"][-1]["reason"] == "outcome_unknown"
    assert system.item(over) == view
    assert len(system.calls_placed()) == rung
    again = system.place("+15550000000")
    system.run_until(lambda: system.ended(again))
    assert len(system.calls_placed()) == rung + 1


def test_a_deleted_table_of_workspaces_comes_back_under_its_own_name(system: System) -> None:
    call_id = in_progress(system)
    backup = backup_of(system, "WorkspacesTable")
    system.dynamodb.delete_table(TableName="WorkspacesTable")
    system.forget_workspaces()
    assert system.post({"to": "+15550000000", "call_agent_id": "a"})["statusCode"] == 503

    system.dynamodb.restore_table_from_backup(TargetTableName="WorkspacesTable", BackupArn=backup)
    system.forget_workspaces()
    assert system.limits.active_calls("demo") == {call_id}
    again = system.place("+15550000000")
    system.run_until(lambda: system.ended(again))
    assert system.item(again)["status"] == "completed"


def test_the_tables_of_a_deleted_stack_come_into_those_of_a_new_one(system: System) -> None:
    """docs/operations.md: workspaces are copied, without their counts; the old calls are read as a backup."""
    key = {"idempotency-key": "before the loss"}
    over = system.place("+15550000001", headers=key)
    system.run_until(lambda: system.ended(over))
    call_id = in_progress(system)
    rung, view = len(system.calls_placed()), system.item(over)
    for table in ("CallsTable", "WorkspacesTable"):
        back_up(system, table, into=f"Old{table}")
        system.dynamodb.delete_table(TableName=table)
        system.make_table(table)
    system.forget_workspaces()

    system.limits.pause(int(time.time() * 1000) + 1)
    for item in system.dynamodb.scan(TableName="OldWorkspacesTable")["Items"]:
        if "#" not in item["workspaceId"]["S"]:
            system.dynamodb.put_item(TableName="WorkspacesTable", Item=item)
    assert run(system, "OldCallsTable")["sealed"] == 1
    system.limits.resume(now_ms())
    system.run_until(lambda: any(event["type"] == "call.ended" for event in system.received(call_id)))
    assert system.item(call_id)["events"][-1]["reason"] == "outcome_unknown"
    assert system.item(over) == view
    assert system.limits.active_calls("demo") == frozenset()
    assert system.place("+15550000001", headers=key) == over
    assert len(system.calls_placed()) == rung
    again = system.place("+15550000000")
    system.run_until(lambda: system.ended(again))
    assert len(system.calls_placed()) == rung + 1
