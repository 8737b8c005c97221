"""The state of the modelled system: one call's record, LiveKit, the processes, and what may still go wrong.

One call is enough for all but the limit of calls at a time and the line: no other step of one call reads or
writes another's record, and its slot is its own element of a set. The limit is tried with two calls
(explore.explore_two), the line with up to four (line.py).
Time has no clock here. What a clock decides (a lease is over, half a minute has passed, the call is too old to
wait) happens as a step of its own, whenever the assumptions below allow it.

Assumptions, each of them a fact of AWS or LiveKit or a margin that durations.py keeps:
    - A lease outlives its holder: it is over only once the process that took it has finished or was killed.
      (`stall` drops this one.)
    - LiveKit joins the phone to the room within half a minute of taking the dial request, and within a lease.
    - A look that wrongly shows no phone is not repeated half a minute later.
    - Of a dial that rings although LiveKit said that nothing was dialled (`liars`), one of two events is stored by
      the time the worker would un-fence, half a minute later: the phone joined, or the phone left.
    - Between a look that shows a dispatch without a job and the request right behind it, it gets none.
    - LiveKit gives up a phone that rings within its ring time and 80 s.
    - A request that frees the slot of a call on its way into the line is not executed after the call was admitted
      and has taken a slot again.
Not assumed: that a process lives, that a message comes once or in order, that an event comes at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

# The record's status; all the ends are one here.
QUEUED, DIALING, IN_PROGRESS, ENDED = "queued", "dialing", "in_progress", "ended"
# The phone: never dialled, dialled and not yet in the room, in the room (two), gone unanswered, over.
NEVER, JOINING, RINGING, ACTIVE, UNANSWERED, OVER = "never", "joining", "ringing", "active", "unanswered", "over"
IN_ROOM = (RINGING, ACTIVE)
# The agent: not dispatched, its dispatch has a job, in the room, its dispatch got no job, gone again.
NO_AGENT, COMING, THERE, LOST, GONE = "no agent", "coming", "there", "lost", "gone"
# Its place in the line: it waits there; it was admitted and no worker has leased it since.
WAITS, ADMITTED = "waits", "admitted"


class Call(NamedTuple):
    """The record. lease: its serial number, 0 when there is none. missing: 0 no, 1 since just now, 2 for long.

    line: its place in the line, "" when it has none. item: whether it has a slotsItem, in which its slot is.
    room: roomSid and dialedAt. joined: phoneSeenAt. left: who was seen to go, the phone or the room. told: end
    events in its list.
    """

    status: str = QUEUED
    lease: int = 0
    live: bool = False
    attempts: int = 0
    waiting: bool = False
    line: str = ""
    item: bool = False
    room: int = 0
    hangup: bool = False
    joined: bool = False
    left: str = ""
    missing: int = 0
    due: bool = True
    told: int = 0


class Seen(NamedTuple):
    """What a process keeps of the record it read."""

    status: str
    lease: int
    hangup: bool
    left: str = ""
    missing: int = 0
    room: int = 0


class Room(NamedTuple):
    """LiveKit's room. sid: grows with every room made. made_by: the lease of the process that made it.

    second: an agent of another dispatch, coming or lost; "" when there is none.
    """

    sid: int
    agent: str
    made_by: int
    second: str = ""


class Process(NamedTuple):
    """A process between two steps. at: what it does next, "" when there is none; then: what after a check.

    proof: "prove", its looks are to prove that nothing rang; "orphan", it deletes an orphan room.
    """

    at: str = ""
    lease: int = 0
    attempts: int = 0
    room: int = 0
    missing: int = 0
    then: str = ""
    proof: str = ""
    seen: Seen | tuple[()] = ()


class Copy(NamedTuple):
    """A write's request, still under way. write: "" when there is none; what: what else the request says."""

    write: str = ""
    lease: int = 0
    seen: Seen | tuple[()] = ()
    what: int | str = 0


