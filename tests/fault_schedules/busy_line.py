"""Hours of hundreds of calls on few slots: several workspaces, limits that change while calls wait, pauses, broken
trunks, and every fault of `machine.py`.

Made from a seed, step by step: the first steps of a schedule are the same however many follow. hypothesis makes
the schedules of few calls (`machine.py`); its examples are too small for a line in which hundreds wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, get_args

from simulate.invocation import Fault, Faults
from tests.fault_schedules.account import DIAL, WEBHOOK, Account, Environment
from tests.fault_schedules.machine import (
    DEATHS_OF_SERVERS,
    DEATHS_OF_SERVICES,
    LIVEKIT_EVENTS,
    LIVEKIT_FAILURES,
    LIVEKIT_KNOBS,
    LIVEKIT_METHODS,
    NUMBERS,
    OUTCOMES,
)

TENANTS: Mapping[str, int] = {"demo": 4, "second": 2, "third": 1}
LIMITS = (0, 1, 2, 3, 5, 8)
# Of one index, milliseconds.
DELAYS: tuple[Callable[[random.Random], int], ...] = (
    lambda dice: 0,
    lambda dice: dice.randrange(20),
    lambda dice: dice.randrange(2000),
    lambda dice: dice.choice((0, 0, 0, 4000)),
)


class BusyLine:
    """One schedule. steps: what was done, for the message of a failure."""

    def __init__(self, environment: Environment, seed: int, calls: int) -> None:
        self.dice = random.Random(seed)
        # The product's own choices.
        random.seed(seed)
        self.account = Account(environment, TENANTS)
        self.left = calls
        self.steps: list[str] = []

    def run(self) -> None:
        """Until every call is placed, and for some steps more; then without faults until nothing is left."""
        more = 10
        while self.left or more:
            more -= not self.left
            self.step()
            self.account.check()
        self.account.finish()

    def step(self) -> None:
        kinds: dict[Callable[[], Any], int] = {
            self.place: 30,
            self.time_passes: 40,
            self.cancel: 4,
            self.limit_changes: 6,
            self.pause: 2,
            self.resume: 4,
            self.trunk_breaks: 2,
            self.message_is_lost: 4,
            self.message_comes_twice: 5,
            self.process_dies: 4,
            self.stalled_wake_up: 2,
            self.late_request: 4,
            self.reconcile: 4,
            self.index_is_late: 4,
            self.callees_hang_up: 4,
            self.livekit_fails: 3,
            self.livekit_dies: 2,
            self.livekit_changes: 3,
        }
        [chosen] = self.dice.choices(list(kinds), list(kinds.values()))
        self.steps.append(f"{self.account.loop.time():.3f} {chosen.__name__}")
        chosen()

    def life(self) -> Faults:
        """One process in four is struck, at one or two of its outside calls: a batch of ten calls makes 190."""
        if self.dice.random() > 0.25:
            return {}
        places = [self.dice.randrange(self.dice.choice((5, 25, 100))) for _ in range(self.dice.choice((1, 2)))]
        return {place: self.dice.choice(get_args(Fault)) for place in places}

    # ── clients, operators, callees ─────────────────────────────────────────────────────────────

    def place(self) -> None:
        workspace_id = self.dice.choices(list(TENANTS), (4, 2, 1))[0]
        number = min(self.left, self.dice.choice((1, 2, 5, 20)))
        self.left -= number
        for _ in range(number):
            if self.dice.random() < 0.6:
                outcome, more = self.dice.choice(("answer", "busy", "rejected")), {}
            else:
                outcome, more = self.dice.choice(OUTCOMES), self.dice.choice(NUMBERS)
            self.account.place(outcome, False, self.life(), workspace_id, **more)

    def trunk_breaks(self) -> None:
        workspace_id = self.dice.choice(list(TENANTS))
        number = min(self.left, 5)
        self.left -= number
        for _ in range(number):
            self.account.place("trunk_auth", False, {}, workspace_id)

    def cancel(self) -> None:
        if self.account.requests:
            self.account.cancel(self.dice.choice(list(self.account.requests)), self.life())

    def limit_changes(self) -> None:
        self.account.limit(self.dice.choice(list(TENANTS)), self.dice.choice(LIMITS[1:]))

    def pause(self) -> None:
        self.account.switch(on=True)

    def resume(self) -> None:
        self.account.switch(on=False)

    def callees_hang_up(self) -> None:
        self.account.callees_hang_up()

    # ── AWS ─────────────────────────────────────────────────────────────────────────────────────

    def time_passes(self) -> None:
        seconds = self.dice.choice((0.005, 0.1, 1.5, 5, 5, 20, 20, 70))
        lives = [self.life() for _ in range(self.dice.choice((0, 4, 10)))]
        self.account.run(seconds, lives)

    def _queue(self) -> str | None:
        queues = [queue for queue in (DIAL, WEBHOOK) if self.account.sqs.waiting(queue)]
        return queues[0] if queues else None

    def message_is_lost(self) -> None:
        if self.account.sqs.waiting(DIAL):
            self.account.lose(DIAL, self.dice.randrange(1000))

    def message_comes_twice(self) -> None:
        if self.account.sqs.waiting(DIAL):
            self.account.hand_out(DIAL, self.dice.randrange(1000), self.life(), again=True)

    def process_dies(self) -> None:
        if running := self.account.running():
            self.dice.choice(running).kill()

    def stalled_wake_up(self) -> None:
        for each in self.account.running():
            each.wake()

    def late_request(self) -> None:
        if self.account.late:
            self.account.carry_out(self.dice.randrange(1000))

    def reconcile(self) -> None:
        self.account.reconcile(self.life())

    def index_is_late(self) -> None:
        delay = self.dice.choice(DELAYS)
        self.account.index_shows(lambda: delay(self.dice))

    # ── LiveKit ─────────────────────────────────────────────────────────────────────────────────

    def livekit_fails(self) -> None:
        fail, after = self.dice.choice(LIVEKIT_FAILURES)
        self.account.livekit_fails(self.dice.choice(LIVEKIT_METHODS), fail=fail, after=after, times=3)

    def livekit_dies(self) -> None:
        what = self.dice.choice(DEATHS_OF_SERVICES + DEATHS_OF_SERVERS)
        down = self.dice.choice((0, 3, 40)) if what in DEATHS_OF_SERVERS else 0
        self.account.livekit_dies(what, self.dice.randrange(10), down, self.dice.choice((0, 1.5, 8)))

    def livekit_changes(self) -> None:
        self.account.livekit_is(**LIVEKIT_KNOBS[self.dice.choice(list(LIVEKIT_KNOBS))])
        self.account.livekit_events(**LIVEKIT_EVENTS[self.dice.choice(list(LIVEKIT_EVENTS))])


def run_busy_line(environment: Environment, seed: int, calls: int) -> BusyLine:
    """One schedule from its first call to the end; a failure names the seed and the last steps."""
    busy = BusyLine(environment, seed, calls)
    try:
        busy.run()
    except AssertionError as exc:
        steps = "\n".join(busy.steps[-12:])
        raise AssertionError(f"seed {seed}, {calls} calls, step {len(busy.steps)}:\n{steps}\n{exc}") from exc
    finally:
        busy.account.close()
    return busy
