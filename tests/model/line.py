"""Several calls of one workspace, its slots and its line: functions/shared/line.py and what the processes do with
it.

Of a call only what the line needs is here: whether it waits, is admitted, leased, rings or has ended; rooms,
agents and outcomes of a dial are in the model of one call (state.py). A process takes the role of a worker, of the
process that ends a call, or of the reconciler, one request a step. The conditions of the record's writes are those
that CallStore sends to DynamoDB, as in record.py.

    - Calls are accepted in the order of their numbers, which is the order of their turns.
    - A call's message may come at any time while it neither waits in the line nor is admitted. The messages of an
      admission are counted: sent once by its claim, again by the reconciler, lost or delivered twice by a fault.
    - The index shows a change of a record at some later time, or only the next change.
    - A lease outlives its holder. `crowdedUntil` may lapse at any time; then newcomers may overtake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model.conditions import IN_FORCE
from tests.model.state import ADMITTED, ENDED, NO_SLOT_IN_LINE, QUEUED, SLOT_HELD, WAITS

SERVED = "once faults stop, every call gets a slot and no slot is left taken"
NOT_OVERTAKEN = "no newcomer takes a slot while another call waits for one"
IN_TURN = "the first of the line is admitted first"
BY_ONE = "a call is admitted once"
FOR_A_SLOT = "an admission's message is sent for a slot that became free"
# The call rings, or talks.
UNDER_WAY = "under way"
# Of `crowdedUntil`: set; it has lapsed, or the call in the line did not wait for a slot.
CROWDED, LAPSED = "crowded", "lapsed"


class Call(NamedTuple):
    """A record, and what the index and the queue have of it. status: "" before it is accepted.

    line: lineOf, WAITS or ADMITTED. shown: the same as the index shows it. admitted: whether it has an admittedAt.
    item: whether it has a slotsItem. due: ended, and its slot not freed yet. messages: of its admission, under
    way.
    """

    status: str = ""
    line: str = ""
    shown: str = ""
    admitted: bool = False
    lease: int = 0
    live: bool = False
    item: bool = False
    due: bool = False
    messages: int = 0


class Process(NamedTuple):
    """at: what it does next, "" when it does nothing. call: which it works on, with which lease of it.

    Of a worker: newcomer: the call was not admitted when it was read; may_hold: it may hold a slot; free: how many
    slots were seen free; refused: the call has been refused one.
    Of one that admits: entries: of the index, not tried yet; tried: the first of them was; claimed: those won;
    wanted: how many are to be; reasons: how many slots there are for them; own: at last it admits its own call;
    more: others wait behind those that it admits.
    """

    at: str = ""
    call: int = -1
    lease: int = 0
    newcomer: bool = False
    may_hold: bool = False
    free: int = 0
    refused: bool = False
    entries: tuple[int, ...] = ()
    tried: bool = False
    claimed: tuple[int, ...] = ()
    wanted: int = 0
    reasons: int = 0
    own: bool = False
    more: bool = False


class Faults(NamedTuple):
    """How often each may still happen."""

    crashes: int = 0
    losses: int = 0  # a message is lost
    doubles: int = 0  # a message is delivered twice
    cancels: int = 0  # a queued call is canceled
    failures: int = 0  # LiveKit fails before the dial: the call waits for its next message, with its slot
    pauses: int = 0  # dialling is paused just before the dial: the call goes into the line
    late_slots: int = 0  # a request for a slot is executed once more, at any later moment
    old_ends: int = 0  # an earlier version ends a call, and leaves its entry in the index


class State(NamedTuple):
    calls: tuple[Call, ...]
    slots: frozenset[int] = frozenset()
    crowded: str = ""
    # Their order has no meaning and is kept sorted.
    processes: tuple[Process, ...] = ()
    faults: Faults = Faults()
    # The request for a slot that is under way: whose, and whether as an admitted call.
    late: tuple[int, bool] | tuple[()] = ()
    broken: str = ""


class LineConfig(NamedTuple):
    """limit: how many slots there are. first: how many entries are read to admit one call. stale: the index shows
    a change later. lapses: `crowdedUntil` may be over while calls wait. ignored, without: as in state.Config.
    """

    name: str
    faults: Faults = Faults()
    calls: int = 3
    limit: int = 1
    processes: int = 2
    first: int = 2
    stale: bool = False
    lapses: bool = False
    ignored: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


class Step(NamedTuple):
    """fair: happens by itself, sooner or later, once faults stop. That further calls are accepted is not."""

    label: str
    after: State
    fair: bool = True


IDLE = Process()

# What the named parts of a condition mean: of the record, the writer's lease, and the partition of the index in
# which it found the call.
MEANINGS: dict[str, Callable[[Call, int, str], bool]] = {
    "queued": lambda call, lease, line: call.status == QUEUED,
    "not queued": lambda call, lease, line: call.status != QUEUED,
    "no live lease": lambda call, lease, line: not call.live,
    "not waiting": lambda call, lease, line: True,
    "not in line": lambda call, lease, line: not call.line or call.admitted,
    "not admitted": lambda call, lease, line: not call.admitted,
    "no slots item": lambda call, lease, line: not call.item,
    "no lease": lambda call, lease, line: call.lease == 0,
    "lease mine": lambda call, lease, line: call.lease == lease != 0,
    "lease live": lambda call, lease, line: call.live,
    "no hangup": lambda call, lease, line: True,
    "line as seen": lambda call, lease, line: call.line == line,
    # A call keeps its times, and its turn.
    "times as seen": lambda call, lease, line: True,
    "turn as seen": lambda call, lease, line: True,
}


def initial(config: LineConfig) -> State:
    return State((Call(),) * config.calls, processes=(IDLE,) * config.processes, faults=config.faults)


def broken_promise(config: LineConfig, state: State) -> str:
    if state.broken:
        return state.broken
    for number, call in enumerate(state.calls):
        waits = call.status == QUEUED and call.line == WAITS
        if waits and number in state.slots and NO_SLOT_IN_LINE not in config.ignored:
            return NO_SLOT_IN_LINE
        if call.status == UNDER_WAY and number not in state.slots:
            return SLOT_HELD
    return SLOT_HELD if len(state.slots) > config.limit else ""


def served(state: State) -> bool:
    return not state.slots and all(call.status in ("", ENDED) for call in state.calls)


def changes(before: State, after: State) -> str:
    told = []
    for number, (was, now) in enumerate(zip(before.calls, after.calls, strict=True)):
        told += [
            f"call {number} {name} {value if value not in ('', 0, False) or name == 'live' else 'none'}"
            for name, value in now._asdict().items()
            if value != getattr(was, name)
        ]
    if before.slots != after.slots:
        told.append(f"slots {sorted(after.slots)}")
    if before.crowded != after.crowded:
        told.append(after.crowded)
    return ", ".join(told)


def steps(config: LineConfig, state: State) -> Iterator[Step]:
    for step in _steps(config, state):
        calls = tuple(_simplified(config, call) for call in step.after.calls)
        yield step._replace(after=step.after._replace(calls=calls))


def _simplified(config: LineConfig, call: Call) -> Call:
    """Without what no later step reads."""
    if not config.stale and call.shown != call.line:
        call = call._replace(shown=call.line)
    if call.status == ENDED and not (call.due or call.messages or call.live):
        call = call._replace(item=False, admitted=False, lease=0)
    return call


def _steps(config: LineConfig, state: State) -> Iterator[Step]:
    started: set[Process] = set()
    for process in state.processes:
        if process not in started:
            started.add(process)
            yield from (_starts(config, state) if process == IDLE else _goes_on(config, state, process))
    yield from _outside(config, state)


# ── what the steps share ────────────────────────────────────────────────────────────────────────────


def _put(state: State, old: Process, new: Process) -> State:
    others = list(state.processes)
    others.remove(old)
    return state._replace(processes=tuple(sorted((*others, new))))


def _set(state: State, number: int, **changed: object) -> State:
    calls = state.calls
    call = calls[number]._replace(**changed)  # type: ignore[arg-type]
    return state._replace(calls=(*calls[:number], call, *calls[number + 1 :]))


def _spend(state: State, fault: str) -> State:
    return state._replace(faults=state.faults._replace(**{fault: getattr(state.faults, fault) - 1}))


def _breaks(config: LineConfig, state: State, promise: str) -> State:
    return state if state.broken or promise in config.ignored else state._replace(broken=promise)


def _won(config: LineConfig, call: Call, write: str, lease: int = 0, line: str = WAITS) -> bool:
    return all(switch in config.without or MEANINGS[name](call, lease, line) for switch, name in IN_FORCE[write])


def _new_lease(state: State, number: int) -> int:
    """One that no process has of this call."""
    taken = {process.lease for process in state.processes if process.call == number}
    return next(lease for lease in range(1, len(state.processes) + 2) if lease not in taken)


def _shown(state: State, line: str) -> tuple[int, ...]:
    return tuple(number for number, call in enumerate(state.calls) if call.shown == line)


def _free(config: LineConfig, state: State) -> int:
    return max(0, config.limit - len(state.slots))


def _without_slot(state: State, number: int) -> State:
    return state._replace(slots=state.slots - {number})


def _one_more(state: State, number: int) -> int:
    """Of an admission's messages under way one is counted, or two where they come twice."""
    return min(2 if state.faults.doubles else 1, state.calls[number].messages + 1)


