"""Every process as steps, each one request to DynamoDB or LiveKit, as the code under functions/ makes them.

`steps` gives all that can happen in a state. Messages are not counted: a message for the call may come at any
time, because SQS delivers twice and the reconciler sends again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model import record
from tests.model.record import seen_in
from tests.model.state import (
    ACTIVE,
    AGENT_ASKED,
    COMING,
    DIALING,
    ENDED,
    GONE,
    IN_PROGRESS,
    IN_ROOM,
    JOINING,
    LOST,
    NEVER,
    OVER,
    QUEUED,
    RINGING,
    THERE,
    UNANSWERED,
    WAITS,
    Call,
    Config,
    Copy,
    Process,
    Room,
    Seen,
    State,
    agent_joins,
    broken,
    close_room,
    create_dispatch,
    create_room,
    delete_dispatch,
    delete_room,
    dial,
    orphaned,
    phone_leaves,
    phone_rings,
    remove_participant,
    revive_room,
    shown,
)

NO_PROCESS = Process()
# The lease that a request of a process asks for that has gone by the time it is executed.
DEAD = 9
# What must follow at once on a check of the lease: nothing else holds it back.
RIGHT_BEHIND_A_CHECK = {
    "delete_room": "the worker checks whether its lease has expired",
    "free_for_line": "the worker checks whether its lease has expired",
    "step_back": "the worker checks whether its lease has expired",
    "create_dispatch": "the worker checks whether its lease has expired",
    "dial": "fence: lease live",
}


class Step(NamedTuple):
    """fair: happens by itself, sooner or later, once faults stop. LiveKit's events and a cancel are not."""

    label: str
    after: State
    fair: bool = True


def initial(config: Config) -> State:
    return State(
        workers=(NO_PROCESS,) * config.workers,
        reconcilers=(NO_PROCESS,) * config.reconcilers,
        canceller=Process("read") if config.cancel else NO_PROCESS,
        faults=config.faults,
    )


def steps(config: Config, state: State) -> Iterator[Step]:
    started: set[Process] = set()
    for place, worker in enumerate(state.workers):
        if worker not in started:
            started.add(worker)
            yield from _worker(config, state, place, worker)
    met: set[Process] = set()
    for place, process in enumerate(state.reconcilers):
        if process not in met:
            met.add(process)
            yield from _reconciler(config, state, place, process)
    if state.canceller.at:
        yield from _canceller(config, state)
    if config.events:
        yield from _handler(config, state)
    yield from _outside(config, state)
    if state.faults.crashes:
        yield from _crashes(state)


# ── what all processes share ────────────────────────────────────────────────────────────────────────

Put = Callable[[State, Process], State]


def _spend(state: State, fault: str) -> State:
    return state._replace(faults=state.faults._replace(**{fault: getattr(state.faults, fault) - 1}))


def _put_reconciler(state: State, process: Process, place: int) -> State:
    others = state.reconcilers[:place] + state.reconcilers[place + 1 :]
    return state._replace(reconcilers=tuple(sorted((*others, process))))


def _put_canceller(state: State, process: Process) -> State:
    return state._replace(canceller=process)


def _put_handler(state: State, process: Process) -> State:
    return state._replace(handler=process)


def _may_be_late(config: Config, state: State, write: str) -> bool:
    return write in config.copied and state.faults.late_copies > 0 and not state.copy.write


def _written(config: Config, state: State, put: Put, step: Step, copy: Copy) -> Iterator[Step]:
    """A write, won or lost. The SDK may have sent its request twice, and the other is executed later; or the
    process died, and its only request is executed later.
    """
    yield step
    if _may_be_late(config, state, copy.write):
        late = _spend(step.after, "late_copies")._replace(copy=copy)
        yield Step(f"{step.label}; a copy of the request is under way", late, False)
        if copy.write in ("take_lease", "hold"):
            copy = copy._replace(lease=DEAD)
        dead = put(_spend(state, "late_copies")._replace(copy=copy), NO_PROCESS)
        yield Step(f"a process dies, its request ({copy.write}) under way", dead, False)


def _ending(
    config: Config, state: State, who: str, process: Process, put: Put, won: Process, lost: Process
) -> Iterator[Step]:
    """end_call: lost to a request to hang up alone it is tried again, with that in view."""
    seen = process.seen
    assert isinstance(seen, Seen)
    after = record.end(config, state, seen)
    if after is not None:
        if "the end and its event are one write" in config.without:
            won = Process("tell", then=won.then)
        step = Step(f"{who} ends the call", put(after, won))
    elif state.call.status == seen.status and state.call.lease == seen.lease:
        now = seen._replace(hangup=state.call.hangup)
        step = Step(f"{who} loses the end to a request to hang up", put(state, process._replace(seen=now)))
    elif "only the winner of the end clears" in config.without:
        step = Step(f"{who} loses the end, and clears", put(state, _to_clear(config)))
    else:
        step = Step(f"{who} loses the end", put(state, lost))
    yield from _written(config, state, put, step, Copy("end", seen=seen))


# What is cleared, and in which order, by what is left out.
CLEARING = {
    "": ("free_slot", "clear_room", "leave_due"),
    "no room": ("free_slot", "leave_due"),
    "nothing": ("leave_due",),
    "slot": ("free_slot",),
}
INDEX_BEFORE_SLOT = CLEARING | {
    "": ("clear_room", "leave_due", "free_slot"),
    "no room": ("leave_due", "free_slot"),
}
INDEX_BEFORE_ROOM = CLEARING | {"": ("free_slot", "leave_due", "clear_room")}
ROOM_BEFORE_SLOT = CLEARING | {"": ("clear_room", "free_slot", "leave_due")}