class Faults(NamedTuple):
    """How often each may still happen."""

    crashes: int = 0
    cuts: int = 0  # LiveKit's answer to a dial, or to the making of the room, is lost
    refusals: int = 0  # LiveKit does not do what it is asked; asked to dial, nothing rings
    liars: int = 0  # `unavailable`, and the phone rings all the same
    errors: int = 0  # a dial is answered by an error without a SIP code while the phone is on
    wrong_looks: int = 0  # a look that shows no phone though it is there
    lost_agents: int = 0  # a dispatch that gets lost, or an agent that leaves
    late_agents: int = 0  # LiveKit tries a lost dispatch once more
    orphans: int = 0  # LiveKit's server dies: the phone is gone, and looks go on showing it in its room
    restarts: int = 0  # LiveKit's server restarts: a phone that talks is shown as one that is being dialled
    lost_rooms: int = 0  # LiveKit closes a room without a request of this system
    full_slots: int = 0  # the workspace's limit is reached
    migrations: int = 0  # LiveKit tells that the phone left though it only moves
    late_copies: int = 0  # a write's request is executed once more, or first, at any later moment


class State(NamedTuple):
    call: Call = Call()
    # Whether this call holds a slot, and whether others hold all there are.
    slot: bool = False
    full: bool = False
    # LiveKit
    room: Room | None = None
    rooms: int = 0
    phone: str = NEVER
    # What looks show instead of the truth, "" when it is the truth; a phone cannot ring any more.
    shows: str = ""
    rung_out: bool = False
    lied: bool = False
    events: frozenset[tuple[str, int]] = frozenset()
    # processes; their order has no meaning and is kept sorted
    workers: tuple[Process, ...] = ()
    reconcilers: tuple[Process, ...] = ()
    canceller: Process = Process()
    handler: Process = Process()
    leases: int = 0
    # time, and what may still go wrong
    too_old: bool = False
    faults: Faults = Faults()
    copy: Copy = Copy()
    broken: str = ""


class Config(NamedTuple):
    """A bounded system. Everything in it is explored.

    leases: how many are ever taken. attempts: after so many refusals the call ends. events: LiveKit's come, any
    number of times, in any order, or not at all. overtime: a call may last longer than it may. waits: the trunk
    may be busy, and waiting takes time. lines: dialling may be paused, or the trunk stopped. repairs: the
    reconciler reads the slots. deaf: LiveKit deletes no room of an ended call, ever. stall: whether a worker may
    go on after its lease is over: never; anywhere but between a check of the lease (the fence is one) and the
    request right behind it; anywhere. late: the write looked at was sent long ago. copied: the writes that may be
    executed late. ignored: promises that are not made under these assumptions. without: conditions that are taken
    away.
    """

    name: str
    faults: Faults = Faults()
    workers: int = 2
    leases: int = 2
    attempts: int = 2
    reconcilers: int = 1
    cancel: bool = False
    events: bool = False
    overtime: bool = False
    grows_old: bool = True
    waits: bool = False
    lines: bool = False
    repairs: bool = False
    deaf: bool = False
    stall: Literal["never", "unchecked", "anywhere"] = "never"
    late: bool = False
    copied: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


# ── promises ────────────────────────────────────────────────────────────────────────────────────────

