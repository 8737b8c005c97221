"""The conditional writes of functions/shared/call_store.py: each gives the state after it, or None when it is lost.

Every condition has a name; a name in `config.without` is a condition taken away.
"""

from __future__ import annotations

from tests.model.world import (
    DIALING,
    ENDED,
    HANGUP_STANDS,
    IN_PROGRESS,
    NOT_ENDED_EARLY,
    ONE_CHAIN,
    ONE_END,
    ONE_WORKER,
    QUEUED,
    Config,
    Seen,
    State,
    broken,
    with_an_agent,
)


def seen_in(state: State) -> Seen:
    """What a process that is about to end the call must have read of it."""
    return Seen(state.call.status, state.call.lease, state.call.hangup)


def take_lease(config: Config, state: State) -> State | None:
    call, without = state.call, config.without
    if call.status != QUEUED and "lease_requires_queued" not in without:
        return None
    if call.live and "lease_requires_no_live_lease" not in without:
        return None
    if config.stall == "never" and any(worker.lease for worker in state.workers):
        state = broken(config, state, ONE_WORKER)
    call = call._replace(lease=state.leases + 1, live=True, attempts=call.attempts + 1, waiting=False)
    return state._replace(call=call, leases=state.leases + 1)


def wait(config: Config, state: State, lease: int, uncount: bool = False) -> State | None:
    """lease: its holder's; 0: of whoever first finds the call free."""
    call, without = state.call, config.without
    if call.status != QUEUED and "wait_requires_queued" not in without:
        return None
    if lease:
        if call.lease != lease and "wait_requires_own_lease" not in without:
            return None
    else:
        if call.live and "wait_requires_no_live_lease" not in without:
            return None
        if call.waiting and "wait_requires_not_waiting" not in without:
            return None
    if call.waiting:
        state = broken(config, state, ONE_CHAIN)
    call = call._replace(waiting=config.waits, lease=0, live=False, attempts=call.attempts - uncount)
    return state._replace(call=call)


def fence(config: Config, state: State, lease: int, room: int) -> State | None:
    call, without = state.call, config.without
    if call.status != QUEUED and "fence_requires_queued" not in without:
        return None
    if call.lease != lease and "fence_requires_own_lease" not in without:
        return None
    # The time it compares with is the worker's: read before the write, so a stall in between is not seen.
    if not call.live and config.stall != "anywhere" and "fence_requires_live_lease" not in without:
        return None
    if call.hangup and "fence_requires_no_hangup" not in without:
        return None
    if call.status == ENDED:
        state = broken(config, state, ONE_END)
    if call.hangup:
        state = broken(config, state, HANGUP_STANDS)
    return state._replace(call=call._replace(status=DIALING, room=room))


def unfence(config: Config, state: State, lease: int) -> State | None:
    call, without = state.call, config.without
    if call.status != DIALING and "unfence_requires_dialing" not in without:
        return None
    if call.lease != lease and "unfence_requires_own_lease" not in without:
        return None
    if call.hangup and "unfence_requires_no_hangup" not in without:
        return None
    if call.left and "unfence_requires_no_left" not in without:
        return None
    if call.status == ENDED:
        state = broken(config, state, ONE_END)
    return state._replace(
        call=call._replace(status=QUEUED, lease=0, live=False, room=0, waiting=config.waits)
    )


def answered(config: Config, state: State, lease: int) -> State | None:
    call, without = state.call, config.without
    if call.status != DIALING and "answered_requires_dialing" not in without:
        return None
    if call.lease != lease and "answered_requires_own_lease" not in without:
        return None
    if call.hangup and "answered_requires_no_hangup" not in without:
        return None
    if call.status == ENDED:
        state = broken(config, state, ONE_END)
    if call.hangup:
        state = broken(config, state, HANGUP_STANDS)
    return state._replace(call=call._replace(status=IN_PROGRESS, missing=0))


def note_left(config: Config, state: State, sid: int) -> State | None:
    call, without = state.call, config.without
    if call.status != DIALING and "left_requires_dialing" not in without:
        return None
    if call.room != sid and "left_requires_same_room" not in without:
        return None
    return None if call.left else state._replace(call=call._replace(left=True))


def note_missing(state: State, seen: Seen, missing: bool) -> State | None:
    """The time of the first look that found nobody stays; a look that found somebody clears it."""
    call = state.call
    if call.status != seen.status:
        return None
    return state._replace(call=call._replace(missing=(call.missing or seen.missing or 1) if missing else 0))


def ask_to_hang_up(config: Config, state: State, seen: Seen) -> State | None:
    call = state.call
    if (call.status != seen.status and "hangup_requires_status_as_seen" not in config.without) or call.hangup:
        return None
    return state._replace(call=call._replace(hangup=True))


def end(config: Config, state: State, seen: Seen) -> State | None:
    call, without = state.call, config.without
    if call.status != seen.status and "end_requires_status_as_seen" not in without:
        return None
    if call.lease != seen.lease and "end_requires_lease_as_seen" not in without:
        return None
    if call.hangup != seen.hangup and "end_requires_hangup_as_seen" not in without:
        return None
    if call.status == ENDED:
        state = broken(config, state, ONE_END)
    if call.hangup and not seen.hangup:
        state = broken(config, state, HANGUP_STANDS)
    if with_an_agent(state) and not call.hangup:
        state = broken(config, state, NOT_ENDED_EARLY)
    due = "end_stays_due" not in without
    # Nobody asks any more what had been noted, nor whether the lease of a call that was fenced is over.
    live = call.live and (not call.room or config.stall != "never")
    call = call._replace(status=ENDED, live=live, waiting=False, left=False, missing=0, due=due)
    return state._replace(call=call, too_old=False)


def free_slot(state: State) -> State:
    return state._replace(slot=False)


def leave_due(state: State) -> State:
    return state._replace(call=state.call._replace(due=False))
