"""The bounded systems that are explored, and what each condition of the protocol is there for.

For each condition: a system in which taking it away breaks a promise, and that promise.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.model.world import (
    AGENT_ASKED,
    AGENT_THERE,
    ALWAYS_ENDS,
    HANGUP_STANDS,
    HELD_BY_ITS_DIALLER,
    NEEDS_NO_RESCUE,
    NO_RING_AFTER_END,
    NOT_CUT_OFF,
    NOT_ENDED_EARLY,
    ONE_CHAIN,
    ONE_END,
    ONE_RING,
    ONE_WORKER,
    ROOM_GONE,
    SLOT_FREED,
    Config,
    Faults,
)

# A worker that wakes after its lease may still take a slot or make a room, for a call that has been cleared.
_LATE = frozenset({SLOT_FREED, ROOM_GONE, ALWAYS_ENDS})

CALM = Config("no faults, and no reconciler", cancel=True, events=True, reconciler=False, grows_old=False)
CANCELED = Config("a cancel, events in any order", cancel=True, events=True)
DEATHS = Config("a death and a refusal, events", Faults(crashes=1, refusals=1), events=True)
TWO_DEATHS = Config("two deaths, a refusal, no slot free", Faults(crashes=2, refusals=1, full_slots=1))
CANCELED_DEATH = Config("a death during a cancel", Faults(crashes=1, full_slots=1), cancel=True)
REFUSED = Config("a refusal and a death during a cancel", Faults(crashes=1, refusals=1), cancel=True)
STALE = Config("a room's late events", Faults(crashes=1, refusals=1), cancel=True, events=True, workers=1)
UNCLEAR = Config(
    "a dial's outcome not known, a wrong look", Faults(crashes=1, cuts=1, wrong_looks=1), cancel=True
)
EVENTS = Config(
    "answered calls, a wrong look",
    Faults(crashes=1, cuts=1, wrong_looks=1, migrations=1),
    workers=1,
    leases=1,
    events=True,
)
AGENTS = Config("agents that do not come", Faults(crashes=1, refusals=1, lost_agents=1))
LIARS = Config("`unavailable`, and it rings", Faults(crashes=1, liars=1, refusals=1), leases=3, attempts=3)
LOST_ROOMS = Config(
    "a room closed by somebody else",
    Faults(lost_rooms=1, refusals=1, crashes=1),
    events=True,
    ignored=frozenset({AGENT_THERE}),
)
COPIES = Config(
    "a write executed twice", Faults(late_copies=1, refusals=1, full_slots=1), leases=3, attempts=3
)
WAITS = Config("dialling paused", Faults(crashes=1, refusals=1, full_slots=1), waits=True)
STALLED = Config(
    "a worker that wakes after its lease, a refusal", Faults(refusals=1), stall="unchecked", ignored=_LATE
)
STALLED_CANCEL = Config(
    "a worker that wakes after its lease, a cancel",
    cancel=True,
    grows_old=False,
    stall="unchecked",
    ignored=_LATE,
)
STALLED_ANYWHERE = Config(
    "a worker that wakes anywhere after its lease",
    Faults(refusals=1),
    stall="anywhere",
    ignored=_LATE | {NO_RING_AFTER_END, NOT_CUT_OFF, NOT_ENDED_EARLY, AGENT_THERE, AGENT_ASKED},
)

CONFIGS = (
    CALM,
    CANCELED,
    DEATHS,
    TWO_DEATHS,
    CANCELED_DEATH,
    REFUSED,
    STALE,
    UNCLEAR,
    EVENTS,
    AGENTS,
    LIARS,
    LOST_ROOMS,
    COPIES,
    WAITS,
    STALLED,
    STALLED_CANCEL,
    STALLED_ANYWHERE,
)
