"""What happens in a simulated campaign, drawn from its seed: who is called when under which policy, and who opts
out, pauses and changes what meanwhile.
"""

from __future__ import annotations

import dataclasses
import random

from shared.policies import Cap, Policy, Window

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

# Friday, 12 March 2027, 00:00 UTC: on that Sunday the United States put their clocks forward.
START = 1_804_809_600_000

# Where the callees are: the beginning of their numbers, and their zone.
PLACES = {
    "+1212555": "America/New_York",
    "+1213555": "America/Los_Angeles",
    "+44207123": "Europe/London",
    "+4930123": "Europe/Berlin",
    "+8135555": "Asia/Tokyo",
    "+6129123": "Australia/Sydney",
}
# A callee who is away says so when he is called: `time_zone` of the call.
AWAY = ("Pacific/Honolulu", "Asia/Kathmandu", "America/St_Johns")

WORKDAYS, SATURDAY, SUNDAY = frozenset(range(5)), frozenset({5}), frozenset({6})

POLICIES = {
    "default": Policy(
        "default",
        windows=(Window(WORKDAYS, 9 * 60, 20 * 60), Window(SATURDAY | SUNDAY, 10 * 60, 17 * 60 + 30)),
        caps=(Cap(2, 86_400), Cap(4, 3 * 86_400)),
        min_gap_seconds=1800,
    ),
    "service": Policy(
        "service",
        windows=(Window(WORKDAYS | SATURDAY, 8 * 60, 21 * 60), Window(SUNDAY, 11 * 60, 15 * 60)),
        caps=(Cap(3, 86_400),),
    ),
}
# Workspaces and their slots; 50 are two items.
WORKSPACES = {"clinic": 30, "insurer": 50}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A call that a client asks for. Times are epoch ms. cancel_at: None: it is left alone."""

    key: str
    at: int
    workspace: str
    number: str
    zone: str
    time_zone: str | None
    purpose: str | None
    scheduled_at: int | None
    expires_at: int
    cancel_at: int | None
    ring_seconds: int

    @property
    def policy(self) -> str:
        return self.purpose or "default"


@dataclasses.dataclass(frozen=True)
class OptOut:
    at: int
    workspace: str
    number: str
    scope: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """pauses, outages (of LiveKit), lost_markers, closed (endpoints of receivers): from, to. policies: when a
    policy of a workspace gets other windows.
    """

    calls: list[Planned]
    opt_outs: list[OptOut]
    pauses: list[tuple[int, int]]
    outages: list[tuple[int, int]]
    lost_markers: list[tuple[int, int]]
    closed: list[tuple[int, int]]
    policies: list[tuple[int, str, Policy]]
    end: int


class Planner:
    """Draws a plan. Numbers are called about three times each."""

    def __init__(self, calls: int, days: float, dice: random.Random) -> None:
        self._dice = dice
        self._calls = calls
        self._end = START + round(days * DAY)
        self._length = self._end - START
        self.numbers = [self._number(n) for n in range(max(6, calls // 3))]

    def _number(self, n: int) -> tuple[str, str, str]:
        """Workspace, number and zone."""
        place = list(PLACES)[n % len(PLACES)]
        return list(WORKSPACES)[n // len(PLACES) % len(WORKSPACES)], f"{place}{n // len(PLACES):04}", PLACES[place]

    def plan(self) -> Plan:
        dice, length = self._dice, self._length
        times: list[int] = []
        while len(times) < self._calls:
            # Half of them come in bursts, faster than there are slots and seconds of the trunk.
            at = START + round(dice.uniform(0, 0.8) * length)
            many = dice.randint(20, 200) if dice.random() < 0.02 else 1
            times += [at + round(dice.uniform(0, 4 * MINUTE)) for _ in range(many)]
        calls = [self.call(n, at) for n, at in enumerate(sorted(times[: self._calls]))]
        changes = [(START + round(dice.uniform(0.1, 0.9) * length), *self._changed()) for _ in range(8)]
        opt_outs = [
            OptOut(START + round(dice.random() * length), workspace, number, self._scope())
            for workspace, number, _ in dice.sample(self.numbers, len(self.numbers) // 12)
        ]
        return Plan(
            calls,
            opt_outs,
            pauses=self._spans(6, 3 * MINUTE, 40 * MINUTE),
            outages=self._spans(3, MINUTE, 4 * MINUTE),
            lost_markers=self._spans(2, 10 * MINUTE, 30 * MINUTE),
            closed=self._spans(3, 5 * MINUTE, 2 * HOUR),
            policies=sorted(changes, key=lambda change: change[0]),
            end=self._end,
        )

    def call(self, n: int, at: int, numbers: list[tuple[str, str, str]] | None = None) -> Planned:
        """numbers: one of these; without any, one of all."""
        dice = self._dice
        workspace, number, zone = dice.choice(numbers or self.numbers)
        time_zone = dice.choice(AWAY) if dice.random() < 0.03 else None
        scheduled_at = None
        if dice.random() < 0.3:
            scheduled_at = min(at + round(10 ** dice.uniform(1, 4.5) * 1000), self._end)
        expires_at = min((scheduled_at or at) + round(dice.uniform(10, 30) * HOUR), self._end + 6 * HOUR)
        return Planned(
            key=f"row-{n}",
            at=at,
            workspace=workspace,
            number=number,
            zone=time_zone or zone,
            time_zone=time_zone,
            purpose="service" if dice.random() < 0.3 else None,
            scheduled_at=scheduled_at,
            expires_at=expires_at,
            cancel_at=at + round(10 ** dice.uniform(0, 4.5) * 1000) if dice.random() < 0.03 else None,
            ring_seconds=dice.choice((20, 30, 40)),
        )

    def _scope(self) -> str:
        return self._dice.choices(("all", "default", "service"), (6, 2, 1))[0]

    def _spans(self, number: int, shortest: int, longest: int) -> list[tuple[int, int]]:
        """Spans of time that do not touch."""
        spans = []
        for n in range(number):
            at = START + round((n + self._dice.uniform(0, 0.5)) / number * self._length)
            most = min(longest, self._length // number // 3)
            spans.append((at, at + round(self._dice.uniform(min(shortest, most), most))))
        return spans

    def _changed(self) -> tuple[str, Policy]:
        """A policy whose hours begin and end at other times."""
        workspace, name = self._dice.choice(list(WORKSPACES)), self._dice.choice(list(POLICIES))
        later, earlier = self._dice.choice((-60, 0, 30, 60)), self._dice.choice((0, 45, 90))
        windows = tuple(Window(one.days, one.start + later, one.end - earlier) for one in POLICIES[name].windows)
        return workspace, dataclasses.replace(POLICIES[name], windows=windows)
