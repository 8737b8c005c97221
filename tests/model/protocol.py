"""Every process as steps, each one request to DynamoDB or LiveKit, as the code under functions/ makes them.

`steps` gives all that can happen in a state. Messages are not counted: a message for the call may come at any
time, because SQS delivers twice and the reconciler sends again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model import record
from tests.model.record import seen_in
from tests.model.world import (
    ACTIVE,
    AGENT_ASKED,
    COMING,
    DIALING,
    ENDED,
    IN_PROGRESS,
    IN_ROOM,
    JOINING,
    LOST,
    NEVER,
    OVER,
    QUEUED,
    RINGING,
    SLOT_HELD,
    THERE,
    UNANSWERED,
    Config,
    Process,
    Seen,
    State,
    broken,
    close_room,
    create_room,
    delete_room,
    dial,
    phone_leaves,
    phone_rings,
    remove_participant,
)

NOBODY = Process()
# What must follow at once on a check of the lease: nothing else holds it back.
RIGHT_BEHIND_A_CHECK = {
    "delete_room": "the worker looks whether its lease is over",
    "step_back": "the worker looks whether its lease is over",
    "dial": "fence: lease live",
}


class Step(NamedTuple):
    """fair: happens by itself, sooner or later, once faults stop. LiveKit's events and a cancel are not."""

    label: str
    after: State
    fair: bool = True


