"""The conditional writes of functions/shared/call_store.py, and those of a slot.

Each gives the state after it, or None when it is lost.

What a write asks for is not written here: it is the text that the code sends to DynamoDB (conditions.IN_FORCE).
"""

from __future__ import annotations

from collections.abc import Callable

from tests.model.conditions import IN_FORCE
from tests.model.state import (
    ADMITTED,
    ALWAYS_ENDS,
    DIALING,
    ENDED,
    HANGUP_OBEYED,
    HANGUP_STANDS,
    IN_PROGRESS,
    NOT_ENDED_EARLY,
    ONE_CHAIN,
    ONE_END,
    ONE_WORKER,
    QUEUED,
    SLOT_HELD,
    WAITS,
    Call,
    Config,
    Seen,
    State,
    broken,
    with_an_agent,
)

# What the named parts of a condition mean: of the record, the asker's lease, what it saw, and whether its clock
# may have been read long before (a process that stalled in between).
MEANINGS: dict[str, Callable[[Call, int, Seen, bool], bool]] = {
    "queued": lambda call, lease, seen, stale: call.status == QUEUED,
    "not queued": lambda call, lease, seen, stale: call.status != QUEUED,
    "dialing": lambda call, lease, seen, stale: call.status == DIALING,
    "status as seen": lambda call, lease, seen, stale: call.status == seen.status,
    "no live lease": lambda call, lease, seen, stale: not call.live,
    "not waiting": lambda call, lease, seen, stale: not call.waiting,
    "not in line": lambda call, lease, seen, stale: call.line != WAITS,
    # Of a call that was seen in the line: it leaves it by its admission, which stays noted until it comes back.
    "not admitted": lambda call, lease, seen, stale: call.line == WAITS,
    "line as seen": lambda call, lease, seen, stale: call.line == WAITS,
    # A call keeps its turn.
    "turn as seen": lambda call, lease, seen, stale: True,
    "no slots item": lambda call, lease, seen, stale: not call.item,
    "lease mine": lambda call, lease, seen, stale: call.lease == lease != 0,
    "no lease": lambda call, lease, seen, stale: call.lease == 0,
    "lease live": lambda call, lease, seen, stale: call.live or (stale and call.lease != 0),
    "no hangup": lambda call, lease, seen, stale: not call.hangup,
    "hangup": lambda call, lease, seen, stale: call.hangup,
    "no phone seen": lambda call, lease, seen, stale: not call.joined,
    "nothing left": lambda call, lease, seen, stale: not call.left,
    "no event about the phone": lambda call, lease, seen, stale: call.left != "phone",
    # When to look next is not modelled: looks come at any time.
    "next look as seen": lambda call, lease, seen, stale: True,
    "room as seen": lambda call, lease, seen, stale: call.room == seen.room,
    # A call keeps its times; gates.py has calls that are given others.
    "times as seen": lambda call, lease, seen, stale: True,
    "ended": lambda call, lease, seen, stale: call.status == ENDED,
}
NOTHING_SEEN = Seen("", 0, False)


def lost(config: Config, state: State, write: str, lease: int = 0, seen: Seen = NOTHING_SEEN) -> bool:
    """Whether the write's condition does not hold."""
    stale = config.late or config.stall == "anywhere"
    for switch, name in IN_FORCE[write]:
        if switch not in config.without and not MEANINGS[name](state.call, lease, seen, stale):
            return True
    return False


def seen_in(state: State) -> Seen:
    """What a process that is about to end the call must have read of it."""
    return Seen(state.call.status, state.call.lease, state.call.hangup)


def take_lease(config: Config, state: State, lease: int = 0) -> State | None:
    """lease: of a copy of an earlier request; 0: a new one."""
    if lost(config, state, "take_lease"):
        return None
    state = _not_after_the_end(config, state)
    if config.stall == "never" and any(worker.lease for worker in state.workers):
        state = broken(config, state, ONE_WORKER)
    call = state.call
    if call.waiting:
        state = broken(config, state, ONE_CHAIN)
    lease, leases = (lease, state.leases) if lease else (state.leases + 1, state.leases + 1)
    call = call._replace(lease=lease, live=True, attempts=call.attempts + 1, waiting=False, line="", item=True)
    return state._replace(call=call, leases=leases)


def wait(config: Config, state: State, lease: int) -> State | None:
    """lease: as held, or as read; 0: there was none."""
    if lost(config, state, "wait" if lease else "wait_free", lease):
        return None
    state = _not_after_the_end(config, state)
    call = state.call
    if call.waiting:
        state = broken(config, state, ONE_CHAIN)
    return state._replace(call=call._replace(waiting=config.waits, lease=0, live=False))


def enter_line(config: Config, state: State, lease: int, uncount: bool = False) -> State | None:
    """lease: as held; 0: the call was read without one."""
    if lost(config, state, "enter_line" if lease else "enter_line_free", lease):
        return None
    state = _not_after_the_end(config, state)
    attempts = state.call.attempts - uncount
    call = state.call._replace(line=WAITS, waiting=False, lease=0, live=False, item=False, attempts=attempts)
    return state._replace(call=call)


