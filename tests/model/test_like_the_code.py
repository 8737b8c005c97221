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
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

import dial_worker.agent_left
import dial_worker.dial
import livekit_events.apply_event
import reconcile_calls.reconcile
import shared.canceling
import shared.ending
import shared.hang_up
import shared.line
import shared.livekit.client
from shared.call import Call
from shared.call_store import CallStore, Fence
from shared.dynamo import from_wire, to_wire
from shared.limits import LimitStore
from shared.numbers import NumberRecord, NumberStore, Suppression, ring_write
from tests.calls import call_record
from tests.model import gates, line
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
from tests.model.systems import LINES, NEEDED, NUMBERS, ONE_CALL, OTHER_REASONS, SECOND_LINES

# What each function of the protocol asks for and looks at, in the order in which it stands there.
REQUESTS: dict[ModuleType, dict[str, str]] = {
    dial_worker.dial: {
        "dial": (
            "line.admit_one _until_its_turn _standing _decide _end_unrung _end_unrung _wait_for_rules _enter_line "
            "_enter_line _wait _slots_item _wait_for_slot _may_try_trunk _enter_line _lease _dial_leased"
        ),
        "_until_its_turn": "_enter_line",
        "_wait_for_rules": "_enter_line line.admit_one",
        "_standing": "limits.standing",
        "_lease": "calls.take_lease",
        "_dial_leased": (
            "_lease_over _take_slot _lease_over _prepare_room _await_agent _try_again _lease_over _end _clear "
            "_reserve_trunk limits.trunk _leave_room _wait _fence_and_dial"
        ),
        # The model of one number has these five.
        "_fence_and_dial": (
            "limits.standing _decide _may_fence _undo_late_fence calls.fence ring_write _dial_fenced _lease_over "
            "_clear"
        ),
        "_may_fence": "_lease_over _end _leave_room _wait _may_try_trunk _leave_room _enter_line",
        "_undo_late_fence": "calls.get _still_mine _lease_over _put_back",
        "_un_fence_late": "_end _delete_room _put_back",
        "_put_back": "calls.unfence numbers.forget_ring _send _still_mine _end",
        "_take_slot": "limits.take_slot _wait_for_slot calls.note_slots_item",
        "_wait_for_slot": "line.crowd _enter_line line.admit_behind",
        "_reserve_trunk": "limits.reserve_trunk",
        "_may_try_trunk": "limits.claim_probe",
        "_prepare_room": "delete_room livekit.create_room",
        "_await_agent": (
            "livekit.view_room livekit.delete_lost_dispatches _lease_over livekit.dispatch_agent calls.get"
        ),
        "_dial_fenced": "_lease_over _un_fence_late livekit.dial _lease_over _handle_error _handle_answer",
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
        "_un_fence": "_end _put_back",
        "_end_dial": "_end",
        "_end": "end_call _clear",
        "_clear": "clear_with_room _delete_room",
        "_delete_room": "delete_room",
        "_try_again": "_end _wait",
        "_wait": "calls.wait _send _clear_if_canceled",
        "_clear_if_canceled": "_clear",
        "_enter_line": (
            "_lease _lease_over limits.free_slot calls.enter_line line.admit_one _wait _clear_if_canceled"
        ),
        "_leave_room": "_lease_over _delete_room",
        "_end_unrung": "_end line.admit_one",
        "_send": "dial_queue.send",
    },
    shared.line: {
        "free_slot": "limits.free_slot admit_one",
        "admit_one": "_admit_one",
        "_admit_one": "calls.line _claim _send _keep_crowded",
        "admit_behind": "calls.line _admit_one _claim _send",
        "fill": "calls.line limits.slots _outstanding _fill _keep_crowded _outstanding _fill",
        "_fill": "calls.line _claim _send",
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
    "_decide",
    "ring_write",
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
    writing = {"_update", "_transition", "put_item", "transact_write_items"}
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
    assert set(gates.MEANINGS) <= set(MEANINGS)


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


# ── the number's record ─────────────────────────────────────────────────────────────────────────────

ENDLESS = Suppression("sales", "asked", 1)
UNKNOWN = NumberRecord("w", "+15550100")
KNOWN = NumberRecord("w", "+15550100", (ENDLESS,), {"another": 5}, "v1")
AS_READ = [(UNKNOWN, "attribute_not_exists(version)", "SET"), (KNOWN, "version = :seen", "REMOVE")]


class NumbersRecorder:
    """Takes the place of the DynamoDB client: it has the one item, and only updates. Stores the last one."""

    def __init__(self, record: NumberRecord) -> None:
        suppressed = {one.scope: one.to_item() for one in record.suppressions}
        stored = {"suppressed": suppressed, "rings": record.rings, "version": record.version}
        self.item = {"Item": to_wire(stored)} if record.version else {}
        self.request: dict[str, Any] = {}

    def get_item(self, **request: Any) -> dict[str, Any]:
        assert request["ConsistentRead"]
        return self.item

    def update_item(self, **request: Any) -> dict[str, Any]:
        self.request = request
        return {}


@pytest.mark.parametrize(("seen", "condition", "expires"), AS_READ, ids=["unknown", "known"])
def test_the_fence_has_the_number_as_it_was_read(seen: NumberRecord, condition: str, expires: str) -> None:
    """`the number as read`, `a ring changes the version`, and how long the item lives."""
    (ring,) = ring_write("numbers", seen, "call", counted=True, now_ms=9).items()
    (check,) = ring_write("numbers", seen, "call", counted=False, now_ms=9).items()
    assert (ring[0], check[0]) == ("Update", "ConditionCheck")
    assert ring[1]["ConditionExpression"] == check[1]["ConditionExpression"] == condition
    assert ring[1]["Key"] == check[1]["Key"]
    sets, _, removes = ring[1]["UpdateExpression"].partition(" REMOVE ")
    assert attributes(sets).startswith("SET rings, version, workspaceId, #number")
    # As long as the rings count; for ever with a suppression that has no end.
    assert "expiresAt" in (sets if expires == "SET" else removes)
    values = from_wire(ring[1]["ExpressionAttributeValues"])
    assert values[":rings"]["call"] == 9
    assert values.get(":seen") == seen.version != values[":new"]


@pytest.mark.parametrize("write", ["suppress", "release"])
@pytest.mark.parametrize(("seen", "condition", "expires"), AS_READ, ids=["unknown", "known"])
def test_a_suppression_is_written_as_the_model_has_it(
    seen: NumberRecord, condition: str, expires: str, write: str
) -> None:
    """An update on the condition of what was read, which changes the version and leaves the rings."""
    recorder = NumbersRecorder(seen)
    store = NumberStore(recorder, "numbers")  # type: ignore[arg-type]
    if write == "suppress":
        store.suppress("w", seen.number, Suppression("all", "asked", 1, until_ms=99), 9)
    else:
        store.release("w", seen.number, None, 9)
    if write == "release" and not seen.suppressions:
        assert not recorder.request
        return
    request = recorder.request
    assert request["ConditionExpression"] == condition
    sets, _, removes = request["UpdateExpression"].partition(" REMOVE ")
    assert attributes(sets).startswith("SET suppressed, version, workspaceId, #number")
    assert "rings" not in request["UpdateExpression"]
    values = from_wire(request["ExpressionAttributeValues"])
    assert values.get(":seen") == seen.version != values[":new"]
    assert "expiresAt" in (removes if ENDLESS.scope in values[":suppressed"] else sets)


def test_only_the_un_fenced_ring_is_removed() -> None:
    recorder = NumbersRecorder(KNOWN)
    NumberStore(recorder, "numbers").forget_ring("w", KNOWN.number, "call", 9)  # type: ignore[arg-type]
    assert recorder.request["UpdateExpression"] == "REMOVE rings.#call SET version = :new"
    assert recorder.request["ConditionExpression"] == "rings.#call = :at"
    assert recorder.request["ExpressionAttributeNames"] == {"#call": "call"}
    assert from_wire(recorder.request["ExpressionAttributeValues"])[":at"] == 9


class FenceRecorder:
    """Takes the place of the DynamoDB client: gives these answers to the fence, one after the other."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []

    def transact_write_items(self, **request: Any) -> None:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer


def _cancelled(of_call: str, item: Call | None = None) -> ClientError:
    reason: dict[str, Any] = {"Code": of_call}
    if item is not None:
        reason["Item"] = to_wire(item.to_item())
    error = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": [reason, {"Code": "None"}]}
    return ClientError(error, "TransactWriteItems")  # type: ignore[arg-type]


def fence(recorder: FenceRecorder) -> Fence:
    seen, number = call_record(lease_id="lease"), ring_write("numbers", KNOWN, "call", counted=True, now_ms=9)
    return CallStore(recorder, "calls").fence(  # type: ignore[arg-type]
        seen, "room", "+1", [], number, "token", 9, lambda: False
    )


def test_an_unclear_fence_is_repeated_with_its_token() -> None:
    in_progress = ClientError({"Error": {"Code": "TransactionInProgressException"}}, "TransactWriteItems")
    recorder = FenceRecorder(ReadTimeoutError(endpoint_url="x"), in_progress, None)
    assert fence(recorder).won
    first, *others = recorder.requests
    assert first["ClientRequestToken"] == "token"
    assert others == [first, first]


def test_a_fence_that_was_cancelled_is_decided_anew() -> None:
    """What the worker makes of a conflict, of its own earlier copy, and of another's fence."""
    cancelled = fence(FenceRecorder(_cancelled("TransactionConflict")))
    assert (cancelled.won, cancelled.again) == (False, True)
    mine = call_record(status="dialing", lease_id="lease")
    assert fence(FenceRecorder(_cancelled("ConditionalCheckFailed", mine))).won
    other = call_record(status="dialing", lease_id="other")
    lost = fence(FenceRecorder(_cancelled("ConditionalCheckFailed", other)))
    assert (lost.won, lost.again) == (False, False)


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
            asks = re.fullmatch(r"(calls|limits|livekit|dial_queue|line|numbers)\.(?!calls$|table$)\w+", text)
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
    assert f"{len(NUMBERS)} of one number" in page