ONE_RING = "at most one dial is requested"
NO_RING_AFTER_END = "no phone begins to ring after the end is written"
ONE_END = "exactly one end, written with its event, and nothing after it"
NOT_CUT_OFF = "no call is hung up without a request"
NOT_ENDED_EARLY = "no end while the phone is connected"
HANGUP_STANDS = "a request to hang up is never undone or lost"
HANGUP_OBEYED = "no call continues after a request to hang up"
ONE_WORKER = "one worker at a time"
ONE_CHAIN = "one chain of messages"
AGENT_THERE = "no ring without an agent in the room"
AGENT_ASKED = "an agent is missing only after it was dispatched"
ONE_AGENT = "one agent in the room"
HELD_BY_ITS_DIALLER = "a fenced call keeps its dialler's lease"
SLOT_HELD = "no phone is connected without a slot, no more slots than the limit"
SLOT_FREED = "no slot needs the repair"
NO_SLOT_IN_LINE = "no call holds a slot while it waits in the line"
ROOM_GONE = "no agent is left behind in a room"
ALWAYS_ENDS = "once faults stop, the call ends, its slot is free, nothing is due"
NEEDS_NO_RESCUE = "without faults, an end without the reconciler"
PROMISES = frozenset(
    (
        ONE_RING,
        NO_RING_AFTER_END,
        ONE_END,
        NOT_CUT_OFF,
        NOT_ENDED_EARLY,
        HANGUP_STANDS,
        HANGUP_OBEYED,
        ONE_WORKER,
        ONE_CHAIN,
        AGENT_THERE,
        AGENT_ASKED,
        ONE_AGENT,
        HELD_BY_ITS_DIALLER,
        SLOT_HELD,
        SLOT_FREED,
        NO_SLOT_IN_LINE,
        ROOM_GONE,
        ALWAYS_ENDS,
        NEEDS_NO_RESCUE,
    )
)


def broken(config: Config, state: State, promise: str) -> State:
    """The step itself breaks the promise; the first one stays."""
    return state if state.broken or promise in config.ignored else state._replace(broken=promise)


def broken_promise(config: Config, state: State) -> str:
    """The promise that this state breaks, or ""."""
    if state.broken:
        return state.broken
    for promise in _broken_by(state):
        if promise not in config.ignored:
            return promise
    return ""


def _broken_by(state: State) -> Iterator[str]:
    call = state.call
    if (call.status == ENDED) != (call.told == 1):
        yield ONE_END
    if call.status == QUEUED and call.hangup:
        yield HANGUP_STANDS
    if call.status == DIALING and call.lease == 0:
        yield HELD_BY_ITS_DIALLER
    if state.phone in IN_ROOM and not state.slot:
        yield SLOT_HELD
    if call.status == QUEUED and call.line == WAITS and state.slot:
        yield NO_SLOT_IN_LINE
    if not call.due and (state.slot or state.room) and not _anybody_at_work(state):
        if state.slot:
            yield SLOT_FREED
        # A room that the phone has left closes by itself; one that it never joined keeps its agent for minutes.
        if state.room is not None and state.phone == NEVER:
            yield ROOM_GONE


def _anybody_at_work(state: State) -> bool:
    others = (state.canceller, state.handler)
    return any(process.at for process in (*state.workers, *state.reconcilers, *others))


def settled(config: Config, state: State) -> bool:
    """Ended, and nothing is left to do or to free."""
    if state.call.status != ENDED or state.slot:
        return False
    return config.deaf or (
        not state.call.due
        and (state.room is None or ROOM_GONE in config.ignored)
        and state.phone not in (JOINING, *IN_ROOM)
    )


# ── LiveKit ─────────────────────────────────────────────────────────────────────────────────────────


def create_room(config: Config, state: State, lease: int) -> State:
    """Get or create: the agents of a room that exists are ignored."""
    if state.room is not None:
        return state
    return state._replace(room=Room(state.rooms + 1, COMING, lease), rooms=state.rooms + 1)


def delete_room(config: Config, state: State) -> State:
    """Every participant leaves. A phone that has not joined yet recreates the room."""
    if state.room is None:
        return state
    room = state.room
    if state.phone in IN_ROOM:
        state = phone_leaves(config, cut_off(config, state))
    return close_room(config, state, room)


def close_room(config: Config, state: State, room: Room) -> State:
    return state._replace(room=None, events=_with_event(config, state, "room_finished", room.sid))


def orphaned(state: State) -> bool:
    """The room of a LiveKit server that died: nothing happens in it any more, and DeleteRoom does not find it."""
    return state.shows != "" and state.phone not in IN_ROOM


