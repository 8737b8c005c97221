"""Random schedules: requests, messages, time, and everything that can go wrong between any two steps."""

from __future__ import annotations

import collections
import itertools
from typing import Any, ClassVar, get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from simulate.invocation import Fault, Faults
from tests.fault_schedules.account import DIAL, WEBHOOK, Account, Environment

# On two slots: some wait in the line.
MOST_CALLS = 4

OUTCOMES = (
    "answer", "talks_on", "no_rtp", "busy", "no_answer", "rejected", "carrier_error", "cps_limit", "trunk_auth",
    "codec_mismatch", "unavailable_once", "rate_limited_once", "unavailable", "agent_never_joins",
    "cut_after_answer", "cut_while_ringing", "bad_gateway", "never_responds",
)  # lists of words  # fmt: skip

# What else a number does. An error that answers its dial `whileRinging`, or `after` the phone has answered or not,
# is none that tells what became of it.
NUMBERS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"withoutMeta": True}, {"lostDispatches": 1}, {"lostDispatches": 4}, {"agentJoinSeconds": 12},
    *(
        {"fail": error, when: True}
        for error in ("unavailable", "resource_exhausted", "failed_precondition", "internal")
        for when in ("whileRinging", "after")
    ),
)  # lists of words  # fmt: skip

# How a request to LiveKit fails, and whether after it has done its work.
LIVEKIT_FAILURES = (
    ("cut", False), ("cut", True), ("html502", False), ("html502", True), ("hang", False), ("hang", True),
    ("unavailable", False), ("unavailable", True), ("resource_exhausted", False), ("resource_exhausted", True),
    ("deadline_exceeded", True), ("internal", False), ("unauthenticated", False), ("text503", False),
)  # lists of words  # fmt: skip
LIVEKIT_METHODS = (
    "createRoom", "deleteRoom", "listRooms", "listParticipants", "removeParticipant", "createSIPParticipant",
    "createDispatch", "listDispatch", "deleteDispatch",
)  # lists of words  # fmt: skip
# What LiveKit is like from now on.
LIVEKIT_KNOBS: dict[str, dict[str, Any]] = {
    "dispatches are lost": {"dispatches": {"lose": 1, "times": 3}},
    "dispatches find no worker": {"dispatches": {"lose": 1, "times": 3, "reason": "NO_CAPACITY"}},
    "one agent at a time": {"agentCapacity": 1},
    "no new rooms": {"draining": True},
    "counts lag": {"roomCountSeconds": 20},
    "phones join early": {"publishSeconds": 3},
    "well": {},
}
DEATHS_OF_SERVICES = ("agent leaves", "agent dies", "SIP service dies")
DEATHS_OF_SERVERS = ("crash", "restart")
DEATHS = DEATHS_OF_SERVICES + DEATHS_OF_SERVERS

LIVEKIT_EVENTS: dict[str, dict[str, float]] = {
    "lost": {"drop": 1},
    "twice": {"duplicate": 1},
    "now and then, late": {"drop": 0.3, "reorder": 0.5, "reorderSeconds": 20},
    "well": {},
}
# Milliseconds until the index of the line shows a change, of one after the other.
INDEX_DELAYS: dict[str, tuple[int, ...]] = {"late": (0, 3000, 200, 0, 1000), "well": (0,)}
WEATHER = (
    "kill switch: on", "kill switch: off", "receiver: ok", "receiver: fails", "receiver: refuses",
    "receiver: hangs", "receiver: forgets to answer", "callees: hang up", "LiveKit's events: processed",
    *(f"LiveKit's events: {fault}" for fault in LIVEKIT_EVENTS), *(f"LiveKit: {knob}" for knob in LIVEKIT_KNOBS),
    "slots: 1", "slots: 2", "slots: 3", *(f"the line's index: {delay}" for delay in INDEX_DELAYS),
)  # lists of words  # fmt: skip

FAULTS: st.SearchStrategy[Fault] = st.sampled_from(get_args(Fault))
# Which outside call of a process is hit by what. A dial makes about nineteen, a delivery four.
A_LIFE: st.SearchStrategy[Faults] = st.dictionaries(st.integers(0, 20), FAULTS, max_size=2)
LIVES = st.lists(A_LIFE, max_size=4)
WHICH = st.integers(0, 9)
# Seconds from an agent's joining, or a phone's INVITE, to the death of what holds it.
AFTER = st.sampled_from((0, 0.1, 1.5, 8))
# Less than one outside call; a call's way to its end; more than any lease.
MOMENTS, SECONDS, MINUTES = (0.002, 0.005, 0.02, 0.1), (0.5, 1.5, 5, 20), (75, 200)