def _order(config: Config, what: str) -> tuple[str, ...]:
    if "the slot is freed before the call leaves the index" in config.without:
        return INDEX_BEFORE_SLOT[what]
    if "the room is deleted before the call leaves the index" in config.without:
        return INDEX_BEFORE_ROOM[what]
    if "the slot is freed before the room is deleted" in config.without:
        return ROOM_BEFORE_SLOT[what]
    return CLEARING[what]


def _to_clear(config: Config, what: str = "") -> Process:
    return Process(_order(config, what)[0], then=what)


def _held_by(call: Call) -> str:
    """Without an attempt there never was a room or a slot."""
    return "" if call.attempts else "nothing"


def _clearing(config: Config, state: State, who: str, process: Process, put: Put) -> Iterator[Step]:
    """The slot first, then the room, then out of the index of what is due."""
    if process.at == "tell":
        told = state._replace(call=state.call._replace(told=state.call.told + 1))
        yield Step(f"{who} appends the event of the end", put(told, _to_clear(config, process.then)))
        return
    order = _order(config, process.then)
    place = order.index(process.at) + 1
    cleared = Process(order[place], then=process.then) if place < len(order) else NO_PROCESS
    match process.at:
        case "free_slot":
            yield from _written(
                config,
                state,
                put,
                Step(f"{who} frees the slot", put(record.free_slot(config, state), cleared)),
                Copy("free_slot"),
            )
        case "clear_room":
            if not config.deaf:
                yield _deletes(config, state, f"{who} deletes the room", process, put, cleared)
            if state.faults.refusals or config.deaf:
                after = state if config.deaf else _spend(state, "refusals")
                yield Step(f"{who} cannot delete the room", put(after, NO_PROCESS), False)
        case "leave_due":
            gone = record.leave_due(config, state) or state
            yield from _written(
                config,
                state,
                put,
                Step(f"{who} takes the call out of the index", put(gone, cleared)),
                Copy("leave_due"),
            )


def _deletes(
    config: Config,
    state: State,
    label: str,
    process: Process,
    put: Put,
    then: Process,
    orphan: Process = NO_PROCESS,
) -> Step:
    """DeleteRoom; an orphan room is not found, made again, and deleted: then `orphan` goes on, not `then`."""
    if not orphaned(state):
        return Step(label, put(delete_room(config, state), orphan if process.proof == "orphan" else then))
    if "an orphan room is created again to be deleted" in config.without:
        return Step(f"{label}: it is not found", put(state, NO_PROCESS))
    return Step(
        f"{label}: not found, so makes it again", put(revive_room(state), process._replace(proof="orphan"))
    )


# ── dial_worker/dial.py ─────────────────────────────────────────────────────────────────────────────


