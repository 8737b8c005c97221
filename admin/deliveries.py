"""`admin deliveries redrive`: makes deliveries that did not arrive due again, after an outage.

It only makes the rows due: the reconciler, which runs every minute, sends their messages. So a redrive may be
interrupted at any point and repeated.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from admin.target import Target
from admin.terminal import Terminal, UsageError, card
from shared.call import Call, iso
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import Delivery, DeliveryStore
from shared.table_keys import expires_at

PAGE = 100
# Concurrent requests to DynamoDB; a client keeps 20 connections.
THREADS = 10

# States of a delivery: to be redriven, or the reason why not.
DEAD, WAITING, NEVER_MADE = "dead", "waiting", "neverMade"
DUE, UNDER_WAY, STOPPED, DELIVERED = "due", "underWay", "stopped", "delivered"
REDRIVEN = (DEAD, WAITING, NEVER_MADE)


def redrive(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    if target.calls is None or target.deliveries is None:
        raise UsageError("deliveries are in the calls' table: name it with CALLS_TABLE, or use --stack or --local")
    until = arguments.until if arguments.until is not None else now_ms()
    if until < arguments.since:
        raise UsageError("--until is before --since")
    if arguments.workspace:
        workspaces = [target.existing(arguments.workspace).workspace_id]
    else:
        workspaces = [workspace.workspace_id for workspace in target.store.all()]
    between = (iso(arguments.since), iso(until))
    found, seen = _find(target.calls, target.deliveries, terminal, workspaces, between)
    given = {"since": between[0], "until": between[1], "workspaces": workspaces, "found": dict(seen)}
    if arguments.dry_run or not found:
        terminal.give(given | {"dryRun": arguments.dry_run, "redriven": 0}, _told(seen))
        terminal.say(
            f"\n{_events(len(found))} would be made due. Nothing was changed."
            if found
            else "\nThere is nothing to redrive."
        )
        return
    terminal.say(_told(seen) + "\n")
    terminal.confirm(
        f"{_events(len(found))} will be sent to their receivers, within minutes, and again for up to three days.",
        "Redrive?",
    )
    redriven = 0
    for done, changed in enumerate(_make_due(target.calls, target.deliveries, found), start=1):
        redriven += changed
        terminal.progress(done, len(found), "made due")
    text = f"{_events(redriven)} made due."
    if redriven < len(found):
        text += f" {_events(len(found) - redriven)} changed meanwhile and stayed as they were."
    terminal.give(given | {"dryRun": False, "redriven": redriven}, text)


def _find(
    calls: CallStore,
    deliveries: DeliveryStore,
    terminal: Terminal,
    workspaces: list[str],
    between: tuple[str, str],
) -> tuple[list[Delivery], collections.Counter[str]]:
    """The deliveries to make due (without their attempts), and the number of deliveries by state."""
    found: list[Delivery] = []
    seen: collections.Counter[str] = collections.Counter(calls=0)
    with ThreadPoolExecutor(THREADS) as threads:
        for workspace_id in workspaces:
            for page in _pages(calls, workspace_id, between):
                with_webhooks = [call for call in page if call.callback_url is not None]
                seen["calls"] += len(with_webhooks)
                now = now_ms()
                for rows in threads.map(partial(_deliveries, deliveries, now), with_webhooks):
                    for state, row in rows:
                        seen[state] += 1
                        if state in REDRIVEN:
                            found.append(dataclasses.replace(row, attempts=()))
                terminal.progress(seen["calls"], None, "calls looked at")
    terminal.progress(seen["calls"], seen["calls"], "calls looked at")
    return found, seen


def _pages(calls: CallStore, workspace_id: str, between: tuple[str, str]) -> Iterator[list[Call]]:
    start = None
    while True:
        page, start = calls.page_of_workspace(
            workspace_id, limit=PAGE, created_after=between[0], created_before=between[1], start=start
        )
        yield page
        if start is None:
            return


def _deliveries(deliveries: DeliveryStore, now: int, call: Call) -> list[tuple[str, Delivery]]:
    rows = {row.sequence: row for row in deliveries.of_call(call.call_id)}
    return [
        (_state(call, rows[n], now), rows[n])
        if n in rows
        else (
            NEVER_MADE if call.webhooks_stopped_at_ms is None else STOPPED,
            Delivery(call.call_id, call.workspace_id, n, "pending", 0, now),
        )
        for n in range(1, len(call.events) + 1)
    ]


def _state(call: Call, row: Delivery, now: int) -> str:
    if row.state == "delivered":
        return DELIVERED
    if row.state == "stopped" or call.webhooks_stopped_at_ms is not None:
        return STOPPED
    if row.lease_until_ms >= now:
        return UNDER_WAY
    if row.state == "pending" and row.next_attempt_at_ms <= now:
        return DUE
    return DEAD if row.state == "dead" else WAITING


def _make_due(calls: CallStore, deliveries: DeliveryStore, found: list[Delivery]) -> Iterator[bool]:
    """Yields for each delivery whether it was made due; not if its call's record is gone. Extends the record's
    expiry.
    """

    def one(row: Delivery) -> bool:
        now = now_ms()
        if not calls.keep(row.call_id, expires_at(now)):
            return False
        if deliveries.get(row.call_id, row.sequence) is None:
            deliveries.create(row.call_id, row.workspace_id, row.sequence, now, now)
            return True
        return deliveries.make_due(row, now)

    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(one, found)


def _told(seen: collections.Counter[str]) -> str:
    names = {
        "calls": "Calls with webhooks",
        DEAD: "Dead",
        WAITING: "Wait for their next attempt",
        NEVER_MADE: "Never made",
        DUE: "Due already",
        UNDER_WAY: "Under way",
        STOPPED: "Stopped by 410",
        DELIVERED: "Delivered",
    }
    return card([(name, f"{seen[key]:,}") for key, name in names.items()])


def _events(number: int) -> str:
    return "1 event" if number == 1 else f"{number:,} events"