def revive_room(state: State) -> State:
    """CreateRoom of an orphan room's name: a room again, its agent dispatched once more, without a phone."""
    assert state.room is not None
    return state._replace(room=state.room._replace(agent=COMING, second=""), shows="")


def shown(state: State) -> str:
    """The phone as a look shows it, "" when it is not in the room."""
    return state.shows or (state.phone if state.phone in IN_ROOM else "")


def delete_dispatch(state: State, sid: int) -> State:
    """Of the room's agent; one that has a job may still come."""
    room = state.room
    if room is None or room.sid != sid or room.agent not in (COMING, LOST, GONE):
        return state
    return state._replace(
        room=room._replace(agent=NO_AGENT, second=COMING if room.agent == COMING else room.second)
    )


def create_dispatch(state: State, lease: int) -> State:
    """One more agent, each time; in a room made for it if there is none."""
    room = state.room
    if room is None:
        return state._replace(room=Room(state.rooms + 1, COMING, lease), rooms=state.rooms + 1)
    if room.agent in (NO_AGENT, GONE):
        return state._replace(room=room._replace(agent=COMING))
    if room.agent == LOST:
        return state._replace(room=room._replace(agent=COMING, second=LOST))
    return state._replace(room=room._replace(second=COMING))


def agent_joins(config: Config, state: State, second: bool) -> State:
    room = state.room
    assert room is not None
    if second and room.agent != THERE:
        return state._replace(room=room._replace(agent=THERE, second="" if room.agent == NO_AGENT else room.agent))
    joined = state._replace(room=room._replace(agent=THERE, second="" if second else room.second))
    return broken(config, joined, ONE_AGENT) if second else joined


def remove_participant(config: Config, state: State) -> State:
    """Hangs up a phone that is in the room; one that has not joined yet is not found."""
    return phone_leaves(config, cut_off(config, state)) if state.phone in IN_ROOM else state


def with_an_agent(state: State) -> bool:
    """The phone is in a room that an agent was asked into. Alone in a room made for it, it may be hung up."""
    return state.phone in IN_ROOM and state.room is not None and state.room.agent != NO_AGENT


def cut_off(config: Config, state: State) -> State:
    allowed = state.call.hangup or state.call.status == ENDED or not with_an_agent(state)
    return state if allowed else broken(config, state, NOT_CUT_OFF)


def dial(config: Config, state: State) -> State:
    """CreateSIPParticipant arrives: LiveKit will ring, whatever becomes of the one who asked."""
    if state.phone != NEVER:
        return broken(config, state, ONE_RING)
    return state._replace(phone=JOINING)


def phone_rings(config: Config, state: State) -> State:
    """The participant joins, in a room made for it if there is none, and the INVITE goes out."""
    if state.room is None:
        state = state._replace(room=Room(state.rooms + 1, NO_AGENT, 0), rooms=state.rooms + 1)
    if state.call.status == ENDED:
        state = broken(config, state, NO_RING_AFTER_END)
    room = state.room
    assert room is not None
    if room.agent in (NO_AGENT, COMING, LOST):
        state = broken(config, state, AGENT_THERE)
    if state.lied:
        # Of other dials it changes nothing that the phone was seen to join.
        state = state._replace(events=_with_event(config, state, "participant_joined", room.sid))
    return state._replace(phone=RINGING)


def phone_leaves(config: Config, state: State) -> State:
    assert state.room is not None
    return state._replace(
        phone=OVER if state.phone == ACTIVE else UNANSWERED,
        shows="",
        events=_with_event(config, state, "participant_left", state.room.sid),
    )


def _with_event(config: Config, state: State, kind: str, sid: int) -> frozenset[tuple[str, int]]:
    """Events stay: one may come any number of times, in any order, or never."""
    return state.events | {(kind, sid)} if config.events else state.events