def _set_crowded(config: LineConfig, state: State) -> State:
    return state if "a call without a slot crowds it" in config.without else state._replace(crowded=CROWDED)


# ── what a process begins with ──────────────────────────────────────────────────────────────────────


def _starts(config: LineConfig, state: State) -> Iterator[Step]:
    for number, call in enumerate(state.calls):
        if call.status == QUEUED:
            yield from _message(config, state, number, call)
        elif call.status == UNDER_WAY:
            ended = _set(state, number, status=ENDED, due=True)
            yield Step(f"call {number} ends", _put(ended, IDLE, Process("free", number)))
        elif call.status == ENDED:
            yield from _ended(config, state, number, call)
        if number in state.slots:
            yield from _repair(config, state, number, call)
    if _shown(state, WAITS) and "the reconciler fills the line" not in config.without:
        yield Step("the reconciler reads the slots", _put(state, IDLE, Process("fill", free=_free(config, state))))


def _message(config: LineConfig, state: State, number: int, call: Call) -> Iterator[Step]:
    """A message of a queued call comes, and the record and the slots are read."""
    label = f"a worker gets call {number}'s message"
    if call.messages and (call.live or call.line == WAITS):
        yield Step(f"{label} for nothing", _set(state, number, messages=call.messages - 1), False)
    if call.live or call.line == WAITS or (call.line == ADMITTED and not call.messages):
        return
    behind = not call.admitted and state.crowded == CROWDED
    behind = behind and "a newcomer reads whether others wait" not in config.without
    goes_on = number in state.slots or (_free(config, state) and not behind)
    process = Process(
        "lease" if goes_on else "crowd",
        number,
        newcomer=not call.admitted,
        may_hold=call.lease > 0 or call.item,
        free=0 if goes_on else _free(config, state),
    )
    if call.line == ADMITTED:
        if state.faults.doubles:
            yield Step(f"{label}, which comes twice", _put(_spend(state, "doubles"), IDLE, process), False)
        state = _set(state, number, messages=call.messages - 1)
    yield Step(label, _put(state, IDLE, process))


