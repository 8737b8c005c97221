"""The model matches the code: what it leaves out or has in another order makes these tests fail.

A failure here is no fault by itself. A change of the protocol needs the same change in the model, whose tests then
show whether the promises still hold.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest

import dial_worker.agent_left
import dial_worker.dial
import livekit_events.apply_event
import reconcile_calls.reconcile
import shared.canceling
import shared.ending
import shared.hang_up
import shared.line
import shared.livekit.client
from shared.call_store import CallStore
from shared.limits import LimitStore
from tests.model import line
from tests.model.conditions import (
    NAMES,
    NOT_MODELLED,
    TAKE_SLOT,
    WRITES,
    Recorder,
    conditions,
    request,
)
from tests.model.record import MEANINGS
from tests.model.systems import LINES, NEEDED, ONE_CALL, OTHER_REASONS, SECOND_LINES

# What each function of the protocol asks for and looks at, in the order in which it stands there.
REQUESTS: dict[ModuleType, dict[str, str]] = {
    dial_worker.dial: {
        "dial": (
            "line.admit_one _until_its_turn _standing _end_unrung _enter_line _end_unrung _enter_line _wait "
            "_slots_item _wait_for_slot _may_try_trunk _enter_line _lease _dial_leased"
        ),
        "_until_its_turn": "_enter_line",
        "_standing": "limits.standing",
        "_lease": "calls.take_lease",
        "_dial_leased": (
            "_lease_over _take_slot _lease_over _prepare_room _await_agent _try_again _lease_over _end _clear "
            "_reserve_trunk limits.trunk _leave_room _wait limits.standing _leave_room _wait _may_try_trunk "
            "_leave_room _enter_line calls.fence _dial_fenced _lease_over _clear"
        ),
        "_take_slot": "limits.take_slot _wait_for_slot calls.note_slots_item",
        "_wait_for_slot": "line.crowd _enter_line line.admit_behind",
        "_reserve_trunk": "limits.reserve_trunk",
        "_may_try_trunk": "limits.claim_probe",
        "_prepare_room": "delete_room livekit.create_room",
        "_await_agent": (
            "livekit.view_room livekit.delete_lost_dispatches _lease_over livekit.dispatch_agent calls.get"
        ),
        "_dial_fenced": "_lease_over livekit.dial _lease_over _handle_error _handle_answer",
        "_handle_answer": "_lease_over calls.answered _end _still_mine _delete_room _end",
        "_handle_error": (
            "verdict _end_dial _view _determine_outcome _await_left_event _still_mine _end_dial _determine_outcome"
        ),
        "_await_left_event": "calls.get _still_mine",
        "_determine_outcome": (
            "_lease_over _view _handle_answer calls.get _still_mine _hang_up_ringing _un_fence _end _end_dial"
        ),
        "_view": "livekit.view_room",
        "_hang_up_ringing": "hang_up_phone",
        "_un_fence": "_end calls.unfence _send _still_mine _end",
        "_end_dial": "_end",
        "_end": "end_call _clear",
        "_clear": "clear_with_room _delete_room",
        "_delete_room": "delete_room",
        "_try_again": "_end _wait",
        "_wait": "calls.wait _send _clear_if_canceled",
        "_clear_if_canceled": "_clear",
        "_enter_line": "_lease _lease_over limits.free_slot calls.enter_line _clear_if_canceled",
        "_leave_room": "_lease_over _delete_room",
        "_end_unrung": "_end line.admit_one",
        "_send": "dial_queue.send",
    },
    shared.line: {
        "free_slot": "limits.free_slot admit_one",
        "admit_one": "_admit_one",
        "_admit_one": "calls.line _claim _send _keep_crowded",
        "admit_behind": "calls.line _admit_one _claim _send",
        "fill": "calls.line limits.slots _outstanding calls.line _claim _send _keep_crowded",
        "crowd": "_keep_crowded",
        "_keep_crowded": "limits.note_crowded",
        "_claim": "calls.admit calls.leave_line",
        "_outstanding": "calls.line calls.read_due calls.leave_line",
        "_send": "dial_queue.send_batch",
    },
    shared.ending: {
        "end_call": "calls.end",
        "clear": "line.free_slot calls.leave_due",
        "clear_with_room": "line.free_slot delete_room calls.leave_due",
    },
    shared.livekit.client: {
        "delete_lost_dispatches": "list_dispatch delete_dispatch",
        "dispatch_agent": "create_dispatch",
        "delete_room": "delete_room",
        "remove_orphan": "create_room delete_room",
        "remove_participant": "remove_participant",
        "view_room": "list_participants",
        "dial": "create_sip_participant",
    },
    # A call that lasts too long, one that its agent left: the model's `overtime`.
    shared.hang_up: {
        "delete_room": "livekit.delete_room calls.note_orphan livekit.remove_orphan",
        "hang_up_phone": "delete_room livekit.remove_participant",
        "hang_up_call": "calls.ask_to_hang_up livekit.view_room delete_room livekit.view_room",
    },
    dial_worker.agent_left: {
        "look_for_agent": (
            "calls.get livekit.view_room calls.note_missing hang_up_call end_call delete_room clear_with_room"
        ),
    },
    reconcile_calls.reconcile: {
        "_queued": "dial_queue.send",
        "_expire": "_end",
        "_dialing": (
            "hang_up_phone _end livekit.view_room _credible_status hang_up_phone _missing_long_enough _end "
            "calls.answered _end"
        ),
        "_in_progress": (
            "_end _hang_up _hang_up livekit.view_room _missing_long_enough _hang_up _missing_long_enough _end"
        ),
        "_hang_up": "hang_up_call _end",
        "_ended": "clear _clear",
        "_fill_lines": "limits.everything line.fill repair_slots",
        "repair_slots": "calls.read_due _repair_slot calls.get",
        "_repair_slot": "calls.hold limits.free_slot calls.enter_line",
        "_end": "end_call _clear",
        "_clear": "clear_with_room _delete_room",
        "_delete_room": "delete_room",
    },
    livekit_events.apply_event: {
        "apply": "calls.get _room_finished _phone_joined _agent_left _phone_left",
        "_phone_joined": "calls.note_joined",
        "_agent_left": "calls.note_agent_left",
        "_phone_left": "calls.note_left _answered_meanwhile calls.postpone _end",
        "_room_finished": "calls.note_left _answered_meanwhile _end clear",
        "_end": "end_call line.free_slot",
    },
    shared.canceling: {
        "cancel": "end_call calls.leave_due calls.ask_to_hang_up hang_up_now calls.get",
        "hang_up_now": "hang_up_phone calls.get",
    },
}
LIVEKIT = {
    "create_room",
    "delete_room",
    "list_dispatch",
    "delete_dispatch",
    "create_dispatch",
    "list_participants",
    "remove_participant",
    "create_sip_participant",
}
CHECKS = {
    "_lease_over",
    "_still_mine",
    "_missing_long_enough",
    "_answered_meanwhile",
    "_credible_status",
    "_slots_item",
    "verdict",
}


# ── the writes ──────────────────────────────────────────────────────────────────────────────────────

# What the model's writes do (tests/model/record.py): the code's update, less times and texts.
UPDATES = {
    "take_lease": "SET leaseId, leaseUntil, checkAt, slotsItem, attempts REMOVE waitUntil, waitingFor, lineOf",
    "wait": "SET waitUntil, waitingFor, checkAt REMOVE leaseId, leaseUntil",
    "wait_free": "SET waitUntil, waitingFor, checkAt REMOVE leaseId, leaseUntil",
    "admit": "SET lineOf, admittedAt, admission, checkAt REMOVE leaseId, leaseUntil",
    "leave_line": "REMOVE lineOf",
    "hold": "SET leaseId, leaseUntil, checkAt",
    "fence": "SET #status, events, dialedAt, roomSid",
    "unfence": "SET #status, events, waitUntil, waitingFor, checkAt REMOVE leaseId, leaseUntil, roomSid, dialedAt",
    "answered": "SET #status, events, answeredAt, checkAt REMOVE missingSince",
    "note_left": "SET #left",
    "note_joined": "SET phoneSeenAt",
    "note_missing": "SET checkAt, missingSince REMOVE agentMissingSince",
    "ask_to_hang_up": "SET hangup, checkAt",
    "leave_due": "REMOVE dueShard, checkAt",
} | dict.fromkeys(
    ("end", "end, lease seen", "end, hangup seen", "end, lease and hangup seen"),
    "SET #status, events, endedAt, checkAt, expiresAt "
    "REMOVE waitUntil, waitingFor, lineOf, missingSince, agentMissingSince",
)
_IN_LINE = "REMOVE leaseId, leaseUntil, waitUntil, admittedAt, admission, slotsItem"
UPDATES |= dict.fromkeys(
    ("enter_line", "enter_line_free"), f"SET lineOf, turn, waitingFor, checkAt {_IN_LINE}"
) | {"enter_line, uncount": f"SET lineOf, turn, waitingFor, checkAt, attempts {_IN_LINE}"}


def attributes(update: str) -> str:
    """`SET a = :a, b = :b REMOVE c` → `SET a, b REMOVE c`."""
    words = update.replace("list_append(events, :event)", ":event").replace("(attempts, :zero)", "")
    sets, _, removes = words.partition("REMOVE ")
    names = ", ".join(part.split(" = ")[0].strip() for part in sets.split(","))
    return " ".join(part for part in (names, f"REMOVE {removes}" if removes else "") if part)


def test_the_model_has_every_write_of_the_record() -> None:
    source = ast.parse(inspect.getsource(CallStore)).body[0]
    assert isinstance(source, ast.ClassDef)
    writing = {"_update", "_transition", "put_item"}
    methods = {
        method.name
        for method in source.body
        if isinstance(method, ast.FunctionDef) and method.name not in writing and writing & names_in(method)
    }
    assert methods == {write.split(",")[0].removesuffix("_free") for write in WRITES}
    assert set(WRITES) == set(UPDATES) | set(NOT_MODELLED)


@pytest.mark.parametrize("write", [write for write in WRITES if write not in NOT_MODELLED])
def test_the_model_knows_every_part_of_a_writes_condition(write: str) -> None:
    assert [part for part in conditions(write) if part not in NAMES] == []
    assert set(NAMES.values()) == set(MEANINGS)
    assert set(line.MEANINGS) <= set(MEANINGS)


@pytest.mark.parametrize("write", UPDATES)
def test_the_model_writes_what_the_code_writes(write: str) -> None:
    assert attributes(request(write)["UpdateExpression"]) == UPDATES[write]


@pytest.mark.parametrize("write", UPDATES)
def test_a_change_of_status_and_its_event_are_one_write(write: str) -> None:
    update = request(write)["UpdateExpression"]
    assert ("#status =" in update) == ("list_append(events, :event)" in update)


def test_nothing_that_an_agent_reports_can_make_another_write_lose() -> None:
    """Of a report's attributes no other condition speaks: a call that is full of reports goes on and ends."""
    changed = set(re.findall(r"\b(\w+) = |ADD (\w+)", request("append_report")["UpdateExpression"]))
    names = {name for pair in changed for name in pair if name}
    assert names == {"events", "reportBytes", "reportIds"}
    for write in WRITES:
        if write not in ("append_report", "create"):
            assert not names & set(re.findall(r"\w+", request(write)["ConditionExpression"])), write