def _worker(config: Config, state: State, place: int, worker: Process) -> Iterator[Step]:
    who = f"worker {worker.lease}" if worker.lease else "a worker"

    def put(after: State, process: Process) -> State:
        others = after.workers[:place] + after.workers[place + 1 :]
        return after._replace(workers=tuple(sorted((*others, process))))

    def go(label: str, after: State, at: str, fair: bool = True, **changes: object) -> Step:
        return Step(f"{who} {label}", put(after, worker._replace(at=at, **changes)), fair)  # type: ignore[arg-type]

    def checked(label: str, after: State, at: str, fair: bool = True, **changes: object) -> Step:
        """Goes on with `at` if its lease is not over; it cannot be where no living worker's ever is."""
        if config.stall == "never" or "the worker checks whether its lease has expired" in config.without:
            return go(label, after, at, fair, **changes)
        return go(label, after, "check", fair, then=at, **changes)

    def stop(label: str, after: State, fair: bool = True) -> Step:
        return Step(f"{who} {label}", put(after, NO_PROCESS), fair)

    def written(step: Step, write: str, what: int | str = 0, lease: int = worker.lease) -> Iterator[Step]:
        return _written(config, state, put, step, Copy(write, lease, what=what))

    def clear(label: str, after: State, lease_checked: bool = False) -> Step:
        first = _to_clear(config).at
        return checked(label, after, first) if lease_checked else go(label, after, first, then="")

    def back(label: str, after: State, fair: bool = True) -> Step:
        """The room is gone, or stays: then into the line, or to wait for the next message with its slot."""
        if worker.proof != "line":
            return go(label, after, "wait", fair)
        if "a slot is freed before the line" in without:
            return go(label, after, "enter_line", fair, proof="")
        return checked(label, after, "free_for_line", fair, proof="")

    call, faults, without = state.call, state.faults, config.without
    mine = Seen(DIALING, worker.lease, False)
    unclear = "prove" if "an unclear dial is not sent again" in without else ""
    left = call.left == "phone" or (call.left and "a closed room alone does not end a dial" in without)
    still_mine = call.status != ENDED and call.lease == worker.lease
    still_mine = still_mine or "the worker ends only what is still its own" in without

    def no_livekit(label: str, after: State | None = None) -> Iterator[Step]:
        """Before the fence LiveKit's failures put the call back in line."""
        if after is None and faults.refusals:
            after = _spend(state, "refusals")
        if after is not None:
            at = "end" if worker.attempts >= config.attempts else "wait"
            yield go(label, after, at, False, seen=Seen(QUEUED, worker.lease, False))

    match worker.at:
        case "":
            yield from _message(config, state, put)
        case "lease":
            after = record.take_lease(config, state) if state.leases < config.leases else None
            if after is None:
                yield from written(stop("finds the call taken", state), "take_lease", lease=DEAD)
            else:
                leased = Process("slot", after.call.lease, after.call.attempts)
                if {"lease before slot", "slot before the dial"} & without:
                    leased = leased._replace(at=_room_step(leased))
                step = Step(f"{who} takes lease {after.call.lease}", put(after, leased))
                yield from written(step, "take_lease", lease=after.call.lease)
        case "wait_as_read":
            assert isinstance(worker.seen, Seen)
            after = record.wait(config, state, worker.seen.lease)
            if after is not None:
                step = stop("finds the trunk busy and waits", after)
            elif _canceled(config, call, worker.seen.lease):
                step = clear("finds the trunk busy, then the call ended", state)
            else:
                step = stop("finds the trunk busy and the call taken", state)
            yield from written(step, "wait", lease=worker.seen.lease)
        case "lease_for_line":
            after = record.take_lease(config, state) if state.leases < config.leases else None
            if after is None:
                yield from written(stop("finds the call taken", state), "take_lease", lease=DEAD)
            else:
                leased = Process("free_for_line", after.call.lease, after.call.attempts, then="uncount")
                step = Step(f"{who} takes lease {after.call.lease} for the line", put(after, leased))
                yield from written(step, "take_lease", lease=after.call.lease)
        case "free_for_line":
            yield go("frees the slot for the line", record.free_slot(config, state), "enter_line")
        case "enter_line":
            uncount = worker.then == "uncount"
            after = record.enter_line(config, state, worker.lease, uncount)
            if after is not None:
                step = stop("puts the call into the line", after)
            elif _canceled(config, call, worker.lease):
                step = clear("finds the call ended", state)
            else:
                step = stop("finds the call taken", state)
            yield from written(step, "enter_line", what=uncount)
        case "slot":
            own = state.slot and "take_slot: its own slot" not in without
            taken = record.take_slot(config, state)
            if taken is None or (faults.full_slots and not own):
                full = state if taken is None else _spend(state, "full_slots")
                step = go("finds no free slot", full, "enter_line", taken is None, then="uncount")
                yield from written(step, "take_slot")
            if taken is not None and not worker.lease:
                yield go("takes the slot", taken, "lease")
            elif taken is not None:
                yield from written(checked("takes the slot", taken, _room_step(worker)), "take_slot")
        case "check":
            if call.lease == worker.lease and call.live:
                yield go("finds its lease not over", state, worker.then, then="")
            else:
                yield stop("finds its lease over", state)
        case "delete_room":
            if "the last attempt's room is deleted" in without:
                yield go("keeps the last attempt's room", state, "create_room")
            else:
                yield go("deletes the last attempt's room", delete_room(config, state), "create_room")
            yield from no_livekit("cannot delete the last attempt's room")
        case "create_room":
            after = create_room(config, state, worker.lease)
            assert after.room is not None
            yield go("makes the room", after, "agent", room=after.room.sid)
            yield from no_livekit("cannot make the room")
            if faults.cuts:
                yield from no_livekit("makes the room, the answer is lost", _spend(after, "cuts"))
        case "agent":
            agent = state.room.agent if state.room is not None else GONE
            if agent == THERE:
                yield checked("sees the agent in the room", state, "fence")
            elif agent != COMING:
                stale = state.room is not None and state.room.made_by != worker.lease
                after = broken(config, state, AGENT_ASKED) if stale else state
                yield checked("sees no agent come", after, "end", seen=Seen(QUEUED, worker.lease, False))
            elif "the agent joins before the dial" in without:
                yield checked("does not wait for the agent", state, "fence")
            lost = state.room is not None and agent in (LOST, GONE) and state.room.second != COMING
            if lost or (agent == COMING and "the worker waits for an agent that has a job" in without):
                yield go("sees no agent, and no dispatch with a job", state, "delete_dispatch")
                yield from no_livekit("cannot list the dispatches")
            ended = call.status == ENDED and "the waiting worker reads the record" not in without
            if agent != THERE and ended:
                yield clear("sees no agent, and the call ended", state, lease_checked=True)
            if agent == THERE and config.waits:
                yield checked("finds too little time for the dial", state, "step_back", False)
            if agent == THERE and config.lines:
                yield checked("finds dialling paused", state, "step_back", False, proof="line")
            yield from no_livekit("cannot look for the agent")
        case "delete_dispatch":
            deleted = state
            if "a lost dispatch is deleted before a new one is created" not in without:
                deleted = delete_dispatch(state, worker.room)
            yield checked("deletes the dispatch", deleted, "create_dispatch")
            yield from no_livekit("cannot delete the dispatch")
        case "create_dispatch":
            yield go("dispatches the agent again", create_dispatch(state, worker.lease), "agent")
            yield from no_livekit("cannot dispatch the agent again")
        case "step_back":
            yield back("deletes the room", delete_room(config, state))
            if faults.refusals:
                yield back("cannot delete the room", _spend(state, "refusals"), False)
        case "fence":
            after = record.fence(config, state, worker.lease, worker.room)
            if after is not None:
                step = go("fences the call", after, "dial")
            elif "only the winner of the fence dials" in without:
                step = go("loses the fence, and dials", state, "dial")
            elif call.status == ENDED:
                step = clear("finds the call ended", state, lease_checked=True)
            else:
                step = stop("loses the fence", state)
            yield from written(step, "fence", what=worker.room)
        case "dial":
            yield go("asks LiveKit to dial", dial(config, state), "answer")
            if faults.refusals:
                refused = _spend(state, "refusals")
                yield checked("asks LiveKit to dial: unavailable", refused, "look", False, proof="prove")
            if faults.cuts:
                cut = _spend(state, "cuts")
                yield checked("asks LiveKit to dial: the request is lost", cut, "look", False, proof=unclear)
            if faults.liars:
                rung = dial(config, _spend(state, "liars")._replace(lied=True))
                yield checked(
                    "asks LiveKit to dial: unavailable, but it rings", rung, "look", False, proof="prove"
                )
        case "answer":
            if state.phone in (ACTIVE, OVER):
                yield checked("hears that the phone was answered", state, "answered")
            elif state.phone == UNANSWERED:
                yield checked("hears that the phone was not answered", state, "end", seen=mine)
            if (faults.cuts and state.phone in (JOINING, RINGING)) or orphaned(state):
                cut = state if orphaned(state) else _spend(state, "cuts")
                yield checked("loses the connection", cut, "look", orphaned(state), proof=unclear)
            if faults.errors and state.phone in IN_ROOM:
                yield checked("hears an error while the phone is on", _spend(state, "errors"), "error", False)
            if faults.cuts and state.phone in (JOINING, RINGING) and "a dial is sent once" in without:
                yield go("loses the connection, and the client dials again", dial(config, state), "answer")
        case "answered":
            after = record.answered(config, state, worker.lease)
            if after is not None and after.call.left and "the answer checks for a phone that left" not in without:
                step = go("writes the answer", after, "end", seen=seen_in(after))
            elif after is not None:
                step = stop("writes the answer", after)
            elif still_mine and call.hangup:
                step = go("finds that it must hang up", state, "hang_up", seen=seen_in(state))
            else:
                step = stop("finds the answer written", state)
            yield from written(step, "answered")
        case "error":
            if state.phone in IN_ROOM and "an error without a SIP code requires a look" not in without:
                yield go("sees the phone in the room", state, "look")
            else:
                yield go("sees no phone in the room", state, "end", seen=mine)
        case "hang_up":
            yield _deletes(config, state, f"{who} deletes the room", worker, put, worker._replace(at="end"))
            if faults.refusals:
                yield stop("cannot delete the room", _spend(state, "refusals"), False)
        case "unfence" if state.lied and state.phone not in IN_ROOM and not (call.left or call.joined):
            # One of LiveKit's events of the phone that is gone is stored first.
            pass
        case "unfence":
            after = record.unfence(config, state, worker.lease)
            if after is not None:
                step = stop("un-fences the call", after)
            elif still_mine:
                step = go("may not un-fence", state, "end", seen=seen_in(state))
            else:
                step = stop("finds the call taken away", state)
            yield from written(step, "unfence")
        case "look":
            there = shown(state)
            proving = worker.proof and "un-fence: no phone in the room" in without
            if there == ACTIVE and not proving:
                yield checked("sees that the phone was answered", state, "answered")
            if not there or proving:
                yield go("sees no phone in the room", state, "read")
            elif faults.wrong_looks:
                yield go("wrongly sees no phone in the room", _spend(state, "wrong_looks"), "read", False)
            if there == RINGING and call.hangup and not proving:
                yield go("sees the phone ring, to be hung up", state, "remove", proof="")
            elif there == RINGING and (worker.missing or worker.proof) and not proving:
                yield go("sees the phone ring", state, "look", missing=0, proof="")
            yield stop("has no time left to look", state)
        case "remove":
            # What is not found though it was seen is the room of a server that died.
            gone = "look" if state.phone in IN_ROOM else "read"
            missing = 0 if state.phone in IN_ROOM else worker.missing
            removed = remove_participant(config, state)
            yield go("takes the phone out of the room", removed, gone, missing=missing)
        case "read":
            twice = worker.missing == 2 or "the worker looks twice" in without
            if worker.proof:
                twice = worker.missing == 2 or "un-fence: no phone on two looks" in without
            if not still_mine:
                yield stop("finds the call taken away", state)
            elif worker.proof and (call.left or call.joined) and "un-fence: no event on the record" not in without:
                # It was there: from now on only what became of it is to be found out.
                yield checked(
                    "knows that the phone was there", state, "look", missing=worker.missing or 1, proof=""
                )
            elif worker.proof and twice and worker.attempts < config.attempts:
                yield go("knows that nothing rang", state, "unfence")
            elif left or twice:
                yield go("knows that the phone is gone", state, "end", seen=seen_in(state))
            else:
                yield checked("will look again", state, "look", missing=worker.missing or 1)
        case "wait":
            after = record.wait(config, state, worker.lease)
            if after is not None:
                step = stop("waits", after)
            elif _canceled(config, call, worker.lease):
                step = clear("finds the call ended", state)
            else:
                step = stop("finds the call taken", state)
            yield from written(step, "wait")
        case "end":
            yield from _ending(config, state, who, worker, put, _to_clear(config, _held_by(call)), NO_PROCESS)
        case _:
            yield from _clearing(config, state, who, worker, put)
    # It looks every other second meanwhile, and would have seen a phone that is there.
    unseen = state.phone not in IN_ROOM and (not shown(state) or call.hangup)
    unseen = unseen or (worker.proof != "" and "un-fence: no phone in the room" in without)
    if worker.at == "look" and worker.missing == 1 and unseen and state.phone != JOINING:
        yield go("waits half a minute", state, "look", missing=2)