def _ended(config: LineConfig, state: State, number: int, call: Call) -> Iterator[Step]:
    if call.due and not call.live:
        label = f"the reconciler reads that call {number} has ended"
        yield Step(label, _put(state, IDLE, Process("free", number)))
    if call.messages:
        got = _set(state, number, messages=call.messages - 1)
        admits = not call.item or "the message of a call that had a slot admits no other" in config.without
        if admits and "the message of a call that is gone admits the next" not in config.without:
            got = _put(got, IDLE, Process("query", wanted=1, reasons=int(not call.item)))
        yield Step(f"a worker gets the message of call {number}, which has ended", got)


def _repair(config: LineConfig, state: State, number: int, call: Call) -> Iterator[Step]:
    if "slots are repaired" in config.without:
        return
    if call.status == ENDED:
        yield Step(f"the repair frees call {number}'s slot", _without_slot(state, number))
    elif call.line == WAITS and "the repair frees the slots of calls in the line" not in config.without:
        holds = "the repair holds a call in the line" not in config.without
        found = Process("hold" if holds else "free_unheld", number)
        yield Step(f"the repair finds the slot of call {number}, which waits", _put(state, IDLE, found))


# ── a process under way ─────────────────────────────────────────────────────────────────────────────


def _goes_on(config: LineConfig, state: State, process: Process) -> Iterator[Step]:
    number, without = process.call, config.without

    def to(label: str, after: State, new: Process = IDLE, fair: bool = True) -> Step:
        return Step(label, _put(after, process, new), fair)

    if state.faults.crashes:
        yield to(f"a process dies before `{process.at}`", _spend(state, "crashes"), fair=False)
    if number < 0 or process.at in ("query", "claim", "send"):
        yield from _admission(config, state, process, to)
        return
    call = state.calls[number]
    freed = "enter" if "a slot is freed before the line" in without else "free_for_line"
    cleared = Process("free", number)
    match process.at:
        case "lease" | "lease_for_line" if not _won(config, call, "take_lease"):
            yield to(f"call {number} is not leased", state)
        case "lease" | "lease_for_line":
            lease = _new_lease(state, number)
            after = _set(state, number, lease=lease, live=True, line="", item=True)
            at = "slot" if process.at == "lease" else freed
            yield to(f"a worker leases call {number}", after, process._replace(at=at, lease=lease, may_hold=True))
        case "slot":
            yield from _slot(config, state, process, call, to)
        case "fence" if not _won(config, call, "fence", process.lease):
            # Canceled meanwhile: this process took the slot.
            yield to("the fence is lost", state, cleared if call.status == ENDED else IDLE)
        case "fence":
            rings = _set(state, number, status=UNDER_WAY, lease=0, live=False, admitted=False)
            yield to(f"call {number} rings", rings)
            if state.faults.failures:
                waits = _set(_spend(state, "failures"), number, lease=0, live=False)
                yield to(f"LiveKit fails, call {number} waits", waits, fair=False)
            if state.faults.pauses:
                paused = Process(freed, number, process.lease)
                yield to("dialling is paused", _spend(state, "pauses"), paused, fair=False)
        case "crowd":
            after, free = state, 0 if process.refused else process.free
            if state.crowded != CROWDED:
                after, free = _set_crowded(config, state), _free(config, state)
            at = "enter" if process.lease or not process.may_hold else "lease_for_line"
            yield to("a worker stores that others wait", after, process._replace(at=at, free=free))
        case "free_for_line":
            after = _without_slot(state, number)
            yield to(f"call {number}'s slot is freed for the line", after, process._replace(at="enter"))
        case "enter":
            yield from _enter(config, state, process, call, to)
        case "behind":
            outstanding = len(_shown(state, ADMITTED))
            if outstanding >= process.free and "a newcomer counts those admitted" not in without:
                yield to("another is admitted for the free slot", state)
            else:
                reasons = int(process.newcomer and outstanding < process.free)
                yield to("a slot is free", state, Process("query", number, own=True, wanted=1, reasons=reasons))
        case "free":
            freed_now = number in state.slots
            after = _without_slot(_set(state, number, due=False), number)
            admits = freed_now or "only a slot that was really freed admits" in without
            admits = admits and "a freed slot admits the first" not in without and state.crowded == CROWDED
            query = Process("query", wanted=1, reasons=int(freed_now))
            label = f"call {number}'s slot is {'freed' if freed_now else 'free already'}"
            yield to(label, after, query if admits else IDLE)
        case "free_unheld":
            yield to(f"the repair frees call {number}'s slot", _without_slot(state, number))
        case "hold" if not _won(config, call, "hold"):
            yield to(f"the repair finds call {number} admitted", state)
        case "hold":
            lease = _new_lease(state, number)
            held = Process("free_for_line", number, lease)
            yield to(f"the repair holds call {number}", _set(state, number, lease=lease, live=True), held)


