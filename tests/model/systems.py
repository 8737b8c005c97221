"""The bounded systems that are explored, and the purpose of each condition of the protocol."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model.gates import (
    ALL,
    CAPPED,
    FENCED_AT_ONCE,
    IN_WINDOW,
    LET,
    NEVER,
    NO_WAIT_FOR_ITSELF,
    NOT_EARLY,
    NOT_FENCED,
    NOT_LEFT,
    OF_THE_NUMBER,
    SALES,
    SERVICE,
    GatesConfig,
    Operation,
)
from tests.model.gates import Faults as GatesFaults
from tests.model.line import (
    BY_ONE,
    FOR_A_SLOT,
    IN_TURN,
    NOT_OVERTAKEN,
    SERVED,
    LineConfig,
)
from tests.model.line import Faults as LineFaults
from tests.model.state import (
    AGENT_ASKED,
    AGENT_THERE,
    ALWAYS_ENDS,
    HANGUP_OBEYED,
    HANGUP_STANDS,
    HELD_BY_ITS_DIALLER,
    NO_RING_AFTER_END,
    NO_SLOT_IN_LINE,
    NOT_CUT_OFF,
    NOT_ENDED_EARLY,
    ONE_AGENT,
    ONE_CHAIN,
    ONE_END,
    ONE_RING,
    ONE_WORKER,
    PROMISES,
    ROOM_GONE,
    SLOT_FREED,
    SLOT_HELD,
    Config,
    Faults,
)

# A worker that wakes after its lease may still take a slot or make a room, for a call that has been cleared.
_LATE = frozenset({SLOT_FREED, NO_SLOT_IN_LINE, ROOM_GONE, ALWAYS_ENDS})
# With the last of its leases, a call that never grows old has no way on.
_STUCK = frozenset({ALWAYS_ENDS})
_NO_FAULTS = Faults()


def _one_lease(name: str, faults: Faults = _NO_FAULTS, **more: Any) -> Config:
    return Config(name, faults, workers=1, leases=1, **more)


def _late_write(name: str, copied: set[str], faults: Faults = _NO_FAULTS, **more: Any) -> Config:
    """Any of these writes may be executed late. A slot that is taken late waits for its repair."""
    return Config(
        f"a write executed late, {name}",
        faults._replace(late_copies=faults.late_copies or 1),
        repairs=True,
        copied=frozenset(copied),
        ignored=frozenset({SLOT_FREED, NO_SLOT_IN_LINE}),
        **more,
    )


def _late_worker(name: str, faults: Faults = _NO_FAULTS, ignored: frozenset[str] = _LATE, **more: Any) -> Config:
    name = f"a worker that resumes after its lease, {name}"
    return Config(name, faults, stall="unchecked", ignored=ignored, **more)


CALM = Config("no faults, and no reconciler", cancel=True, events=True, reconcilers=0, grows_old=False)
CANCELED = Config("a cancel, events in any order", cancel=True, events=True)
TWO_DEATHS = Config("two crashes, a refusal, no free slot", Faults(crashes=2, refusals=1, full_slots=1))
REFUSED = Config(
    "a crash, a refusal, a cancel", Faults(crashes=1, refusals=1), cancel=True, grows_old=False, ignored=_STUCK
)
LATE_EVENTS = Config(
    "an earlier room's late events, two crashes", Faults(crashes=2, refusals=1), workers=1, events=True
)
UNCLEAR = Config("a lost answer, a wrong look, a cancel", Faults(cuts=1, wrong_looks=1), cancel=True)
ANSWERED = _one_lease(
    "a moving phone, a wrong look, a crash, events",
    Faults(crashes=1, cuts=1, wrong_looks=1, migrations=1),
    events=True,
)
OVERTIME = _one_lease("a call that lasts too long, a cancel, events", cancel=True, events=True, overtime=True)
RECONCILERS = _one_lease(
    "two reconcilers, a crash, a cancel", Faults(crashes=1), reconcilers=2, cancel=True, overtime=True
)
AGENTS = Config("agents that do not join", Faults(crashes=1, refusals=1, lost_agents=1), workers=1)
AGENTS_LATE = _one_lease("agents that join late, a cancel", Faults(lost_agents=1, late_agents=1), cancel=True)
LIARS = Config(
    "`unavailable`, although the phone rings", Faults(crashes=1, liars=1), workers=1, attempts=3, events=True
)
ERRORS = _one_lease(
    "an error while the phone is connected, a cancel, events", Faults(errors=1), cancel=True, events=True
)
ORPHANS = _one_lease(
    "a LiveKit server that crashes or restarts, a crash, a cancel",
    Faults(crashes=1, orphans=1, restarts=1),
    cancel=True,
    overtime=True,
)
DEAF = _one_lease(
    "LiveKit no longer deletes rooms, a crash, events",
    Faults(crashes=1, orphans=1),
    events=True,
    deaf=True,
    overtime=True,
)
LOST_ROOMS = Config(
    "a room that another client closes, events",
    Faults(lost_rooms=1, refusals=1, cuts=1),
    workers=1,
    events=True,
    # The dial recreates the room without its agent; the promises about the agent and the slot do not apply then.
    ignored=frozenset({AGENT_THERE, SLOT_HELD}),
)
WRITES_OF_A_DIAL = {"take_lease", "wait", "enter_line", "fence", "unfence", "answered", "note_missing", "end"}
COPIES = _late_write(
    "a refusal, no free slot",
    {"take_slot", "free_slot", "leave_due"} | WRITES_OF_A_DIAL,
    Faults(refusals=1, full_slots=1),
    leases=3,
    attempts=3,
)
COPIES_CANCEL = _late_write(
    "a cancel", {"ask_to_hang_up", "end", "answered"}, Faults(crashes=1), workers=1, leases=1, cancel=True
)
COPIES_EVENTS = _late_write(
    "events", {"note_left", "end", "leave_due", "free_slot"}, Faults(cuts=1), workers=1, leases=1, events=True
)
COPIES_WAITS = _late_write("a busy trunk", {"take_lease", "wait"}, waits=True)
COPIES_LINE = _late_write(
    "dialling paused, no free slot",
    {"take_slot", "free_slot", "take_lease", "enter_line", "admit"},
    Faults(full_slots=1),
    workers=1,
    leases=3,
    lines=True,
)
COPIES_HOLD = _late_write(
    "a slot and its repair",
    {"take_slot", "hold"},
    Faults(late_copies=2, full_slots=1),
    workers=1,
    leases=4,
)
COPIES_LOOKS = _late_write(
    "a wrong look, a crash",
    {"note_missing", "ask_to_hang_up", "answered"},
    Faults(wrong_looks=1, crashes=1),
    workers=1,
    leases=1,
    overtime=True,
)
COPIES_LIARS = _late_write(
    "`unavailable`, although the phone rings",
    {"note_joined", "note_left"},
    Faults(liars=1),
    workers=1,
    attempts=3,
    events=True,
)
WAITS = Config("a busy trunk, a refusal, a cancel", Faults(refusals=1), waits=True, cancel=True)
WAITS_DEATH = REFUSED._replace(name="a busy trunk, a crash, a refusal, a cancel", waits=True)
PAUSED = Config(
    "dialling paused, a crash, no free slot, a cancel", Faults(crashes=1, full_slots=1), lines=True, cancel=True
)
PAUSED_WAITS = Config(
    "dialling paused, a busy trunk, a third lease", Faults(refusals=1), leases=3, lines=True, waits=True
)
STALLED = _late_worker("a refusal", Faults(refusals=1), grows_old=False)
STALLED_UNCLEAR = _late_worker("a lost answer", Faults(cuts=1), workers=1, leases=1, events=True)
STALLED_THIRD = _late_worker("a third lease", leases=3, grows_old=False)
STALLED_CANCEL = _late_worker("a cancel", workers=1, cancel=True, grows_old=False)
STALLED_PAUSED = _late_worker("dialling paused", Faults(), leases=3, lines=True, grows_old=False)
STALLED_AGENTS = _late_worker(
    "a lost agent",
    Faults(lost_agents=1),
    # Its look may be at the room of the next attempt: the end that it then asks for is lost, and it deletes
    # the dispatch of an agent that has left.
    _LATE | {AGENT_ASKED, AGENT_THERE},
    grows_old=False,
)
STALLED_ANYWHERE = STALLED._replace(
    name="a worker that resumes anywhere after its lease",
    stall="anywhere",
    ignored=_LATE | {NO_RING_AFTER_END, NOT_CUT_OFF, NOT_ENDED_EARLY, AGENT_THERE, AGENT_ASKED, SLOT_HELD},
)
LIMIT = Config("two calls, one slot", workers=1)

# Several calls of one workspace, and its line.
LINE = LineConfig("three calls, one slot", lapses=True)
LINE_SLOTS = LineConfig("three calls, two slots, a cancel", LineFaults(cancels=1), limit=2, lapses=True)
LINE_DEATH = LineConfig("three calls, one slot, a crash", LineFaults(crashes=1, cancels=1), processes=1)
LINE_STALE = LineConfig(
    "two calls, a stale index, a crash, a cancel", LineFaults(crashes=1, cancels=1), calls=2, stale=True
)
LINE_MESSAGES = LineConfig(
    "three calls, a message twice, one lost, a failure, a cancel",
    LineFaults(doubles=1, losses=1, failures=1, cancels=1),
    processes=1,
)
LINE_LATE = LineConfig(
    "two calls, a slot taken late, dialling paused",
    LineFaults(late_slots=1, pauses=1),
    calls=2,
    ignored=frozenset({NO_SLOT_IN_LINE}),
)
LINE_OLD = LineConfig(
    "four calls, an earlier version ends two", LineFaults(old_ends=2), calls=4, processes=1, first=1
)

LINES = (LINE, LINE_SLOTS, LINE_DEATH, LINE_STALE, LINE_MESSAGES, LINE_LATE, LINE_OLD)

# Calls to one number, and what may keep it from ringing.
_OPT_OUT, _OPT_IN = Operation("put"), Operation("delete")
_OF_BOTH = (SALES, SERVICE)
_OPTED_OUT = ((ALL, NEVER, -1),)


def _one_call(name: str, faults: GatesFaults, **more: Any) -> GatesConfig:
    return GatesConfig(name, faults, (SALES,), workers=1, **more)


FENCES = _one_call(
    "an opt-out, a fence that is unclear, late, cancelled",
    GatesFaults(cuts=1, copies=1, conflicts=1),
    operations=(_OPT_OUT,),
    copied=frozenset({"fence", "put"}),
)
FENCES_ANSWER = _one_call("a fence whose answer is lost", GatesFaults(cuts=1))
FENCES_UNCAPPED = _one_call(
    "an opt-out, a fence that is late or cancelled, no cap",
    GatesFaults(copies=1, conflicts=1),
    operations=(_OPT_OUT,),
    capped=False,
)
FENCES_STALL = GatesConfig(
    "two workers, one stalls, a crash, a fence executed late, a cancel",
    GatesFaults(stalls=1, crashes=1, cancels=1, copies=1),
    (SALES,),
)
CAPS = GatesConfig("two calls, two workers, LiveKit refuses a dial", GatesFaults(refusals=1))
CAPS_LATE = GatesConfig(
    "two calls, LiveKit refuses a dial, a removal executed late",
    GatesFaults(refusals=1, copies=1),
    workers=1,
    copied=frozenset({"fence", "forget_ring"}),
    leases=3,
    tries=1,
)
CAPS_OPT_OUT = GatesConfig(
    "two calls, an opt-out of another purpose", operations=(Operation("put", SERVICE),), leases=1
)
CAP_SET = GatesConfig("two calls, a cap that is set", GatesFaults(caps=1), capped=False, leases=1)
PURPOSES = GatesConfig(
    "two calls with two purposes, an opt-out of one, no cap",
    purposes=_OF_BOTH,
    operations=(Operation("put", SALES),),
    capped=False,
)
OPT_IN = _one_call(
    "opted in, opted out, a write of either executed late",
    GatesFaults(copies=1, cuts=1),
    operations=(_OPT_IN, _OPT_OUT),
    copied=frozenset({"fence", "put", "delete"}),
    suppressed=_OPTED_OUT,
    leases=1,
)
OPT_INS = _one_call(
    "three writes of three scopes at once",
    GatesFaults(cuts=1),
    operations=(Operation("put", SALES), _OPT_IN, Operation("put", SERVICE)),
    at_once=True,
    suppressed=_OPTED_OUT,
    leases=1,
)
EXPIRY = _one_call(
    "an opt-out that ends, one that does not",
    GatesFaults(),
    operations=(Operation("put", ALL, 1), Operation("put", SALES)),
    last=2,
)
OPERATOR = _one_call(
    "a pause, a cap, a window that closes, a crash", GatesFaults(pauses=2, caps=1, closes=1, crashes=1)
)
MOVED = _one_call(
    "a call that is given a later time, a fence executed late", GatesFaults(moves=1, conflicts=1, copies=1)
)
TABLE_LOST = _one_call(
    "an agent's report, the table is lost", GatesFaults(losses=1), operations=(Operation("report"),)
)

NUMBERS = (
    FENCES,
    FENCES_ANSWER,
    FENCES_UNCAPPED,
    FENCES_STALL,
    CAPS,
    CAPS_LATE,
    CAPS_OPT_OUT,
    CAP_SET,
    PURPOSES,
    OPT_IN,
    OPT_INS,
    EXPIRY,
    OPERATOR,
    MOVED,
    TABLE_LOST,
)

ONE_CALL = (
    CALM,
    CANCELED,
    TWO_DEATHS,
    REFUSED,
    LATE_EVENTS,
    UNCLEAR,
    ANSWERED,
    OVERTIME,
    RECONCILERS,
    AGENTS,
    AGENTS_LATE,
    LIARS,
    ERRORS,
    ORPHANS,
    DEAF,
    LOST_ROOMS,
    COPIES,
    COPIES_CANCEL,
    COPIES_EVENTS,
    COPIES_WAITS,
    COPIES_LINE,
    COPIES_HOLD,
    COPIES_LOOKS,
    COPIES_LIARS,
    WAITS,
    WAITS_DEATH,
    PAUSED,
    PAUSED_WAITS,
    STALLED,
    STALLED_UNCLEAR,
    STALLED_THIRD,
    STALLED_CANCEL,
    STALLED_PAUSED,
    STALLED_AGENTS,
    STALLED_ANYWHERE,
)


def only(config: Config, promise: str) -> Config:
    """The system without its other promises: one of them may break sooner, and matters less."""
    return config._replace(ignored=PROMISES - {promise})


def only_of_number(config: GatesConfig, promise: str) -> GatesConfig:
    return config._replace(ignored=OF_THE_NUMBER - {promise})


class Breaks(NamedTuple):
    """In this system, without the condition (and without `too`: one or several, joined by " + "), this promise is
    broken.
    """

    config: Config | LineConfig | GatesConfig
    promise: str
    too: str = ""


# Each of these is needed by itself.
NEEDED = {
    # the record's writes
    "take_lease: queued": Breaks(TWO_DEATHS, ONE_END),
    "take_lease: no live lease": Breaks(TWO_DEATHS, ONE_WORKER),
    "take_lease: not waiting": Breaks(WAITS, ONE_CHAIN),
    "wait: queued": Breaks(WAITS, ONE_END),
    "wait: lease mine": Breaks(WAITS_DEATH, ONE_CHAIN),
    "wait_free: queued": Breaks(WAITS, ONE_END),
    "wait_free: no live lease": Breaks(WAITS, ONE_WORKER),
    "wait_free: not waiting": Breaks(WAITS, ONE_CHAIN),
    "enter_line: queued": Breaks(PAUSED, ONE_END),
    "enter_line: lease mine": Breaks(COPIES_LINE, ROOM_GONE),
    "enter_line_free: queued": Breaks(PAUSED, ONE_END),
    "enter_line_free: no slots item": Breaks(PAUSED_WAITS, NO_SLOT_IN_LINE),
    "admit: no live lease": Breaks(COPIES_LINE, SLOT_HELD),
    "admit: line as seen": Breaks(LINE_STALE, BY_ONE),
    "fence: queued": Breaks(CANCELED, ONE_END),
    "fence: lease mine": Breaks(STALLED, AGENT_THERE),
    "fence: lease live": Breaks(STALLED_CANCEL, NO_RING_AFTER_END),
    "unfence: dialing": Breaks(STALLED, ONE_END),
    "unfence: lease mine": Breaks(COPIES, ONE_WORKER),
    "unfence: no hangup": Breaks(REFUSED, HANGUP_STANDS),
    "unfence: nothing left": Breaks(LIARS, ONE_RING),
    "unfence: no phone seen": Breaks(LIARS, ONE_RING),
    "answered: dialing": Breaks(COPIES, ONE_END),
    "answered: no hangup": Breaks(CANCELED, HANGUP_OBEYED),
    "note_left: dialing": Breaks(CANCELED, ONE_END),
    "note_left: room as seen": Breaks(LOST_ROOMS, NOT_ENDED_EARLY),
    "note_joined: dialing": Breaks(LIARS, ONE_END),
    "end: status as seen": Breaks(CANCELED, ONE_END),
    "end: lease as seen": Breaks(TWO_DEATHS, SLOT_FREED),
    "end: hangup as seen": Breaks(CANCELED, HANGUP_STANDS),
    "ask_to_hang_up: status as seen": Breaks(CANCELED, ONE_END),
    "take_slot: limit": Breaks(LIMIT, SLOT_HELD),
    "take_slot: its own slot": Breaks(TWO_DEATHS, NO_SLOT_IN_LINE),
    "take_slot: not crowded": Breaks(LINE, NOT_OVERTAKEN),
    # dial_worker
    "a lease outlives its holder": Breaks(STALLED_ANYWHERE._replace(ignored=_LATE), NO_RING_AFTER_END),
    "lease before slot": Breaks(CANCELED, SLOT_FREED),
    "slot before the dial": Breaks(CALM, SLOT_HELD),
    "the last attempt's room is deleted": Breaks(AGENTS, AGENT_ASKED),
    "the worker waits for an agent that has a job": Breaks(AGENTS, ONE_AGENT),
    "a lost dispatch is deleted before a new one is created": Breaks(AGENTS_LATE, ONE_AGENT),
    "the agent joins before the dial": Breaks(CALM, AGENT_THERE),
    "the worker checks whether its lease has expired": Breaks(STALLED_THIRD, AGENT_THERE),
    "waiting clears only what no other process holds": Breaks(WAITS_DEATH, SLOT_FREED),
    "a slot is freed before the line": Breaks(PAUSED, NO_SLOT_IN_LINE),
    "a slot is freed for the line under a lease": Breaks(only(PAUSED, SLOT_HELD), SLOT_HELD),
    "only the winner of the fence dials": Breaks(only(STALLED, ONE_RING), ONE_RING),
    "a dial is sent once": Breaks(UNCLEAR, ONE_RING),
    "an unclear dial is not sent again": Breaks(only(UNCLEAR, ONE_RING), ONE_RING),
    "un-fence: no phone in the room": Breaks(only(LIARS, ONE_RING), ONE_RING),
    "un-fence: no phone on two looks": Breaks(only(LIARS, ONE_RING), ONE_RING),
    "an error without a SIP code requires a look": Breaks(ERRORS, NOT_ENDED_EARLY),
    "the worker looks twice": Breaks(UNCLEAR, NO_RING_AFTER_END),
    "a closed room alone does not end a dial": Breaks(LOST_ROOMS, NO_RING_AFTER_END),
    # shared/ending
    "the end and its event are one write": Breaks(CANCELED, ONE_END),
    "an ended call stays due": Breaks(LATE_EVENTS, SLOT_FREED),
    "only the winner of the end clears": Breaks(CANCELED, SLOT_HELD),
    "the slot is freed before the room is deleted": Breaks(DEAF, ALWAYS_ENDS),
    "the room is deleted before the call leaves the index": Breaks(LATE_EVENTS, ROOM_GONE),
    "an orphan room is created again to be deleted": Breaks(ORPHANS, ALWAYS_ENDS),
    "the slot is freed before the call leaves the index": Breaks(LATE_EVENTS, SLOT_FREED),
    # reconcile_calls
    "the reconciler leaves a live dial alone": Breaks(CANCELED, NO_RING_AFTER_END),
    "the reconciler looks twice": Breaks(ANSWERED, NOT_ENDED_EARLY),
    "a phone that rings too long counts as gone": Breaks(ORPHANS, ALWAYS_ENDS),
    "a phone that joined again is connected": Breaks(ORPHANS, NOT_ENDED_EARLY),
    "clearing waits for another process's lease": Breaks(REFUSED, SLOT_FREED),
    "slots are repaired": Breaks(COPIES, ALWAYS_ENDS),
    "the repair frees only what has ended or waits in the line": Breaks(COPIES, SLOT_HELD),
    "the repair frees the slots of calls in the line": Breaks(LINE_LATE, SERVED),
    "the repair holds a call in the line": Breaks(LINE_LATE, SLOT_HELD),
    # calls_api
    "a fenced call is hung up instead of canceled": Breaks(CANCELED, NO_RING_AFTER_END),
    "the room stays while it rings": Breaks(CANCELED, AGENT_THERE),
    "cancel clears only what no other process touched": Breaks(REFUSED, SLOT_FREED),
    # livekit_events
    "an event does not end a call that is dialing": Breaks(LOST_ROOMS, NO_RING_AFTER_END),
    "an event of another room is ignored": Breaks(LATE_EVENTS, NOT_ENDED_EARLY),
    "moving a phone does not end its call": Breaks(ANSWERED, NOT_ENDED_EARLY),
    "an event clears only what was fenced": Breaks(LATE_EVENTS, ROOM_GONE),
    # shared/line, and what the processes do with it
    "only a slot that was really freed admits": Breaks(LINE, FOR_A_SLOT),
    "the first in turn is tried first": Breaks(LINE, IN_TURN),
    "the entry of a call that is gone is removed": Breaks(LINE_OLD, SERVED),
    "a newcomer counts those admitted": Breaks(LINE, FOR_A_SLOT),
    "a fill counts those admitted": Breaks(LINE, FOR_A_SLOT),
    "a call without a slot crowds it": Breaks(LINE, NOT_OVERTAKEN),
    "an admitted call that returns admits no other": Breaks(LINE, FOR_A_SLOT),
    "the message of a call that had a slot admits no other": Breaks(LINE_MESSAGES, FOR_A_SLOT),
    "the reconciler fills the line": Breaks(LINE_DEATH, SERVED),
    "the reconciler repeats an admission's message": Breaks(LINE_DEATH, SERVED),
    # what may keep a number from ringing
    "fence: times as seen": Breaks(MOVED, NOT_EARLY),
    "what may have changed is read again": Breaks(FENCES_UNCAPPED, FENCED_AT_ONCE),
    "an old decision is not sent": Breaks(FENCES_UNCAPPED, FENCED_AT_ONCE),
    "a call's own ring does not count": Breaks(CAPS, NO_WAIT_FOR_ITSELF),
    "the pause switch is read": Breaks(OPERATOR, LET),
    "without the marker nothing rings": Breaks(only_of_number(TABLE_LOST, NOT_FENCED), NOT_FENCED),
    "a write lost to one's own fence un-fences": Breaks(FENCES_UNCAPPED, NOT_LEFT),
    "the window is checked before the dial": Breaks(OPERATOR, IN_WINDOW),
    "an old fence does not dial": Breaks(only_of_number(CAPS, CAPPED), CAPPED),
    "one's own earlier fence counts as won": Breaks(FENCES, NOT_LEFT),
    "fence, with a ring: the number as read": Breaks(FENCES, NOT_FENCED),
    "fence, no ring: the number as read": Breaks(FENCES_UNCAPPED, NOT_FENCED),
    "a ring changes the version": Breaks(CAPS, CAPPED),
    "a suppression changes the version": Breaks(OPT_IN, NOT_FENCED),
    "a suppression's write: the number as read": Breaks(OPT_IN, NOT_FENCED),
    "a suppression's write keeps the rings": Breaks(CAPS_OPT_OUT, CAPPED),
    "an item lives as long as its rings count": Breaks(CAPS_LATE, CAPPED),
    "an item with an endless suppression has no end": Breaks(EXPIRY, NOT_FENCED),
    "only the un-fenced ring is removed": Breaks(CAPS_LATE, CAPPED),
    "an opt-out is suppressed before it is reported": Breaks(TABLE_LOST, NOT_FENCED),
}

# A second line: nothing breaks until another condition is gone too.
SECOND_LINES = {
    "fence: no hangup": Breaks(
        REFUSED._replace(faults=Faults(refusals=1), ignored=_STUCK | {HANGUP_STANDS}),
        HANGUP_OBEYED,
        "unfence: no hangup",
    ),
    "enter_line_free: no lease": Breaks(PAUSED, NO_SLOT_IN_LINE, "enter_line_free: no slots item"),
    "admit: queued": Breaks(only(PAUSED, ONE_END), ONE_END, "admit: line as seen"),
    "hold: queued": Breaks(only(COPIES_LINE, SLOT_HELD), SLOT_HELD, "hold: line as seen + hold: not admitted"),
    "hold: line as seen": Breaks(only(COPIES_LINE, SLOT_HELD), SLOT_HELD, "hold: queued + hold: not admitted"),
    "hold: not admitted": Breaks(only(COPIES_LINE, SLOT_HELD), SLOT_HELD, "hold: queued + hold: line as seen"),
    "the worker ends only what is still its own": Breaks(STALLED_UNCLEAR, ONE_END, "no end follows an end"),
    "no end follows an end": Breaks(STALLED_UNCLEAR, ONE_END, "the worker ends only what is still its own"),
    "an unclear fence is repeated with its token": Breaks(
        FENCES_ANSWER, NOT_LEFT, "one's own earlier fence counts as won"
    ),
}

# No promise of the model rests on these.
OTHER_REASONS = {
    "answered: lease mine": "only the lease's holder, or the reconciler after it, knows the outcome of a dial",
    "note_joined: room as seen": "a phone in another room only prevents the call from being dialled again",
    "note_joined: no phone seen": "keeps the first time at which the phone joined",
    "note_left: no event about the phone": "keeps the first event about the phone; a closed room is not one",
    "note_missing: status as seen": "a result that is stored too late only causes another look",
    "note_missing: next look as seen": "a result that is stored too late would delay a hang-up by minutes",
    "ask_to_hang_up: no hangup": "keeps the first reason to hang up",
    "leave_due: ended": "every process that makes this write has read the end",
    "take_lease: not in line": "a call in the line is dialled in its turn",
    "wait_free: not in line": "a call in the line waits for its admission, not for a message",
    "enter_line: times as seen": "a call that is given other times gets another turn",
    "enter_line_free: times as seen": "as with `enter_line`",
    "enter_line_free: not waiting": "a message that comes twice does not take a call from its next message",
    "enter_line_free: not in line": "keeps the reason why the call waits",
    "admit: turn as seen": "a call keeps its turn; the index would be stale if it did not",
    "hold: turn as seen": "a call keeps its turn, as with `admit`",
    "hold: no live lease": "two repairs at the same time do not take the call from each other",
    "leave_line: not queued": "the claim that was lost has shown that the call is not",
    "leave_line: line as seen": "a call that is not queued enters no other line",
    "a freed slot admits the first": "at once, not at the reconciler's next fill",
    "the message of a call that is gone admits the next": "at once, not at the reconciler's next fill",
    "a newcomer reads whether others wait": "saves a lease and a refused request for a slot",
    "the waiting worker reads the record": "frees slot and room of a canceled call at once",
    "cancel looks again": "hangs up at once a phone that joins a moment after the cancel",
    "un-fence: no event on the record": "if a phone was there, the outcome is determined, not undone",
    "the answer checks for a phone that left": "ends a call that is over at once, not at the next look",
    "an event ends a call that was answered meanwhile": "ends a call that is over at once, not at the next look",
    "a new decision has a new token": "DynamoDB refuses other bytes with a known token: an attempt is lost",
}

# Of these, which the model of one call needs, the model of one number needs some too.
NEEDED_OF_NUMBER = {
    "fence: queued": Breaks(FENCES_STALL, ONE_END),
    "fence: lease mine": Breaks(FENCES, HELD_BY_ITS_DIALLER),
}