def _counts_as_there(config: Config, state: State) -> str:
    """The phone as a look shows it. One that rings for longer than LiveKit lets it is gone, its room an orphan; or
    it joined anew, when a server restarted, and talks.
    """
    there = shown(state)
    if there == RINGING and state.rung_out and state.phone == ACTIVE:
        return ACTIVE if "a phone that joined again is connected" not in config.without else ""
    gone = (
        there == RINGING and state.rung_out and "a phone that rings too long counts as gone" not in config.without
    )
    return "" if gone else there


def _canceled(config: Config, call: Call, lease: int) -> bool:
    """The call ended while this lease was on it: what its process took is not cleared by another."""
    if call.status != ENDED or not lease:
        return False
    return call.lease == lease or "waiting clears only what no other process holds" in config.without


def _room_step(worker: Process) -> str:
    return "delete_room" if worker.attempts > 1 else "create_room"


def _message(config: Config, state: State, put: Put) -> Iterator[Step]:
    """A message comes, and the record is read."""
    call = state.call
    if call.status != QUEUED or call.live or call.waiting or call.line == WAITS:
        return
    if state.too_old:
        yield Step("a worker finds the call too old", put(state, Process("end", seen=seen_in(state))))
        return
    if state.leases < config.leases:
        first = "slot" if "lease before slot" in config.without else "lease"
        yield Step("a worker gets a message", put(state, Process(first)))
    if config.waits:
        yield Step("a worker gets a message", put(state, Process("wait_as_read", seen=seen_in(state))), False)
    if config.lines:
        yield from _paused(config, state, put)