To = Callable[..., Step]


def _slot(config: LineConfig, state: State, process: Process, call: Call, to: To) -> Iterator[Step]:
    number, without = process.call, config.without
    own = number in state.slots and "take_slot: its own slot" not in without
    behind = not call.admitted and state.crowded == CROWDED and "take_slot: not crowded" not in without
    if state.faults.late_slots and not state.late:
        late = _spend(state, "late_slots")._replace(late=(number, call.admitted))
        yield Step(f"call {number}'s request for a slot is under way once more", late, False)
    if not own and (behind or not (_free(config, state) or "take_slot: limit" in without)):
        yield to(f"call {number} gets no slot", state, process._replace(at="crowd", refused=True))
        return
    after = state._replace(slots=state.slots | {number})
    if not own and not call.admitted and state.crowded != LAPSED and any(one.line == WAITS for one in state.calls):
        after = _breaks(config, after, NOT_OVERTAKEN)
    yield to(f"call {number} takes a slot", after, Process("fence", number, process.lease))


def _enter(config: LineConfig, state: State, process: Process, call: Call, to: To) -> Iterator[Step]:
    number, lease = process.call, process.lease
    if not _won(config, call, "enter_line" if lease else "enter_line_free", lease):
        clears = call.status == ENDED and lease and lease == call.lease
        yield to("the line is not entered", state, Process("free", number) if clears else IDLE)
        return
    after = _set(state, number, line=WAITS, admitted=False, lease=0, live=False, item=False)
    if not state.crowded and not process.newcomer:
        # It waits because dialling is paused: that does not hold up newcomers once it is not.
        after = after._replace(crowded=LAPSED)
    admits = process.newcomer or "an admitted call that returns admits no other" in config.without
    behind = Process("behind", number, free=process.free, newcomer=process.newcomer)
    yield to(f"call {number} enters the line", after, behind if process.free and admits else IDLE)