class Schedules(RuleBasedStateMachine):
    """`environment` is set before it runs; `counted` is for the report."""

    environment: ClassVar[Environment]
    counted: ClassVar[collections.Counter[str]] = collections.Counter()

    def __init__(self) -> None:
        super().__init__()
        self.counted["schedules"] += 1
        self.account = Account(self.environment)

    def _key(self, which: int) -> str:
        keys = list(self.account.requests)
        return keys[which % len(keys)]

    def _step(self) -> None:
        self.counted["steps"] += 1

    # ── clients, operators, callees ─────────────────────────────────────────────────────────────

    @initialize(
        numbers=st.lists(st.tuples(st.sampled_from(OUTCOMES), st.sampled_from(NUMBERS)), min_size=1, max_size=2),
        callback=st.booleans(),
        events=st.sampled_from(tuple(LIVEKIT_EVENTS)),
    )
    def begins_with(self, numbers: list[tuple[str, dict[str, Any]]], callback: bool, events: str) -> None:
        self.account.livekit_events(**LIVEKIT_EVENTS[events])
        for outcome, number in numbers:
            self.account.place(outcome, callback, {}, **number)

    @precondition(lambda self: len(self.account.requests) < MOST_CALLS)
    @rule(outcome=st.sampled_from(OUTCOMES), number=st.sampled_from(NUMBERS), callback=st.booleans(), life=A_LIFE)
    def place(self, outcome: str, number: dict[str, Any], callback: bool, life: Faults) -> None:
        self._step()
        self.account.place(outcome, callback, life, **number)

    @rule(which=WHICH, other=st.booleans(), life=A_LIFE)
    def repeat_request(self, which: int, other: bool, life: Faults) -> None:
        self._step()
        if other:
            self.account.reuse_key(self._key(which), life)
        else:
            self.account.repeat(self._key(which), life)

    @rule(which=WHICH, life=A_LIFE)
    def cancel(self, which: int, life: Faults) -> None:
        self._step()
        self.account.cancel(self._key(which), life)

    # ── AWS ─────────────────────────────────────────────────────────────────────────────────────

    @rule(seconds=st.sampled_from(MOMENTS), lives=LIVES)
    def aws_runs_for_a_moment(self, seconds: float, lives: list[Faults]) -> None:
        self._step()
        self.account.run(seconds, list(lives))

    @rule(seconds=st.sampled_from(SECONDS), lives=LIVES)
    def aws_runs_for_seconds(self, seconds: float, lives: list[Faults]) -> None:
        self._step()
        self.account.run(seconds, list(lives))

    @rule(seconds=st.sampled_from(MINUTES), aws=st.booleans(), lives=LIVES)
    def minutes_pass(self, seconds: float, aws: bool, lives: list[Faults]) -> None:
        """aws: queues, stream and the reconciler's rule work meanwhile."""
        self._step()
        if aws:
            self.account.run(seconds, list(lives))
        else:
            self.account.wait(seconds)

    @precondition(lambda self: self.account.sqs.waiting(DIAL))
    @rule(which=WHICH, life=A_LIFE, again=st.booleans())
    def dial(self, which: int, life: Faults, again: bool) -> None:
        self._step()
        self.account.hand_out(DIAL, which, life, again=again)

    @precondition(lambda self: self.account.sqs.waiting(WEBHOOK))
    @rule(which=WHICH, life=A_LIFE, again=st.booleans())
    def deliver(self, which: int, life: Faults, again: bool) -> None:
        self._step()
        self.account.hand_out(WEBHOOK, which, life, again=again)

    @precondition(lambda self: self.account.sqs.waiting(DIAL) or self.account.sqs.waiting(WEBHOOK))
    @rule(which=WHICH)
    def message_is_lost(self, which: int) -> None:
        self._step()
        self.account.lose(DIAL if self.account.sqs.waiting(DIAL) else WEBHOOK, which)

    @precondition(lambda self: self.account.late)
    @rule(which=WHICH)
    def a_late_request_is_carried_out(self, which: int) -> None:
        self._step()
        self.account.carry_out(which)

    @rule(life=A_LIFE)
    def reconcile(self, life: Faults) -> None:
        self._step()
        self.account.reconcile(life)

    @precondition(lambda self: self.account.running())
    @rule(which=WHICH)
    def process_dies(self, which: int) -> None:
        self._step()
        running = self.account.running()
        running[which % len(running)].kill()

    @precondition(lambda self: self.account.stalls())
    @rule()
    def stalled_wake_up(self) -> None:
        self._step()
        for each in self.account.running():
            each.wake()

    # ── LiveKit, receivers ──────────────────────────────────────────────────────────────────────

    @rule(
        method=st.sampled_from(LIVEKIT_METHODS), failure=st.sampled_from(LIVEKIT_FAILURES), times=st.integers(1, 4)
    )
    def livekit_fails(self, method: str, failure: tuple[str, bool], times: int) -> None:
        self._step()
        fail, after = failure
        self.account.livekit_fails(method, fail=fail, after=after, times=times)

    @rule(what=st.sampled_from(DEATHS_OF_SERVICES), which=WHICH, moment=AFTER)
    def service_dies(self, what: str, which: int, moment: float) -> None:
        self._step()
        self.counted[what] += self.account.livekit_dies(what, which, 0, moment)

    @rule(what=st.sampled_from(DEATHS_OF_SERVERS), down=st.sampled_from((0, 3, 40)), moment=AFTER)
    def server_dies(self, what: str, down: float, moment: float) -> None:
        """down: seconds without a server."""
        self._step()
        self.counted[what] += self.account.livekit_dies(what, 0, down, moment)

    @rule(what=st.sampled_from(WEATHER), lives=LIVES)
    def weather(self, what: str, lives: list[Faults]) -> None:
        self._step()
        match what.split(": "):
            case ["kill switch", state]:
                self.account.switch(on=state == "on")
            case ["receiver", does]:
                self.account.receiver_does = does
            case ["LiveKit", knob]:
                self.account.livekit_is(**LIVEKIT_KNOBS[knob])
            case ["callees", _]:
                self.account.callees_hang_up()
            case ["LiveKit's events", "processed"]:
                self.account.event_faults = list(lives)
            case ["LiveKit's events", fault]:
                self.account.livekit_events(**LIVEKIT_EVENTS[fault])
            case ["slots", number]:
                self.account.limit("demo", int(number))
            case ["the line's index", delay]:
                self.account.index_shows(itertools.cycle(INDEX_DELAYS[delay]).__next__)

    # ── what must hold ──────────────────────────────────────────────────────────────────────────

    @invariant()
    def holds(self) -> None:
        self.account.check()

    def teardown(self) -> None:
        # hypothesis calls this after a failure too: the account is taken down either way.
        try:
            self.account.finish()
        finally:
            self.account.close()