def _paused(config: Config, state: State, put: Put) -> Iterator[Step]:
    """A call that may hold a slot is leased first: another process might take the slot just now."""
    call, label = state.call, "a worker gets a message, and finds dialling paused"
    if not call.lease and not call.attempts:
        yield Step(label, put(state, Process("enter_line")), False)
    elif "a slot is freed for the line under a lease" in config.without:
        yield Step(label, put(state, Process("free_for_line", call.lease)), False)
    elif state.leases < config.leases:
        yield Step(label, put(state, Process("lease_for_line")), False)


# ── reconcile_calls/reconcile.py ────────────────────────────────────────────────────────────────────


def _reconciler(config: Config, state: State, place: int, process: Process) -> Iterator[Step]:
    call, without, who = state.call, config.without, "the reconciler"

    def put(after: State, process: Process) -> State:
        return _put_reconciler(after, process, place)

    def go(label: str, after: State, at: str, **changes: object) -> Step:
        return Step(f"{who} {label}", put(after, process._replace(at=at, **changes)))  # type: ignore[arg-type]

    def stop(label: str, after: State, fair: bool = True) -> Step:
        return Step(f"{who} {label}", put(after, NO_PROCESS), fair)

    def written(step: Step, write: str, seen: Seen, what: int | str = 0) -> Iterator[Step]:
        return _written(config, state, put, step, Copy(write, seen.lease, seen, what))

    seen = process.seen
    match process.at:
        case "":
            if call.due:
                yield from _due(config, state, put)
            # The slots are read, then the records of the calls in them: an end that was read stays.
            ended = call.status == ENDED or "the repair frees only what has ended or waits in the line" in without
            repairs = config.repairs and state.slot and "slots are repaired" not in without
            if repairs and ended:
                yield Step(f"{who} finds the slot of an ended call", put(state, Process("free_slot", then="slot")))
            in_line = call.status == QUEUED and call.line == WAITS
            if repairs and in_line and "the repair frees the slots of calls in the line" not in without:
                holds = "the repair holds a call in the line" not in without
                found = Process("hold") if holds else Process("free_slot", then="slot")
                yield Step(f"{who} finds the slot of a call in the line", put(state, found))
        case "hold":
            after = record.hold(config, state)
            if after is None:
                step, lease = stop("finds the call admitted", state), DEAD
            else:
                lease = after.call.lease
                step = Step(f"{who} holds the call", put(after, Process("free_held", lease)))
            yield from _written(config, state, put, step, Copy("hold", lease))
        case "free_held":
            yield go("frees the slot", record.free_slot(config, state), "enter_line")
        case "enter_line":
            after = record.enter_line(config, state, process.lease)
            step = stop("puts the call back into the line" if after else "finds the call changed", after or state)
            yield from _written(config, state, put, step, Copy("enter_line", process.lease))
        case "look":
            assert isinstance(seen, Seen)
            there = _counts_as_there(config, state) if seen.status == DIALING else shown(state)
            if there:
                yield _present(config, state, process, seen, put)
            if not there or state.faults.wrong_looks:
                absent = _spend(state, "wrong_looks") if there else state
                label = f"{'wrongly ' if there else ''}sees no phone in the room"
                yield Step(f"{who} {label}", put(absent, _absent(config, process, seen)), fair=not there)
        case "note_missing" | "note_there":
            assert isinstance(seen, Seen)
            missing = process.at == "note_missing"
            after = record.note_missing(config, state, seen, missing)
            step = stop("notes what it saw" if after else "finds the call changed", after or state)
            yield from written(step, "note_missing", seen, missing)
        case "answered":
            assert isinstance(seen, Seen)
            after = record.answered(config, state, seen.lease)
            step = stop("writes the answer" if after else "loses the answer", after or state)
            yield from written(step, "answered", seen)
        case "ask":
            assert isinstance(seen, Seen)
            after = record.ask_to_hang_up(config, state, seen)
            if after is not None:
                step = go("asks to hang up: it lasts too long", after, "hang_up", seen=seen_in(after))
            else:
                step = stop("finds the call changed", state)
            yield from written(step, "ask_to_hang_up", seen)
        case "remove":
            # A dial whose worker is alive was not looked at, only asked to be hung up.
            gone = NO_PROCESS
            if isinstance(seen, Seen) and state.phone not in IN_ROOM:
                gone = _absent(config, process, seen)
            yield Step(f"{who} takes the phone out of the room", put(remove_participant(config, state), gone))
        case "hang_up":
            assert isinstance(seen, Seen)
            gone = orphan = process._replace(at="hang_up_look", proof="")
            if seen.status == DIALING:
                gone, orphan = NO_PROCESS, _absent(config, process, seen)
            yield _deletes(config, state, f"{who} deletes the room", process, put, gone, orphan)
        case "hang_up_look":
            if shown(state):
                yield stop("sees the phone in the room", state)
            else:
                yield go("sees no phone in the room", state, "end")
        case "end":
            won = _to_clear(config, _held_by(call))
            yield from _ending(config, state, who, process, put, won, NO_PROCESS)
        case _:
            yield from _clearing(config, state, who, process, put)