def test_the_model_has_the_slots_condition() -> None:
    recorder = Recorder()
    LimitStore(recorder, "table").take_slot("x", "call", 1, admitted=False)  # type: ignore[arg-type]
    own, limit, not_crowded = TAKE_SLOT.values()
    text = f"{own} OR (attribute_not_exists(activeCalls) OR {limit}) AND {not_crowded}"
    assert recorder.request["ConditionExpression"] == text
    LimitStore(recorder, "table").take_slot("x", "call", 1)  # type: ignore[arg-type]
    assert recorder.request["ConditionExpression"] == text.removesuffix(f" AND {not_crowded}")


# ── the order of requests ───────────────────────────────────────────────────────────────────────────


def names_in(node: ast.AST) -> set[str]:
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def requests_of(module: ModuleType) -> dict[str, str]:
    """Function → what it asks of the stores, of LiveKit and of other functions of the protocol, in order."""
    tree = ast.parse(inspect.getsource(module))
    parts = [*tree.body, *(method for part in tree.body if isinstance(part, ast.ClassDef) for method in part.body)]
    functions = [part for part in parts if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
    steps = {name for listed in REQUESTS.values() for name in listed} | CHECKS
    found = {}
    for function in functions:
        asked = []
        for node in ast.walk(function):
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            # A method's own class and what it holds; LiveKit's own methods are those of its client.
            text, own = re.subn(r"^(self|dialler)\.(_client\.\w+\.)?", "", text)
            text = text.replace("line.calls.", "calls.")
            asks = re.fullmatch(r"(calls|limits|livekit|dial_queue|line)\.(?!calls$)\w+", text)
            if asks or (text in steps | LIVEKIT and (own or isinstance(node, ast.Name))):
                asked.append((node.lineno, node.col_offset, text))  # type: ignore[attr-defined]
        found[function.name] = " ".join(name for _, _, name in sorted(asked))
    return found


@pytest.mark.parametrize("module", REQUESTS, ids=lambda module: module.__name__)
def test_the_processes_ask_in_the_models_order(module: ModuleType) -> None:
    found = requests_of(module)
    assert {name: found.get(name) for name in REQUESTS[module]} == REQUESTS[module]


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def rows_of(page: str, heading: str) -> list[tuple[str, ...]]:
    """The cells of the table with this heading."""
    lines = page[page.index(f"| {heading} |") :].splitlines()[2:]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in table]


def test_the_page_has_the_tables_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/protocol-model.md").read_text()
    needed = rows_of(page, "without | this is broken | in the system")
    assert needed == [(name, breaks.promise, breaks.config.name) for name, breaks in NEEDED.items()]
    second = rows_of(page, "condition | with this gone | this is broken without it")
    assert second == [(name, breaks.too, breaks.promise) for name, breaks in SECOND_LINES.items()]
    other = rows_of(page, "condition | why it is there")
    assert other == list(OTHER_REASONS.items())
    assert f"{len(ONE_CALL) + 1} systems of one call" in page
    assert f"{len(LINES)} of several calls" in page