def admit(config: Config, state: State) -> State | None:
    """By any process that the call's end, its entry into the line or the reconciler makes admit it."""
    if lost(config, state, "admit"):
        return None
    state = _not_after_the_end(config, state)
    if state.call.line != WAITS:
        state = broken(config, state, ONE_CHAIN)
    return state._replace(call=state.call._replace(line=ADMITTED, lease=0, live=False))


def hold(config: Config, state: State, lease: int = 0) -> State | None:
    """lease: of a copy of an earlier request; 0: a new one."""
    if lost(config, state, "hold"):
        return None
    state = _not_after_the_end(config, state)
    lease, leases = (lease, state.leases) if lease else (state.leases + 1, state.leases + 1)
    return state._replace(call=state.call._replace(lease=lease, live=True), leases=leases)


def fence(config: Config, state: State, lease: int, room: int) -> State | None:
    if lost(config, state, "fence", lease):
        return None
    state = _not_after_the_end(config, state)
    if state.call.hangup:
        state = broken(config, state, HANGUP_OBEYED)
    return state._replace(call=state.call._replace(status=DIALING, room=room))


def unfence(config: Config, state: State, lease: int) -> State | None:
    if lost(config, state, "unfence", lease):
        return None
    state = _not_after_the_end(config, state)
    call = state.call._replace(status=QUEUED, lease=0, live=False, room=0, waiting=config.waits)
    return state._replace(call=call)


def answered(config: Config, state: State, lease: int) -> State | None:
    if lost(config, state, "answered", lease):
        return None
    state = _not_after_the_end(config, state)
    if state.call.hangup:
        state = broken(config, state, HANGUP_OBEYED)
    return state._replace(call=state.call._replace(status=IN_PROGRESS, missing=0))


def note_left(config: Config, state: State, seen: Seen, left: str) -> State | None:
    if lost(config, state, "note_left", seen=seen):
        return None
    return _not_after_the_end(config, state)._replace(call=state.call._replace(left=left))


def note_joined(config: Config, state: State, seen: Seen) -> State | None:
    if lost(config, state, "note_joined", seen=seen):
        return None
    return _not_after_the_end(config, state)._replace(call=state.call._replace(joined=True))


def note_missing(config: Config, state: State, seen: Seen, missing: bool) -> State | None:
    """The time of the first look that found no phone is kept; a look that finds one clears it."""
    if lost(config, state, "note_missing", seen=seen):
        return None
    call = state.call
    first = 2 if config.late else seen.missing or 1
    return state._replace(call=call._replace(missing=(call.missing or first) if missing else 0))


def ask_to_hang_up(config: Config, state: State, seen: Seen) -> State | None:
    if lost(config, state, "ask_to_hang_up", seen=seen):
        return None
    return _not_after_the_end(config, state)._replace(call=state.call._replace(hangup=True))


def end(config: Config, state: State, seen: Seen) -> State | None:
    if seen.status == ENDED and "no end follows an end" not in config.without:
        return None
    names = " and ".join(name for name, there in (("lease", seen.lease), ("hangup", seen.hangup)) if there)
    if lost(config, state, f"end, {names} seen" if names else "end", seen.lease, seen):
        return None
    state = _not_after_the_end(config, state)
    call = state.call
    if call.hangup and not seen.hangup:
        state = broken(config, state, HANGUP_STANDS)
    if with_an_agent(state):
        state = broken(config, state, NOT_ENDED_EARLY)
    due = "an ended call stays due" not in config.without
    told = call.told + ("the end and its event are one write" not in config.without)
    # No later step reads what had been noted, or whether the lease of a fenced call is over.
    live = call.live and (not call.room or config.stall != "never")
    call = call._replace(
        status=ENDED, live=live, waiting=False, line="", joined=False, left="", missing=0, due=due, told=told
    )
    return state._replace(call=call, too_old=False)


def leave_due(config: Config, state: State) -> State | None:
    if lost(config, state, "leave_due"):
        return None
    if state.call.status != ENDED:
        state = broken(config, state, ALWAYS_ENDS)
    return state._replace(call=state.call._replace(due=False))


def take_slot(config: Config, state: State) -> State | None:
    """Of the workspace's slots; `full`: others have all there are."""
    own = state.slot and "take_slot: its own slot" not in config.without
    if state.full and not own and "take_slot: limit" not in config.without:
        return None
    taken = state._replace(slot=True)
    return broken(config, taken, SLOT_HELD) if state.full and not state.slot else taken


def free_slot(config: Config, state: State) -> State:
    return state._replace(slot=False)


def _not_after_the_end(config: Config, state: State) -> State:
    return broken(config, state, ONE_END) if state.call.status == ENDED else state