def initial(config: Config) -> State:
    return State(
        workers=(NOBODY,) * config.workers,
        reconcilers=(NOBODY,) * config.reconcilers,
        canceller=Process("read") if config.cancel else NOBODY,
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
    yield from _world(config, state)
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


def _ending(
    config: Config, state: State, who: str, process: Process, put: Put, won: Process, lost: Process
) -> Iterator[Step]:
    """end_call: lost to a request to hang up alone it is tried again, with that in view."""
    seen = process.seen
    assert isinstance(seen, Seen)
    after = record.end(config, state, seen)
    if after is not None:
        if "the end and its event are one write" in config.without:
            won = Process("tell", then=won.at)
        yield Step(f"{who} ends the call", put(after, won))
    elif state.call.status == seen.status and state.call.lease == seen.lease:
        now = seen._replace(hangup=state.call.hangup)
        yield Step(f"{who} loses the end to a request to hang up", put(state, process._replace(seen=now)))
    elif "only the winner of the end clears" in config.without:
        yield Step(f"{who} loses the end, and clears", put(state, Process("clear_room")))
    else:
        yield Step(f"{who} loses the end", put(state, lost))


def _clearing(config: Config, state: State, who: str, process: Process, put: Put) -> Iterator[Step]:
    """The room first, then the slot, then out of the index of what is due."""
    index_first = "the slot is freed before the call leaves the index" in config.without
    match process.at:
        case "tell":
            told = state._replace(call=state.call._replace(told=state.call.told + 1))
            yield Step(f"{who} appends the event of the end", put(told, Process(process.then)))
        case "clear_room":
            cleared = Process("leave_due" if index_first else "free_slot")
            if "the room is deleted before the slot is freed" in config.without:
                yield Step(f"{who} leaves the room", put(state, cleared))
            else:
                yield Step(f"{who} deletes the room", put(delete_room(config, state), cleared))
            if state.faults.refusals:
                yield Step(f"{who} cannot delete the room", put(_spend(state, "refusals"), NOBODY), False)
        case "free_slot":
            kept = NOBODY if process.then or index_first else Process("leave_due")
            yield Step(f"{who} frees the slot", put(state._replace(slot=False), kept))
        case "leave_due":
            gone = Process("free_slot") if index_first else NOBODY
            yield Step(f"{who} takes the call out of the index", put(record.leave_due(config, state), gone))


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
        if config.stall == "never" or "the worker looks whether its lease is over" in config.without:
            return go(label, after, at, fair, **changes)
        return go(label, after, "check", fair, then=at, **changes)

    def stop(label: str, after: State, fair: bool = True) -> Step:
        return Step(f"{who} {label}", put(after, NOBODY), fair)

    def written(label: str, kind: str, after: State, process: Process) -> Iterator[Step]:
        yield Step(f"{who} {label}", put(after, process))
        if state.faults.late_copies and not state.late_copy[0]:
            copied = _spend(after, "late_copies")._replace(late_copy=(kind, process.lease or worker.lease))
            yield Step(f"{who} {label}; a copy of the write is still under way", put(copied, process), False)

    call, faults, without = state.call, state.faults, config.without
    mine = Seen(DIALING, worker.lease, False)
    unclear = "unfence_look" if "an unclear dial is not sent again" in without else "look"
    left = call.left == "phone" or (call.left and "a closed room alone ends no dial" in without)
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
                yield stop("finds the call taken", state)
            else:
                leased = Process("slot", after.call.lease, after.call.attempts)
                if {"lease before slot", "slot before the dial"} & without:
                    leased = leased._replace(at=_room_step(leased))
                yield from written(f"takes lease {after.call.lease}", "take_lease", after, leased)
        case "wait_as_read":
            assert isinstance(worker.seen, Seen)
            after = record.wait(config, state, worker.seen.lease)
            if after is not None:
                yield stop("finds dialling paused and waits", after)
            elif (
                call.status == ENDED
                and worker.seen.lease
                and (call.lease == worker.seen.lease or "waiting clears only what nobody else holds" in without)
            ):
                yield go("finds dialling paused, then the call ended", state, "clear_room")
            else:
                yield stop("finds dialling paused and the call taken", state)
        case "slot":
            own = state.slot and "take_slot: its own slot" not in without
            if not own and (state.full or faults.full_slots):
                full = state if state.full else _spend(state, "full_slots")
                yield go("finds no free slot", full, "wait", state.full, then="uncount")
            if state.slot or not state.full or "take_slot: limit" in without:
                taken = state._replace(slot=True)
                if state.full and not state.slot:
                    taken = broken(config, taken, SLOT_HELD)
                if not worker.lease:
                    yield go("takes the slot", taken, "lease")
                else:
                    yield checked("takes the slot", taken, _room_step(worker))
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
            agent = state.room.agent if state.room is not None else LOST
            if agent == THERE:
                yield checked("sees the agent in the room", state, "fence")
            elif agent != COMING:
                stale = state.room is not None and state.room.made_by != worker.lease
                after = broken(config, state, AGENT_ASKED) if stale else state
                yield checked("sees no agent come", after, "end", seen=Seen(QUEUED, worker.lease, False))
            elif "the agent comes before the dial" in without:
                yield checked("does not wait for the agent", state, "fence")
            if agent == THERE and config.waits:
                yield checked("finds dialling paused, or too little time for the dial", state, "step_back", False)
            yield from no_livekit("cannot look for the agent")
        case "step_back":
            yield go("deletes the room", delete_room(config, state), "wait")
            if faults.refusals:
                yield go("cannot delete the room", _spend(state, "refusals"), "wait", False)
        case "fence":
            after = record.fence(config, state, worker.lease, worker.room)
            if after is not None:
                yield from written("fences the call", "fence", after, worker._replace(at="dial"))
            elif "only the winner of the fence dials" in without:
                yield go("loses the fence, and dials", state, "dial")
            elif call.status == ENDED:
                yield checked("finds the call ended", state, "clear_room")
            else:
                yield stop("loses the fence", state)
        case "dial":
            yield go("asks LiveKit to dial", dial(config, state), "answer")
            if faults.refusals:
                refused = _spend(state, "refusals")
                yield checked("asks LiveKit to dial: unavailable", refused, "unfence_look", False)
            if faults.cuts:
                yield checked("asks LiveKit to dial: the request is lost", _spend(state, "cuts"), unclear, False)
            if faults.liars:
                rung = phone_rings(config, dial(config, _spend(state, "liars")._replace(lied=True)))
                yield checked("asks LiveKit to dial: unavailable, but it rings", rung, "unfence_look", False)
        case "answer":
            if state.phone in (ACTIVE, OVER):
                yield checked("hears that the phone was answered", state, "answered")
            elif state.phone == UNANSWERED:
                yield checked("hears that the phone was not answered", state, "end", seen=mine)
            if faults.cuts and state.phone in (JOINING, RINGING):
                yield checked("loses the connection", _spend(state, "cuts"), unclear, False)
                if "a dial is sent once" in without:
                    yield go("loses the connection, and the client dials again", dial(config, state), "answer")
        case "answered":
            after = record.answered(config, state, worker.lease)
            if after is not None:
                done = NOBODY
                if after.call.left and "an answer looks at what left" not in without:
                    done = worker._replace(at="end", seen=seen_in(after))
                yield from written("writes the answer", "answered", after, done)
            elif still_mine and call.hangup:
                yield go("finds that it must hang up", state, "hang_up", seen=seen_in(state))
            else:
                yield stop("finds the answer written", state)
        case "hang_up":
            yield go("deletes the room", delete_room(config, state), "end")
            if faults.refusals:
                yield stop("cannot delete the room", _spend(state, "refusals"), False)
        case "unfence_look":
            if state.phone in IN_ROOM and "un-fence: nobody in the room" not in without:
                yield go("sees the phone in the room", state, "look")
            elif worker.attempts >= config.attempts:
                yield go("sees nobody in the room, for the last time", state, "end", seen=mine)
            else:
                yield go("sees nobody in the room", state, "unfence")
        case "unfence":
            after = record.unfence(config, state, worker.lease)
            if after is not None:
                yield from written("un-fences the call", "unfence", after, NOBODY)
            elif still_mine:
                yield go("may not un-fence", state, "end", seen=seen_in(state))
            else:
                yield stop("finds the call taken away", state)
        case "look":
            if state.phone == ACTIVE:
                yield checked("sees that the phone was answered", state, "answered")
            if state.phone not in IN_ROOM:
                yield go("sees nobody in the room", state, "read")
            elif faults.wrong_looks:
                yield go("wrongly sees nobody in the room", _spend(state, "wrong_looks"), "read", False)
            if state.phone == RINGING and worker.missing:
                yield go("sees the phone ring", state, "look", missing=0)
            yield stop("has no time left to look", state)
        case "read":
            if not still_mine:
                yield stop("finds the call taken away", state)
            elif left or worker.missing == 2 or "the worker looks twice" in without:
                yield go("knows that the phone is gone", state, "end", seen=seen_in(state))
            else:
                yield checked("will look again", state, "look", missing=worker.missing or 1)
        case "wait":
            after = record.wait(config, state, worker.lease, worker.then == "uncount")
            if after is not None:
                yield from written("waits", "wait", after, NOBODY)
            elif call.status == ENDED:
                yield go("finds the call ended", state, "clear_room")
            else:
                yield stop("finds the call taken", state)
        case "end":
            yield from _ending(config, state, who, worker, put, Process("clear_room"), NOBODY)
        case _:
            yield from _clearing(config, state, who, worker, put)
    # It looks every other second meanwhile, and would have seen a phone that is there.
    if worker.at == "look" and worker.missing == 1 and state.phone not in (JOINING, *IN_ROOM):
        yield go("waits half a minute", state, "look", missing=2)


def _room_step(worker: Process) -> str:
    return "delete_room" if worker.attempts > 1 else "create_room"


def _message(config: Config, state: State, put: Put) -> Iterator[Step]:
    """A message comes, and the record is read."""
    call = state.call
    if call.status != QUEUED or call.live or call.waiting:
        return
    if state.too_old:
        yield Step("a worker finds the call too old", put(state, Process("end", seen=seen_in(state))))
        return
    if state.leases < config.leases:
        first = "slot" if "lease before slot" in config.without else "lease"
        yield Step("a worker gets a message", put(state, Process(first)))
    if config.waits:
        yield Step("a worker gets a message", put(state, Process("wait_as_read", seen=seen_in(state))), False)


# ── reconcile_calls/reconcile.py ────────────────────────────────────────────────────────────────────


def _reconciler(config: Config, state: State, place: int, process: Process) -> Iterator[Step]:
    call, without, who = state.call, config.without, "the reconciler"

    def put(after: State, process: Process) -> State:
        return _put_reconciler(after, process, place)

    def go(label: str, after: State, at: str, **changes: object) -> Step:
        return Step(f"{who} {label}", put(after, process._replace(at=at, **changes)))  # type: ignore[arg-type]

    def stop(label: str, after: State, fair: bool = True) -> Step:
        return Step(f"{who} {label}", put(after, NOBODY), fair)

    seen = process.seen
    match process.at:
        case "":
            if call.due:
                yield from _due(config, state, put)
        case "look":
            assert isinstance(seen, Seen)
            there = state.phone in IN_ROOM
            if there:
                yield _present(state, process, seen, put)
            if not there or state.faults.wrong_looks:
                absent = _spend(state, "wrong_looks") if there else state
                known = seen.missing == 2 or "the reconciler looks twice" in without
                if seen.status == DIALING:
                    known = known or bool(seen.left)
                step = go(
                    f"{'wrongly ' if there else ''}sees nobody in the room",
                    absent,
                    "end" if known else "note_missing",
                    seen=seen._replace(left="", missing=0) if known else seen,
                )
                yield step._replace(fair=not there)
        case "note_missing" | "note_there":
            assert isinstance(seen, Seen)
            after = record.note_missing(config, state, seen, process.at == "note_missing")
            yield stop("notes what it saw" if after else "finds the call changed", after or state)
        case "answered":
            assert isinstance(seen, Seen)
            after = record.answered(config, state, seen.lease)
            yield stop("writes the answer" if after else "loses the answer", after or state)
        case "ask":
            assert isinstance(seen, Seen)
            after = record.ask_to_hang_up(config, state, seen)
            if after is not None:
                yield go("asks to hang up: it lasts too long", after, "hang_up", seen=seen_in(after))
            else:
                yield stop("finds the call changed", state)
        case "remove":
            yield stop("takes the phone out of the room", remove_participant(config, state))
        case "hang_up":
            assert isinstance(seen, Seen)
            if seen.status == DIALING:
                yield stop("deletes the room", delete_room(config, state))
            else:
                yield go("deletes the room", delete_room(config, state), "hang_up_look")
        case "hang_up_look":
            if state.phone in IN_ROOM:
                yield stop("sees the phone in the room", state)
            else:
                yield go("sees nobody in the room", state, "end")
        case "end":
            won = Process("clear_room" if call.attempts else "free_slot")
            yield from _ending(config, state, who, process, put, won, NOBODY)
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
            if call.room or not call.live or "clearing waits for a foreign lease" in without:
                listed = state.room is not None
                yield start("ended" if listed else "ended, no room", "clear_room" if listed else "free_slot")


def _present(state: State, process: Process, seen: Seen, put: Put) -> Step:
    label = "the reconciler sees the phone in the room"

    def go(at: str) -> Step:
        return Step(label, put(state, process._replace(at=at)))

    if seen.status == DIALING and seen.hangup:
        return go("hang_up" if state.phone == ACTIVE else "remove")
    if seen.status == DIALING and state.phone == ACTIVE and seen.lease:
        return go("answered")
    return go("note_there") if seen.missing else Step(label, put(state, NOBODY))


# ── calls_api/cancel.py ─────────────────────────────────────────────────────────────────────────────


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
                yield Step("cancel finds the call ended", put(state, NOBODY), False)
            elif call.status == QUEUED:
                # Canceled by the API is a reason of its own: what the record says of hanging up is the same.
                yield go("finds the call queued", state, "end", False, read)
            elif "a fenced call is not canceled but hung up" in config.without:
                yield go(f"finds the call {call.status}", state, "end", False, read)
            else:
                yield go(f"finds the call {call.status}", state, "hang_up" if call.hangup else "ask", False, read)
        case "ask":
            assert isinstance(seen, Seen)
            after = record.ask_to_hang_up(config, state, seen)
            yield go("asks to hang up" if after else "loses", after or state, "hang_up" if after else "read")
        case "hang_up":
            assert isinstance(seen, Seen)
            if seen.status == DIALING and "the room stays while it rings" not in config.without:
                after = remove_participant(config, state)
            else:
                after = delete_room(config, state)
            yield Step("cancel hangs up", put(after, NOBODY))
        case "end":
            untouched = not call.attempts or "cancel clears only what nobody touched" in config.without
            won = Process("free_slot") if untouched else NOBODY
            yield from _ending(config, state, who, process, put, won, Process("read"))
        case _:
            yield from _clearing(config, state, who, process, put)


# ── livekit_events/settle.py ────────────────────────────────────────────────────────────────────────


def _handler(config: Config, state: State) -> Iterator[Step]:
    call, process, without = state.call, state.handler, config.without
    put, who = _put_handler, "livekit_events"
    # Its end frees the slot and stays due: the room closes by itself.
    slot_only = Process("free_slot", then="stays due")

    match process.at:
        case "":
            for kind, sid in state.events:
                yield from _event(config, state, kind, sid)
        case "note_left":
            assert isinstance(process.seen, Seen)
            after = record.note_left(config, state, process.seen, process.then)
            same_room = call.room == process.seen.room or "note_left: room as seen" in without
            if after is not None:
                yield Step(f"{who} notes that the {process.then} is gone", put(after, NOBODY))
            elif (
                call.status == IN_PROGRESS
                and same_room
                and "an event ends what was answered meanwhile" not in without
            ):
                yield Step(f"{who} finds the call answered", put(state, Process("end", seen=seen_in(state))))
            else:
                yield Step(f"{who} has nothing to note", put(state, NOBODY))
        case "end":
            yield from _ending(config, state, who, process, put, slot_only, NOBODY)
        case _:
            yield from _clearing(config, state, who, process, put)


def _event(config: Config, state: State, kind: str, sid: int) -> Iterator[Step]:
    """An event comes, and the record is read."""
    call, without = state.call, config.without

    def start(process: Process) -> Step:
        label = f"livekit_events gets {kind} of room {sid}, reads the record"
        return Step(label, _put_handler(state, process), not config.reconcilers)

    fenced = call.room or "an event clears only what was fenced" in without
    if call.room and call.room != sid and "an event of another room is ignored" not in without:
        return
    if kind == "moved" and "moving is no end" not in without:
        return
    if call.status == DIALING:
        if "an event ends no call that is dialing" in without:
            yield start(Process("end", seen=seen_in(state)))
        else:
            who = "room" if kind == "room_finished" else "phone"
            yield start(Process("note_left", then=who, seen=seen_in(state)._replace(room=call.room)))
    elif call.status == IN_PROGRESS:
        yield start(Process("end", seen=seen_in(state)))
    elif call.status == ENDED and kind == "room_finished" and call.due and fenced:
        yield start(Process("free_slot"))


# ── the world ───────────────────────────────────────────────────────────────────────────────────────


def _world(config: Config, state: State) -> Iterator[Step]:
    call, room, faults = state.call, state.room, state.faults
    if room is not None:
        if room.agent == COMING:
            yield Step("the agent joins", state._replace(room=room._replace(agent=THERE)))
            if faults.lost_agents:
                lost = _spend(state, "lost_agents")._replace(room=room._replace(agent=LOST))
                yield Step("the agent's dispatch is lost", lost, False)
        if room.agent == THERE and faults.lost_agents:
            lost = _spend(state, "lost_agents")._replace(room=room._replace(agent=LOST))
            yield Step("the agent leaves", lost, False)
        if state.phone in (UNANSWERED, OVER):
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
    if state.phone == JOINING:
        yield Step("the phone rings", phone_rings(config, state))
    if config.grows_old and not state.too_old and call.status == QUEUED:
        yield Step("the call grows too old to wait", state._replace(too_old=True))
    if call.waiting:
        yield Step("the wait is over", state._replace(call=call._replace(waiting=False)))
    yield from _time(config, state)
    if state.late_copy[0]:
        yield _late_copy(config, state)


def _time(config: Config, state: State) -> Iterator[Step]:
    call = state.call
    hurried = config.stall == "unchecked" and any(
        worker.at in RIGHT_BEHIND_A_CHECK and RIGHT_BEHIND_A_CHECK[worker.at] not in config.without
        for worker in state.workers
    )
    if state.phone == JOINING or hurried:
        return
    if call.live:
        held = any(worker.lease == call.lease for worker in state.workers)
        if not held or config.stall != "never":
            over = state._replace(call=call._replace(live=False))
            yield Step(f"lease {call.lease} is over", over, not held)
    if call.missing == 1:
        yield Step("half a minute passes", state._replace(call=call._replace(missing=2)))


def _late_copy(config: Config, state: State) -> Step:
    kind, lease = state.late_copy
    now = state._replace(late_copy=("", 0))
    writes: dict[str, Callable[[], State | None]] = {
        "wait": lambda: record.wait(config, now, lease),
        "take_lease": lambda: record.take_lease(config, now, lease),
        "fence": lambda: record.fence(config, now, lease, now.rooms),
        "unfence": lambda: record.unfence(config, now, lease),
        "answered": lambda: record.answered(config, now, lease),
    }
    after = writes[kind]()
    label = "is executed" if after else "is lost"
    return Step(f"the copy of worker {lease}'s write ({kind}) {label}", after or now, False)


def _crashes(state: State) -> Iterator[Step]:
    spent = _spend(state, "crashes")
    for place, worker in enumerate(state.workers):
        if worker.at and worker not in state.workers[:place]:
            others = state.workers[:place] + state.workers[place + 1 :]
            who = f"worker {worker.lease}" if worker.lease else "a worker"
            yield Step(f"{who} dies", spent._replace(workers=tuple(sorted((*others, NOBODY)))), False)
    for place, process in enumerate(state.reconcilers):
        if process.at and process not in state.reconcilers[:place]:
            yield Step("the reconciler dies", _put_reconciler(spent, NOBODY, place), False)
    if state.handler.at:
        yield Step("livekit_events dies", _put_handler(spent, NOBODY), False)
    if state.canceller.at not in ("", "read"):
        yield Step("cancel dies", _put_canceller(spent, NOBODY), False)