# ── admission ───────────────────────────────────────────────────────────────────────────────────────


def _admission(config: LineConfig, state: State, process: Process, to: To) -> Iterator[Step]:
    without = config.without
    match process.at:
        case "query":
            entries = _shown(state, WAITS)[: config.first]
            read = process._replace(entries=entries, more=len(entries) > 1)
            yield to("the line is read", state, _next(read))
        case "fill":
            after, outstanding = state, 0
            for number in _shown(state, ADMITTED):
                call = state.calls[number]
                outstanding += call.status == QUEUED and not call.live
                after = _leave_line(config, after, number, ADMITTED)
            reasons = max(0, process.free - outstanding)
            wanted = process.free if "a fill counts those admitted" in without else reasons
            if not wanted:
                yield to("the reconciler finds no slot free", _set_crowded(config, after))
                return
            entries = _shown(state, WAITS)[: wanted + config.first]
            read = Process("claim", entries=entries, wanted=wanted, reasons=reasons, more=len(entries) > wanted)
            yield to("the reconciler reads the line", after, _next(read))
        case "claim":
            yield from _claim(config, state, process, to)
        case "send":
            for number in process.claimed:
                state = _set(state, number, messages=_one_more(state, number))
            lost = state
            if len(process.claimed) > process.reasons:
                state = _breaks(config, state, FOR_A_SLOT)
            label = f"messages: {', '.join(f'call {number}' for number in process.claimed)}"
            yield to(label, _set_crowded(config, state) if process.more else state)
            if state.faults.losses:
                for number in process.claimed:
                    lost = _set(lost, number, messages=0)
                yield to(f"{label}, lost", _spend(lost, "losses"), fair=False)