def _due(config: Config, state: State, put: Put) -> Iterator[Step]:
    """The record is read; what to do with it is decided on what was read."""
    call, without = state.call, config.without

    def start(label: str, at: str, seen: Seen | tuple[()] = ()) -> Step:
        return Step(f"the reconciler reads the record: {label}", put(state, Process(at, seen=seen)))

    read = seen_in(state)._replace(left=call.left, missing=call.missing)
    match call.status:
        case "queued":
            if not call.live and state.too_old:
                yield start("too old", "end", seen_in(state))
        case "dialing":
            if call.live and "the reconciler leaves a live dial alone" not in without:
                if call.hangup:
                    yield start("to be hung up", "remove")
            else:
                yield start("dialing", "look", read)
        case "in_progress":
            if call.hangup:
                yield start("to be hung up", "hang_up", seen_in(state))
            else:
                yield start("in progress", "look", read._replace(left=""))
                if config.overtime:
                    yield start("in progress for too long", "ask", seen_in(state))
        case _:
            # A room that was not listed is not deleted; the list is as old as the record.
            if call.room or not call.live or "clearing waits for another process's lease" in without:
                label, what = ("ended", "") if state.room else ("ended, no room", "no room")
                what = what if call.attempts else "nothing"
                yield Step(f"the reconciler reads the record: {label}", put(state, _to_clear(config, what)))


def _absent(config: Config, process: Process, seen: Seen) -> Process:
    """What follows a look that found no phone."""
    known = seen.missing == 2 or "the reconciler looks twice" in config.without
    if known or (seen.status == DIALING and seen.left):
        return process._replace(at="end", proof="", seen=seen._replace(left="", missing=0))
    return process._replace(at="note_missing", proof="")


def _present(config: Config, state: State, process: Process, seen: Seen, put: Put) -> Step:
    there, label = _counts_as_there(config, state), "the reconciler sees the phone in the room"

    def go(at: str) -> Step:
        return Step(label, put(state, process._replace(at=at)))

    if seen.status == DIALING and seen.hangup:
        return go("hang_up" if there == ACTIVE else "remove")
    if seen.status == DIALING and there == ACTIVE and seen.lease:
        return go("answered")
    return go("note_there") if seen.missing else Step(label, put(state, NO_PROCESS))


# ── shared/canceling.py ─────────────────────────────────────────────────────────────────────────────


def _canceller(config: Config, state: State) -> Iterator[Step]:
    call, process = state.call, state.canceller
    put, who = _put_canceller, "cancel"

    def go(label: str, after: State, at: str, fair: bool = True, seen: Seen | None = None) -> Step:
        return Step(f"{who} {label}", put(after, Process(at, seen=seen or process.seen)), fair)

    seen = process.seen
    match process.at:
        case "read":
            read = seen_in(state)
            if call.status == ENDED:
                yield Step("cancel finds the call ended", put(state, NO_PROCESS), False)
            elif call.status == QUEUED:
                # Canceled by the API is a reason of its own: what the record says of hanging up is the same.
                yield go("finds the call queued", state, "end", False, read)
            elif "a fenced call is hung up instead of canceled" in config.without:
                yield go(f"finds the call {call.status}", state, "end", False, read)
            else:
                yield go(f"finds the call {call.status}", state, "hang_up" if call.hangup else "ask", False, read)
        case "ask":
            assert isinstance(seen, Seen)
            after = record.ask_to_hang_up(config, state, seen)
            step = go("asks to hang up" if after else "loses", after or state, "hang_up" if after else "read")
            yield from _written(config, state, put, step, Copy("ask_to_hang_up", seen=seen))
        case "hang_up":
            assert isinstance(seen, Seen)
            if seen.status != DIALING or "the room stays while it rings" in config.without:
                yield _deletes(config, state, "cancel deletes the room", process, put, NO_PROCESS)
            else:
                removed = remove_participant(config, state)
                yield Step("cancel takes the phone out of the room", put(removed, NO_PROCESS))
                if state.phone not in IN_ROOM and "cancel looks again" not in config.without:
                    yield go("does not find the phone", state, "look_again")
        case "look_again":
            if call.status == DIALING:
                yield go("finds the call still dialing", state, "hang_up")
            else:
                yield Step(f"cancel finds the call {call.status}", put(state, NO_PROCESS))
        case "end":
            untouched = not call.attempts or "cancel clears only what no other process touched" in config.without
            won = _to_clear(config, "nothing") if untouched else NO_PROCESS
            yield from _ending(config, state, who, process, put, won, Process("read"))
        case _:
            yield from _clearing(config, state, who, process, put)


