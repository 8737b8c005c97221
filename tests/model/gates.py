"""Calls to one number and what may keep it from ringing: opt-outs and their removal, the cap on rings, the window,
the pause switch and the table's marker (functions/shared/gates.py, numbers.py, and the fence of call_store.py).

Of a call only what lies between its message and its dial is here, without slots, rooms and agents: they are in the
model of one call (state.py). A worker, and each process that writes a suppression, makes one request a step. The
conditions of the call's writes are those that CallStore sends to DynamoDB, as in record.py.

    - The clock has few instants. All that happens in one of them takes less than two seconds, unless the step says
      otherwise; two instants are further apart than the period of the cap, and than a decision may be old.
    - The cap is one ring in a period. It is there or not, as the operator sets it.
    - A transaction is executed and answered, or its answer is lost, or nothing is known of it and it is executed
      later or never, or it is cancelled because another one is under way. The writes of suppressions and the
      removal of a ring may be executed once more at any later time too.
    - An opt-out counts as acknowledged from the answer to its request on, or, of an agent's, from the moment at
      which the report stands in the call's record, until a later request for the same scope is executed. A request
      that was answered long ago and is executed once more is no such request.
    - The table is not lost within the two seconds between a worker's reading and its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model.conditions import IN_FORCE
from tests.model.state import DIALING, ENDED, HELD_BY_ITS_DIALLER, ONE_END, ONE_RING, QUEUED

NOT_FENCED = "no call is fenced after an opt-out of its number was acknowledged"
CAPPED = "no number rings more often than its cap allows"
IN_WINDOW = "no phone is dialled when its ringing could outlast the window"
LET = "no call is fenced that the pause switch or the missing marker forbade when it was read"
FENCED_AT_ONCE = "a transaction is sent at most two seconds after what it rests on was read"
DIALLED_AT_ONCE = "no phone is dialled on what was read long ago"
NO_WAIT_FOR_ITSELF = "no call waits because of a ring of its own"
NOT_EARLY = "no call is fenced before the time that it was given"
NOT_LEFT = "no worker that lives leaves a call that it fenced"
ALL_END = "once faults stop, every call ends"

OF_THE_NUMBER = frozenset(
    (
        NOT_FENCED,
        CAPPED,
        IN_WINDOW,
        LET,
        FENCED_AT_ONCE,
        DIALLED_AT_ONCE,
        NO_WAIT_FOR_ITSELF,
        NOT_EARLY,
        NOT_LEFT,
        ALL_END,
        HELD_BY_ITS_DIALLER,
        ONE_END,
        ONE_RING,
    )
)

ALL, SALES, SERVICE = "all", "sales", "service"
# The end of a suppression without an end, or of an item that has one.
NEVER = 9


class Call(NamedTuple):
    """leases: how many were taken. fenced_by, fenced_at: the lease of the fence and the time that it stored.
    counted: its fence stored a ring. rung: a dial was requested that LiveKit did not refuse. not_before: the
    instant at which it is scheduled.
    """

    status: str = QUEUED
    lease: int = 0
    live: bool = False
    line: bool = False
    leases: int = 0
    fenced_by: int = 0
    fenced_at: int = -1
    counted: bool = False
    rung: bool = False
    not_before: int = 0


class Number(NamedTuple):
    """The number's item. version: 0 when there is none. suppressed: (scope, until, by which operation). rings:
    (call, instant, lease of the fence): two fences of a call never have the same time. expires: DynamoDB's TTL.
    """

    version: int = 0
    suppressed: tuple[tuple[str, int, int], ...] = ()
    rings: tuple[tuple[int, int, int], ...] = ()
    expires: int = NEVER


class Reading(NamedTuple):
    """What a worker decided on. at: the clock. fresh: that is less than two seconds ago, and the worker has waited
    for nothing since. allowed: neither the switch nor the marker forbade it. counts: the workspace has a cap.
    """

    version: int = 0
    at: int = -1
    fresh: bool = False
    allowed: bool = False
    counts: bool = False


class Worker(NamedTuple):
    """at: what it does next, "" when it does nothing. tries: transactions of this lease that were decided. since:
    the instant of its last reading. not_before: of the call as it was read.
    """

    at: str = ""
    call: int = -1
    lease: int = 0
    reading: Reading = Reading()
    tries: int = 0
    token: int = 0
    since: int = -1
    not_before: int = 0


class Operation(NamedTuple):
    """What someone asks about the number. kind: `put` or `delete` (the API), `report` (an agent's opt-out)."""

    kind: str
    scope: str = ALL
    until: int = NEVER


class Process(NamedTuple):
    """One that carries out an operation. superseded: another operation has been executed after its write."""

    at: str = "start"
    version: int = 0
    seen: tuple[tuple[str, int, int], ...] = ()
    superseded: bool = False


class Copy(NamedTuple):
    """A request under way. kind: "" when there is none."""

    kind: str = ""
    call: int = -1
    lease: int = 0
    token: int = 0
    reading: Reading = Reading()
    operation: int = -1
    not_before: int = 0
    seen: Process = Process()


class Faults(NamedTuple):
    """How often each may still happen."""

    crashes: int = 0
    stalls: int = 0  # a lease is over though its worker goes on
    conflicts: int = 0  # a transaction is cancelled, as another one or a plain write is under way
    cuts: int = 0  # a write is executed and its answer is lost
    copies: int = 0  # nothing is known of a request, which is executed later or never
    refusals: int = 0  # LiveKit refuses a dial: nothing rings
    pauses: int = 0  # the operator pauses dialling, or resumes
    caps: int = 0  # the operator sets the cap, or removes it
    closes: int = 0  # the window closes
    losses: int = 0  # the table is lost, its marker with it
    cancels: int = 0
    moves: int = 0  # a queued call is given a later time


class State(NamedTuple):
    calls: tuple[Call, ...]
    number: Number = Number()
    marker: bool = True
    paused: bool = False
    capped: bool = True
    open: bool = True
    clock: int = 0
    # Their order has no meaning and is kept sorted.
    workers: tuple[Worker, ...] = ()
    processes: tuple[Process, ...] = ()
    copy: Copy = Copy()
    # Tokens of transactions that were executed, as (call, lease, token), while a request with one may come.
    executed: frozenset[tuple[int, int, int]] = frozenset()
    # The opt-outs that were acknowledged: (scope, until).
    acknowledged: frozenset[tuple[str, int]] = frozenset()
    # Phones that the cap counts and that were dialled at this instant.
    rang: int = 0
    faults: Faults = Faults()
    broken: str = ""


class GatesConfig(NamedTuple):
    """purposes: of the calls. operations: they begin in this order, each after the one before is done unless
    `at_once`. suppressed: what stands in the table and was acknowledged before. last: the clock's last instant, at
    which every call's time is up. leases: of each call. tries: so many transactions under one lease.
    copied: writes that are executed late.
    """

    name: str
    faults: Faults = Faults()
    purposes: tuple[str, ...] = (SALES, SALES)
    workers: int = 2
    operations: tuple[Operation, ...] = ()
    at_once: bool = False
    suppressed: tuple[tuple[str, int, int], ...] = ()
    capped: bool = True
    last: int = 1
    leases: int = 2
    tries: int = 2
    copied: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


class Step(NamedTuple):
    """fair: happens by itself, sooner or later, once faults stop."""

    label: str
    after: State
    fair: bool = True


IDLE = Worker()
DONE = Process("done")

# What the named parts of a condition mean: of the record, the writer's lease, and the call's time as it was read.
MEANINGS: dict[str, Callable[[Call, int, int], bool]] = {
    "queued": lambda call, lease, time: call.status == QUEUED,
    "dialing": lambda call, lease, time: call.status == DIALING,
    "no live lease": lambda call, lease, time: not call.live,
    "not waiting": lambda call, lease, time: True,
    "not in line": lambda call, lease, time: not call.line,
    "lease mine": lambda call, lease, time: call.lease == lease != 0,
    "lease live": lambda call, lease, time: call.live,
    "times as seen": lambda call, lease, time: call.not_before == time,
    # Hang-ups and LiveKit's events are in the model of one call.
    "no hangup": lambda call, lease, time: True,
    "nothing left": lambda call, lease, time: True,
    "no phone seen": lambda call, lease, time: True,
}


def initial(config: GatesConfig) -> State:
    number = (
        Number(1, config.suppressed, (), _expires(config, config.suppressed, 0)) if config.suppressed else Number()
    )
    return State(
        (Call(),) * len(config.purposes),
        number,
        capped=config.capped,
        workers=(IDLE,) * config.workers,
        processes=(Process(),) * len(config.operations),
        acknowledged=frozenset((scope, until) for scope, until, _ in config.suppressed),
        faults=config.faults,
    )


def broken_promise(config: GatesConfig, state: State) -> str:
    if state.broken:
        return state.broken
    for call in state.calls:
        if call.status == DIALING and call.fenced_by != call.lease and HELD_BY_ITS_DIALLER not in config.ignored:
            return HELD_BY_ITS_DIALLER
    return ""


def all_ended(state: State) -> bool:
    return all(call.status == ENDED for call in state.calls)


def changes(before: State, after: State) -> str:
    told = [
        f"call {number} {name} {value}"
        for number, (was, now) in enumerate(zip(before.calls, after.calls, strict=True))
        for name, value in now._asdict().items()
        if value != getattr(was, name) and name not in ("leases", "fenced_by", "fenced_at", "counted")
    ]
    told += [
        f"{name} {getattr(after.number, name) or 'none'}"
        for name in ("suppressed", "rings")
        if getattr(before.number, name) != getattr(after.number, name)
    ]
    if before.acknowledged != after.acknowledged:
        told.append(f"acknowledged {sorted(after.acknowledged) or 'none'}")
    return ", ".join(told)


def steps(config: GatesConfig, state: State) -> Iterator[Step]:
    for step in _steps(config, state):
        yield step._replace(after=_simplified(step.after))


def _steps(config: GatesConfig, state: State) -> Iterator[Step]:
    yield from _outside(config, state)
    for number in range(len(config.operations)):
        yield from _operate(config, state, number)
    for worker in dict.fromkeys(state.workers):
        if worker.at:
            yield from _goes_on(config, state, worker)
    if IDLE in state.workers:
        yield from _takes_message(config, state)


def _simplified(state: State) -> State:
    """Without what no later step reads; versions are renumbered, as only equal ones matter."""
    held = {(worker.call, worker.lease) for worker in state.workers} | {(state.copy.call, state.copy.lease)}
    readings = [*(worker.reading for worker in state.workers), state.copy.reading]
    readers = [*state.processes, state.copy.seen]
    versions = {state.number.version, *(one.version for one in readings), *(one.version for one in readers)} - {0}
    rank = {0: 0} | {version: place for place, version in enumerate(sorted(versions), 1)}

    def renumbered(reading: Reading) -> Reading:
        return reading._replace(version=rank[reading.version], fresh=reading.fresh and reading.at == state.clock)

    copy = state.copy._replace(
        reading=renumbered(state.copy.reading),
        seen=state.copy.seen._replace(version=rank[state.copy.seen.version]),
    )
    return state._replace(
        calls=tuple(
            Call(ENDED, rung=call.rung) if call.status == ENDED and (number, call.lease) not in held else call
            for number, call in enumerate(state.calls)
        ),
        number=state.number._replace(
            version=rank[state.number.version],
            rings=tuple(ring for ring in state.number.rings if ring[1] == state.clock),
        ),
        workers=tuple(sorted(worker._replace(reading=renumbered(worker.reading)) for worker in state.workers)),
        processes=tuple(one._replace(version=rank[one.version]) for one in state.processes),
        copy=copy,
        executed=frozenset(token for token in state.executed if token[:2] in held),
        acknowledged=frozenset(one for one in state.acknowledged if state.clock < one[1]),
    )


def _spend(state: State, fault: str) -> State:
    return state._replace(faults=state.faults._replace(**{fault: getattr(state.faults, fault) - 1}))


def _set(state: State, number: int, **changed: object) -> State:
    calls = list(state.calls)
    calls[number] = calls[number]._replace(**changed)  # type: ignore[arg-type]
    return state._replace(calls=tuple(calls))


def _put(state: State, before: Worker, after: Worker) -> State:
    workers = list(state.workers)
    workers.remove(before)
    return state._replace(workers=tuple(sorted([*workers, after])))


def _breaks(config: GatesConfig, state: State, promise: str) -> State:
    return state if state.broken or promise in config.ignored else state._replace(broken=promise)


def _won(config: GatesConfig, call: Call, write: str, lease: int = 0, time: int = 0) -> bool:
    return all(
        MEANINGS[name](call, lease, time) for switch, name in IN_FORCE[write] if switch not in config.without
    )


def _new_version(state: State) -> int:
    held = [worker.reading.version for worker in state.workers] + [one.version for one in state.processes]
    return max(state.number.version, state.copy.reading.version, state.copy.seen.version, *held, 0) + 1


def _expires(config: GatesConfig, suppressed: tuple[tuple[str, int, int], ...], clock: int) -> int:
    """The TTL of an item that is written now: it is removed at an instant after this one."""
    ends = [until for _, until, _ in suppressed]
    kept = clock if "an item lives as long as its rings count" not in config.without else clock - 1
    if NEVER in ends and "an item with an endless suppression has no end" not in config.without:
        return NEVER
    return max([kept, *(end - 1 for end in ends if end != NEVER)])


# ── a worker ────────────────────────────────────────────────────────────────────────────────────────


def _suppressed(state: State, purpose: str) -> bool:
    return any(scope in (ALL, purpose) and state.clock < until for scope, until, _ in state.number.suppressed)


def _decide(config: GatesConfig, state: State, number: int, not_before: int) -> tuple[str, State]:
    """`end`, `line` or `pass`; the state breaks a promise if the decision itself does."""
    without = config.without
    if _suppressed(state, config.purposes[number]):
        return "end", state
    if not state.open or state.clock < not_before:
        return "line", state
    rings = [ring for ring in state.number.rings if ring[1] == state.clock]
    own = [ring for ring in rings if ring[0] == number]
    if state.capped and len(rings) > len(own):
        return "line", state
    if state.capped and own and "a call's own ring does not count" in without:
        return "line", _breaks(config, state, NO_WAIT_FOR_ITSELF)
    if state.paused and "the pause switch is read" not in without:
        return "line", state
    if not state.marker and "without the marker nothing rings" not in without:
        return "line", state
    return "pass", state


def _read(state: State) -> Reading:
    allowed = state.marker and not state.paused
    return Reading(state.number.version, state.clock, True, allowed, state.capped)


def _takes_message(config: GatesConfig, state: State) -> Iterator[Step]:
    """The first reading, before the lease."""
    for number, call in enumerate(state.calls):
        if call.status != QUEUED or call.live or call.line or call.leases >= config.leases:
            continue
        answer, after = _decide(config, state, number, call.not_before)
        at = "lease" if answer == "pass" else answer
        worker = Worker(at, number, call.lease)
        if at == "lease" and "what may have changed is read again" in config.without:
            worker = worker._replace(reading=_read(state)._replace(fresh=False))
        yield Step(f"a worker reads for call {number}: {answer}", _put(after, IDLE, worker))


def _goes_on(config: GatesConfig, state: State, worker: Worker) -> Iterator[Step]:
    number, call, without = worker.call, state.calls[worker.call], config.without
    mine = call.lease == worker.lease != 0

    def to(label: str, after: State, new: Worker = IDLE, fair: bool = True) -> Step:
        return Step(label, _put(after, worker, new), fair)

    if state.faults.crashes:
        yield to(f"a worker dies before `{worker.at}` of call {number}", _spend(state, "crashes"), fair=False)
    match worker.at:
        case "lease" if not _won(config, call, "take_lease"):
            yield to(f"call {number} is not leased", state)
        case "lease":
            lease = call.leases + 1
            after = _set(state, number, lease=lease, live=True, leases=lease)
            again = "what may have changed is read again" not in without
            leased = worker._replace(at="read" if again else "fence", lease=lease, not_before=call.not_before)
            if not again:
                leased = leased._replace(reading=worker.reading._replace(at=state.clock))
            yield to(f"a worker takes lease {lease} of call {number}; slot, room, agent", after, leased)
        case "read" if worker.tries and worker.since != state.clock:
            yield to(f"the worker of call {number} has tried for two seconds", state, worker._replace(at="line"))
        case "read":
            answer, after = _decide(config, state, number, worker.not_before)
            read = worker._replace(at="fence" if answer == "pass" else answer, since=state.clock)
            if answer == "pass":
                read = read._replace(reading=_read(state))
            yield to(f"the worker of call {number} reads again: {answer}", after, read)
        case "fence" | "repeat":
            yield from _fence(config, state, worker, to)
        case "dial" if not (mine and call.live):
            yield to(f"the lease of call {number} is over before its dial", state)
        case "dial":
            yield from _dial(config, state, worker, to)
        case "unfence" if not _won(config, call, "unfence", worker.lease):
            yield to(f"call {number} is not un-fenced", state)
        case "unfence":
            after = _set(state, number, status=QUEUED, lease=0, live=False, fenced_by=0, fenced_at=-1)
            forgets = call.counted
            yield to(f"call {number} is un-fenced", after, worker._replace(at="forget") if forgets else IDLE)
        case "forget":
            yield to(f"the ring of call {number} is removed", _forget(config, state, number, worker.lease))
            if state.faults.copies and not state.copy.kind:
                copy = Copy("forget", number, worker.lease)
                yield to(
                    f"the removal of the ring of call {number} is under way",
                    _spend(state, "copies")._replace(copy=copy),
                    fair=False,
                )
        case "end" | "line":
            yield from _leaves(config, state, worker, to)


To = Callable[..., Step]


def _fence(config: GatesConfig, state: State, worker: Worker, to: To) -> Iterator[Step]:
    """One transaction, sent once or repeated."""
    number, reading, without = worker.call, worker.reading, config.without
    if reading.at != state.clock and worker.at == "repeat":
        yield to(f"the worker of call {number} gives up: the fence stays unclear", state)
        return
    if reading.at != state.clock and "an old decision is not sent" not in without:
        yield to(f"the decision of call {number} is too old", state, worker._replace(at="line"))
        return
    fresh = "new token" if worker.at == "fence" else "the same token"
    request = Copy("fence", number, worker.lease, worker.token, reading, not_before=worker.not_before)
    what = f"the fence of call {number} ({fresh})"
    again = worker._replace(at="repeat")
    if "an unclear fence is repeated with its token" in without:
        again = again._replace(token=worker.token + 1)
    anew = worker._replace(tries=worker.tries + 1, token=worker.token + 1, reading=Reading())
    if "a new decision has a new token" in without:
        anew = anew._replace(token=worker.token)
    anew = anew._replace(at="read" if anew.tries < config.tries else "line")
    if "what may have changed is read again" in without:
        anew = anew._replace(at="line")
    if worker.at == "fence" and worker.tries and "a new decision has a new token" in without:
        # DynamoDB refuses other bytes with a token that it knows.
        yield to(f"{what} is refused: its token is used", state)
        return
    outcome, after = _transaction(config, state, request, late=False)
    call = state.calls[number]
    match outcome:
        case "won" | "repeated":
            yield to(f"{what} is won", after, worker._replace(at="dial", reading=Reading()))
            if outcome == "won" and state.faults.cuts:
                yield to(f"{what} is executed, its answer is lost", _spend(after, "cuts"), again, fair=False)
        case "call" if call.status == DIALING and call.lease == worker.lease:
            if "one's own earlier fence counts as won" in without:
                yield to(f"{what} is lost", _breaks(config, state, NOT_LEFT))
            else:
                yield to(f"{what} shows that it is fenced", state, worker._replace(at="dial", reading=Reading()))
        case "call" if call.status == QUEUED and call.lease == worker.lease:
            yield to(f"{what} is lost: the call was moved", state, anew._replace(not_before=call.not_before))
        case "call":
            yield to(f"{what} is lost", state)
        case "number":
            yield to(f"{what} is cancelled: the number was changed", state, anew)
    if state.faults.conflicts:
        yield to(f"{what} is cancelled by a conflict", _spend(state, "conflicts"), anew, fair=False)
    if state.faults.copies and not state.copy.kind:
        unclear = _spend(state, "copies")._replace(copy=request)
        yield to(f"nothing is known of {what}, which is under way", unclear, again, fair=False)


def _transaction(config: GatesConfig, state: State, request: Copy, *, late: bool) -> tuple[str, State]:
    """What DynamoDB does: `won`; `repeated`, executed before with this token; lost by the `call`, the `number`."""
    number, reading, token = request.call, request.reading, (request.call, request.lease, request.token)
    if token in state.executed:
        return "repeated", state
    call = state.calls[number]
    if not _won(config, call, "fence", request.lease, request.not_before):
        return "call", state
    part = "fence, with a ring" if reading.counts else "fence, no ring"
    if state.number.version != reading.version and f"{part}: the number as read" not in config.without:
        return "number", state
    after = _set(
        state,
        number,
        status=DIALING,
        fenced_by=request.lease,
        fenced_at=reading.at,
        counted=reading.counts,
    )
    after = after._replace(executed=state.executed | {token})
    if reading.counts:
        # Of the other rings that were read none counts any more.
        record = state.number._replace(
            rings=((number, reading.at, request.lease),),
            expires=_expires(config, state.number.suppressed, reading.at),
        )
        if "a ring changes the version" not in config.without or not record.version:
            record = record._replace(version=_new_version(state))
        after = after._replace(number=record)
    if call.status == ENDED:
        after = _breaks(config, after, ONE_END)
    if any(scope in (ALL, config.purposes[number]) for scope, _ in state.acknowledged):
        after = _breaks(config, after, NOT_FENCED)
    if reading.at < call.not_before:
        after = _breaks(config, after, NOT_EARLY)
    if not reading.allowed:
        after = _breaks(config, after, LET)
    if not late and not reading.fresh:
        after = _breaks(config, after, FENCED_AT_ONCE)
    return "won", after


def _dial(config: GatesConfig, state: State, worker: Worker, to: To) -> Iterator[Step]:
    number, call, without = worker.call, state.calls[worker.call], config.without
    undo = worker._replace(at="unfence")
    if not state.open and "the window is checked before the dial" not in without:
        yield to(f"the window of call {number} has closed", state, undo)
        return
    if call.fenced_at != state.clock and "an old fence does not dial" not in without:
        yield to(f"the fence of call {number} is too old", state, undo)
        return
    if state.faults.refusals:
        yield to(f"LiveKit refuses the dial of call {number}", _spend(state, "refusals"), undo, fair=False)
    after = _set(state, number, status=ENDED, rung=True)
    after = after._replace(rang=state.rang + call.counted)
    if call.rung:
        after = _breaks(config, after, ONE_RING)
    if not state.open:
        after = _breaks(config, after, IN_WINDOW)
    if after.rang > 1:
        after = _breaks(config, after, CAPPED)
    if call.fenced_at != state.clock:
        after = _breaks(config, after, DIALLED_AT_ONCE)
    yield to(f"call {number} rings, and ends", after)


def _leaves(config: GatesConfig, state: State, worker: Worker, to: To) -> Iterator[Step]:
    """Ends the call, or puts it into the line. The write is lost when the call is not as it was seen."""
    number, call = worker.call, state.calls[worker.call]
    if (
        call.status == QUEUED
        and call.lease == worker.lease
        and not (call.live and not worker.lease)
        and not call.line
    ):
        if worker.at == "end":
            yield to(f"call {number} ends, suppressed", _set(state, number, status=ENDED))
        else:
            after = _set(state, number, line=True, lease=0, live=False)
            yield to(f"call {number} enters the line", after)
    elif call.status == DIALING and call.lease == worker.lease and call.live:
        if "a write lost to one's own fence un-fences" in config.without:
            yield to(f"call {number} is left: it is fenced", _breaks(config, state, NOT_LEFT))
        else:
            yield to(f"call {number} is fenced by a late copy", state, worker._replace(at="unfence"))
    else:
        yield to(f"call {number} is another's", state)


def _forget(config: GatesConfig, state: State, number: int, lease: int) -> State:
    """Removes the ring that this lease's fence stored, and no later one."""
    exact = "only the un-fenced ring is removed" not in config.without
    rings = tuple(ring for ring in state.number.rings if ring[0] != number or (exact and ring[2] != lease))
    if rings == state.number.rings:
        return state
    return state._replace(number=state.number._replace(rings=rings, version=_new_version(state)))


# ── suppressions ────────────────────────────────────────────────────────────────────────────────────


def _process(state: State, number: int, process: Process) -> State:
    processes = list(state.processes)
    processes[number] = process
    return state._replace(processes=tuple(processes))


def _changed(
    operation: Operation, number: int, seen: tuple[tuple[str, int, int], ...]
) -> tuple[tuple[str, int, int], ...]:
    others = tuple(one for one in seen if one[0] != operation.scope)
    return others if operation.kind == "delete" else (*others, (operation.scope, operation.until, number))


def _operate(config: GatesConfig, state: State, number: int) -> Iterator[Step]:
    """A process that changes the suppressions: it reads, writes on the condition of what it read, and answers."""
    process, operation = state.processes[number], config.operations[number]
    what = f"{operation.kind} {operation.scope}"
    report_first = (
        operation.kind == "report" and "an opt-out is suppressed before it is reported" in config.without
    )

    def to(label: str, after: State, new: Process) -> Step:
        return Step(f"{what}: {label}", _process(after, number, new), False)

    match process.at:
        case "start" if number and not config.at_once and state.processes[number - 1].at != "done":
            return
        case "start" if report_first:
            yield to("the report is stored", _acknowledge(state, operation), Process("read"))
        case "start" | "read":
            seen = state.number.suppressed
            if _changed(operation, number, seen) == seen:
                yield to("it is so already", state, Process("answer"))
            else:
                yield to("the number is read", state, Process("write", state.number.version, seen))
        case "write":
            written = _write(config, state, number, process, late=False)
            if written is None:
                yield to("the number was changed", state, Process("read"))
            else:
                yield to("the number is written", written, Process("answer"))
                if state.faults.cuts:
                    yield to("its answer is lost", _spend(written, "cuts"), Process("read"))
            if state.faults.copies and not state.copy.kind:
                copy = Copy("write", operation=number, seen=process)
                unclear = _spend(state, "copies")._replace(copy=copy)
                yield to("nothing is known of the write, which is under way", unclear, Process("read"))
        case "answer" if operation.kind == "delete" or process.superseded or report_first:
            yield to("it is answered", state, DONE)
        case "answer":
            told = "the report is stored" if operation.kind == "report" else "it is answered"
            yield to(told, _acknowledge(state, operation), DONE)


def _acknowledge(state: State, operation: Operation) -> State:
    return state._replace(acknowledged=state.acknowledged | {(operation.scope, operation.until)})


def _write(config: GatesConfig, state: State, number: int, seen: Process, *, late: bool) -> State | None:
    """late: executed after its process was done."""
    operation, record = config.operations[number], state.number
    if record.version != seen.version and "a suppression's write: the number as read" not in config.without:
        return None
    suppressed = _changed(operation, number, seen.seen)
    changed = record._replace(suppressed=suppressed, expires=_expires(config, suppressed, state.clock))
    if "a suppression changes the version" not in config.without or not record.version:
        changed = changed._replace(version=_new_version(state))
    if "a suppression's write keeps the rings" in config.without:
        changed = changed._replace(rings=())
    after = state._replace(number=changed)
    if late:
        return after
    kept = frozenset(one for one in state.acknowledged if one[0] != operation.scope)
    for other, process in enumerate(state.processes):
        if other != number and process.at == "answer" and config.operations[other].scope == operation.scope:
            after = _process(after, other, process._replace(superseded=True))
    return after._replace(acknowledged=kept)


# ── outside of the processes ────────────────────────────────────────────────────────────────────────


def _outside(config: GatesConfig, state: State) -> Iterator[Step]:
    faults = state.faults
    if state.clock < config.last:
        yield Step("time passes", state._replace(clock=state.clock + 1, rang=0))
    for number, call in enumerate(state.calls):
        held = any(worker.call == number and worker.lease == call.lease for worker in state.workers)
        if call.live and not held:
            yield Step(f"the lease of call {number} is over", _set(state, number, live=False))
        elif call.live and faults.stalls:
            after = _set(_spend(state, "stalls"), number, live=False)
            yield Step(f"the lease of call {number} is over, its worker goes on", after, False)
        if call.line:
            yield Step(f"call {number} is admitted", _set(state, number, line=False))
        if call.status == DIALING and not call.live:
            yield Step(f"the reconciler ends call {number}", _set(state, number, status=ENDED))
        if call.status == QUEUED and not call.live and state.clock == config.last:
            yield Step(f"call {number} expires", _set(state, number, status=ENDED))
        if call.status == QUEUED and faults.cancels:
            after = _set(_spend(state, "cancels"), number, status=ENDED)
            yield Step(f"call {number} is canceled", after, False)
        if call.status == QUEUED and faults.moves:
            after = _set(_spend(state, "moves"), number, not_before=config.last)
            yield Step(f"call {number} is given a later time", after, False)
    if state.number.version and state.clock > state.number.expires:
        yield Step("the number's item expires", state._replace(number=Number()), False)
    if faults.pauses:
        now = "resumed" if state.paused else "paused"
        yield Step(f"dialling is {now}", _spend(state, "pauses")._replace(paused=not state.paused), False)
    if faults.caps:
        now = "removed" if state.capped else "set"
        yield Step(f"the cap is {now}", _spend(state, "caps")._replace(capped=not state.capped), False)
    if faults.closes:
        yield Step("the window closes", _spend(state, "closes")._replace(open=False), False)
    deciding = state.copy.kind or any(worker.at in ("fence", "repeat") for worker in state.workers)
    if faults.losses and not deciding:
        lost = _spend(state, "losses")._replace(number=Number(), marker=False)
        yield Step("the table is lost and made again", lost, False)
    yield from _copy(config, state)


def _copy(config: GatesConfig, state: State) -> Iterator[Step]:
    copy, gone = state.copy, state._replace(copy=Copy())
    match copy.kind:
        case "fence":
            outcome, after = _transaction(config, gone, copy, late=True)
            done = "executed" if outcome == "won" else "lost"
            yield Step(f"a late request (fence of call {copy.call}) is {done}", after, False)
        case "forget":
            after = _forget(config, gone, copy.call, copy.lease)
            done = "executed" if after != gone else "lost"
            yield Step(f"a late request (forget_ring of call {copy.call}) is {done}", after, False)
        case "write":
            late = state.processes[copy.operation].at == "done"
            written = _write(config, gone, copy.operation, copy.seen, late=late)
            kind = config.operations[copy.operation].kind
            done = "lost" if written is None else "executed"
            yield Step(f"a late request ({kind} {copy.operation}) is {done}", written or gone, False)