def _next(process: Process) -> Process:
    """What follows what was claimed, or not, of the entries."""
    if process.entries and len(process.claimed) < process.wanted:
        return process._replace(at="claim")
    if process.claimed:
        return Process("send", claimed=process.claimed, reasons=process.reasons, more=process.more)
    # The index does not show the process's own call yet.
    return process._replace(at="claim", entries=(process.call,), own=False, tried=True) if process.own else IDLE


def _claim(config: LineConfig, state: State, process: Process, to: To) -> Iterator[Step]:
    """One process: the first in turn, then any of the others. The reconciler: one after the other."""
    any_of_them = process.tried or "the first in turn is tried first" in config.without
    for number in process.entries if any_of_them else process.entries[:1]:
        call = state.calls[number]
        rest = process._replace(entries=tuple(one for one in process.entries if one != number), tried=True)
        if not _won(config, call, "admit"):
            yield to(f"call {number} is not to be had", _leave_line(config, state, number, WAITS), _next(rest))
            continue
        after = _set(state, number, line=ADMITTED, admitted=True, lease=0, live=False)
        if call.line != WAITS:
            after = _breaks(config, after, BY_ONE)
        if not process.tried and number != process.entries[0]:
            after = _breaks(config, after, IN_TURN)
        yield to(f"call {number} is admitted", after, _next(rest._replace(claimed=(*process.claimed, number))))


def _leave_line(config: LineConfig, state: State, number: int, line: str) -> State:
    """Removes the entry of a call that is no longer queued."""
    call = state.calls[number]
    if call.status == QUEUED or "the entry of a call that is gone is removed" in config.without:
        return state
    return _set(state, number, line="") if _won(config, call, "leave_line", line=line) else state


# ── outside of the processes ────────────────────────────────────────────────────────────────────────


def _outside(config: LineConfig, state: State) -> Iterator[Step]:
    faults = state.faults
    accepted = next((number for number, call in enumerate(state.calls) if not call.status), None)
    if accepted is not None:
        yield Step(f"call {accepted} is accepted", _set(state, accepted, status=QUEUED), False)
    for number, call in enumerate(state.calls):
        if call.shown != call.line:
            yield Step(f"the index shows call {number}", _set(state, number, shown=call.line))
        holders = (process.call == number and process.lease == call.lease for process in state.processes)
        if call.live and not any(holders):
            yield Step(f"the lease of call {number} is over", _set(state, number, live=False))
        admitted = call.status == QUEUED and call.line == ADMITTED
        if admitted and "the reconciler repeats an admission's message" not in config.without:
            again = _set(state, number, messages=_one_more(state, number))
            yield Step(f"the reconciler sends call {number}'s message again", again, not call.messages)
        if call.status == QUEUED and faults.cancels:
            # With an attempt it stays due.
            gone = _set(_spend(state, "cancels"), number, status=ENDED, line="", due=call.item)
            yield Step(f"call {number} is canceled", gone, False)
        if call.status == QUEUED and call.line and faults.old_ends:
            gone = _set(_spend(state, "old_ends"), number, status=ENDED, due=False)
            yield Step(f"call {number} is canceled by an earlier version", gone, False)
        if call.messages and faults.losses:
            lost = _set(_spend(state, "losses"), number, messages=call.messages - 1)
            yield Step(f"a message of call {number} is lost", lost, False)
    if state.crowded == CROWDED and config.lapses:
        yield Step("crowdedUntil is over", state._replace(crowded=LAPSED), False)
    if state.late:
        number, admitted = state.late
        taken = number in state.slots or (
            len(state.slots) < config.limit and (admitted or state.crowded != CROWDED)
        )
        after = state._replace(late=(), slots=state.slots | {number} if taken else state.slots)
        yield Step(f"call {number}'s late request for a slot is {'executed' if taken else 'lost'}", after, False)