# ── livekit_events/apply_event.py ────────────────────────────────────────────────────────────────────────


def _handler(config: Config, state: State) -> Iterator[Step]:
    call, process, without = state.call, state.handler, config.without
    put, who = _put_handler, "livekit_events"
    # Its end frees the slot and stays due: the room closes by itself.
    slot_only = Process("free_slot", then="slot")

    match process.at:
        case "":
            for kind, sid in state.events:
                yield from _event(config, state, kind, sid)
        case "note_left":
            assert isinstance(process.seen, Seen)
            after = record.note_left(config, state, process.seen, process.then)
            same_room = call.room == process.seen.room or "note_left: room as seen" in without
            if after is not None:
                step = Step(f"{who} notes that the {process.then} is gone", put(after, NO_PROCESS))
            elif (
                call.status == IN_PROGRESS
                and same_room
                and "an event ends a call that was answered meanwhile" not in without
            ):
                step = Step(f"{who} finds the call answered", put(state, Process("end", seen=seen_in(state))))
            else:
                step = Step(f"{who} has nothing to note", put(state, NO_PROCESS))
            yield from _written(config, state, put, step, Copy("note_left", seen=process.seen, what=process.then))
        case "note_joined":
            assert isinstance(process.seen, Seen)
            after = record.note_joined(config, state, process.seen)
            label = "notes that the phone is there" if after else "has nothing to note"
            step = Step(f"{who} {label}", put(after or state, NO_PROCESS))
            yield from _written(config, state, put, step, Copy("note_joined", seen=process.seen))
        case "end":
            yield from _ending(config, state, who, process, put, slot_only, NO_PROCESS)
        case _:
            yield from _clearing(config, state, who, process, put)


def _event(config: Config, state: State, kind: str, sid: int) -> Iterator[Step]:
    """An event comes, and the record is read."""
    call, without = state.call, config.without

    def start(process: Process) -> Step:
        label = f"livekit_events gets {kind} of room {sid}, reads the record"
        return Step(label, _put_handler(state, process), state.lied or not config.reconcilers)

    fenced = call.room or "an event clears only what was fenced" in without
    if call.room and call.room != sid and "an event of another room is ignored" not in without:
        return
    if kind == "moved" and "moving a phone does not end its call" not in without:
        return
    if kind == "participant_joined":
        if call.status == DIALING:
            yield start(Process("note_joined", seen=seen_in(state)._replace(room=call.room)))
    elif call.status == DIALING:
        if "an event does not end a call that is dialing" in without:
            yield start(Process("end", seen=seen_in(state)))
        else:
            who = "room" if kind == "room_finished" else "phone"
            yield start(Process("note_left", then=who, seen=seen_in(state)._replace(room=call.room)))
    elif call.status == IN_PROGRESS:
        yield start(Process("end", seen=seen_in(state)))
    elif call.status == ENDED and kind == "room_finished" and call.due and fenced:
        yield start(_to_clear(config, "no room"))


# ── outside of the functions ────────────────────────────────────────────────────────────────────────


def _outside(config: Config, state: State) -> Iterator[Step]:
    call, room, faults = state.call, state.room, state.faults
    if room is not None:
        yield from _agents(config, state, room)
        if state.phone in (UNANSWERED, OVER) and not state.shows:
            yield Step("LiveKit closes the room that the phone left", close_room(config, state, room))
        elif faults.lost_rooms and state.phone in (NEVER, JOINING):
            closed = close_room(config, _spend(state, "lost_rooms"), room)
            yield Step("LiveKit loses the room", closed, False)
        if state.phone == RINGING:
            yield Step("the phone is answered", state._replace(phone=ACTIVE))
            yield Step("the phone is not answered", phone_leaves(config, state))
        elif state.phone == ACTIVE:
            yield Step("the callee hangs up", phone_leaves(config, state))
            if faults.migrations and ("moved", room.sid) not in state.events:
                moved = _spend(state, "migrations")._replace(events=state.events | {("moved", room.sid)})
                yield Step("LiveKit moves the phone", moved, False)
        if state.phone in IN_ROOM and faults.orphans:
            gone = OVER if state.phone == ACTIVE else UNANSWERED
            orphan = _spend(state, "orphans")._replace(phone=gone, shows=state.phone)
            yield Step("LiveKit's server dies, its room is still shown", orphan, False)
        if state.phone == ACTIVE and faults.restarts:
            again = _spend(state, "restarts")._replace(shows=RINGING)
            yield Step("LiveKit's server restarts, the phone is shown as ringing", again, False)
    if state.shows == RINGING and not state.rung_out and call.status in (DIALING, IN_PROGRESS):
        yield Step("the time that LiveKit lets a phone ring is over", state._replace(rung_out=True))
    if state.phone == JOINING:
        yield Step("the phone rings", phone_rings(config, state))
    if config.grows_old and not state.too_old and call.status == QUEUED:
        yield Step("the call grows too old to wait", state._replace(too_old=True))
    if call.waiting:
        yield Step("the wait is over", state._replace(call=call._replace(waiting=False)))
    # A stale index shows the call for longer.
    if call.line == WAITS or "admit: line as seen" in config.without:
        yield from _admission(config, state)
    yield from _time(config, state)
    if state.copy.write:
        yield _late_copy(config, state)


def _admission(config: Config, state: State) -> Iterator[Step]:
    """The process that frees a slot, or the reconciler, claims the call; its message comes at any time."""
    after = record.admit(config, state)
    step = Step("the call is admitted" if after else "another process has the call", after or state)
    yield from _written(config, state, lambda now, _: now, step, Copy("admit"))


def _agents(config: Config, state: State, room: Room) -> Iterator[Step]:
    faults = state.faults

    def now(spent: str, **changes: str) -> State:
        return _spend(state, spent)._replace(room=room._replace(**changes))  # type: ignore[arg-type]

    if room.agent == COMING:
        yield Step("the agent joins", agent_joins(config, state, second=False))
        if faults.lost_agents:
            yield Step("the agent's dispatch gets no job", now("lost_agents", agent=LOST), False)
    if room.second == COMING:
        yield Step("the agent of another dispatch joins", agent_joins(config, state, second=True))
    if room.agent == THERE and faults.lost_agents:
        yield Step("the agent leaves", now("lost_agents", agent=GONE), False)
    if faults.late_agents and not any(worker.at == "delete_dispatch" for worker in state.workers):
        for place in ("agent", "second"):
            if getattr(room, place) == LOST:
                yield Step("LiveKit tries a lost dispatch again", now("late_agents", **{place: COMING}), False)


def _time(config: Config, state: State) -> Iterator[Step]:
    call = state.call
    hurried = config.stall == "unchecked" and any(
        worker.at in RIGHT_BEHIND_A_CHECK and RIGHT_BEHIND_A_CHECK[worker.at] not in config.without
        for worker in state.workers
    )
    if state.phone == JOINING or hurried:
        return
    if call.live:
        held = any(process.lease == call.lease for process in (*state.workers, *state.reconcilers))
        if not held or config.stall != "never":
            over = state._replace(call=call._replace(live=False))
            yield Step(f"lease {call.lease} is over", over, not held)
    if call.missing == 1:
        yield Step("half a minute passes", state._replace(call=call._replace(missing=2)))


def _late_copy(config: Config, state: State) -> Step:
    copy, now = state.copy, state._replace(copy=Copy())
    seen = copy.seen or record.NOTHING_SEEN
    late = config._replace(late=True)
    writes: dict[str, Callable[[], State | None]] = {
        "take_slot": lambda: record.take_slot(late, now),
        "free_slot": lambda: record.free_slot(late, now),
        "wait": lambda: record.wait(late, now, copy.lease),
        "enter_line": lambda: record.enter_line(late, now, copy.lease, bool(copy.what)),
        "admit": lambda: record.admit(late, now),
        "hold": lambda: record.hold(late, now, copy.lease),
        "take_lease": lambda: record.take_lease(late, now, copy.lease),
        "fence": lambda: record.fence(late, now, copy.lease, int(copy.what)),
        "unfence": lambda: record.unfence(late, now, copy.lease),
        "answered": lambda: record.answered(late, now, copy.lease),
        "note_left": lambda: record.note_left(late, now, seen, str(copy.what)),
        "note_joined": lambda: record.note_joined(late, now, seen),
        "note_missing": lambda: record.note_missing(late, now, seen, bool(copy.what)),
        "ask_to_hang_up": lambda: record.ask_to_hang_up(late, now, seen),
        "end": lambda: record.end(late, now, seen),
        "leave_due": lambda: record.leave_due(late, now),
    }
    after = writes[copy.write]()
    label = "is executed" if after else "is lost"
    return Step(
        f"a late request ({copy.write}{f' of lease {copy.lease}' if copy.lease else ''}) {label}",
        after or now,
        False,
    )


def _crashes(state: State) -> Iterator[Step]:
    spent = _spend(state, "crashes")
    for place, worker in enumerate(state.workers):
        if worker.at and worker not in state.workers[:place]:
            others = state.workers[:place] + state.workers[place + 1 :]
            who = f"worker {worker.lease}" if worker.lease else "a worker"
            yield Step(f"{who} dies", spent._replace(workers=tuple(sorted((*others, NO_PROCESS)))), False)
    for place, process in enumerate(state.reconcilers):
        if process.at and process not in state.reconcilers[:place]:
            yield Step("the reconciler dies", _put_reconciler(spent, NO_PROCESS, place), False)
    if state.handler.at:
        yield Step("livekit_events dies", _put_handler(spent, NO_PROCESS), False)
    if state.canceller.at not in ("", "read"):
        yield Step("cancel dies", _put_canceller(spent, NO_PROCESS), False)
