"""Every duration of the system, in seconds, in one place.

The production values are the defaults. The local stack and the tests run the same code faster by one
factor (`TIME_SCALE`, 0.05 = twenty times faster), so that a day of retries can be watched in an hour and
every margin keeps its proportion to every other. `tests/unit/test_durations.py` checks how they nest.

The response time of other services does not shrink with the factor. So the local stack also sets a minimum for
every wait for a response (`LEAST_PATIENCE`, seconds): a busy machine must not look like a LiveKit that is down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# The durations that wait for another service's response, and those that must outlive such a wait: each is at least
# so many times `LEAST_PATIENCE`.
PATIENT: dict[str, float] = {
    "agent_wait": 1,
    "answer_margin": 1,
    "livekit_request": 1,
    "livekit_look": 1,
    "webhook_connect": 0.5,
    "webhook_attempt": 1,
    "fence_margin": 0.25,
    "fence_patience": 0.5,
    "decision_valid": 1,
    # A delay of SQS's is in whole seconds: a message comes up to a second early (line.py, scheduling.py).
    "early_message": 0.25,
    "webhook_lease": 3,
    "report_grace": 30,
}


# A call has ended at most so many seconds after answer + max_duration, as the README publishes. The reconciler
# ends it without a look after `end_margin`; the last postponement, the reconciler's minute and its run fit into
# the rest.
END_BOUND = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Durations:
    """All fields are seconds."""

    # How long a process uses a workspace, key or secret before it reads it again.
    workspace_cache: float = 60
    # Time limit of the DNS look-up of a callback URL's host when a call is accepted.
    name_lookup: float = 1
    # A message whose record is missing: how long it is read, the step between its repeats, when it is dropped.
    orphan_read: float = 1
    orphan_step: float = 2
    orphan_drop: float = 60
    # The reconciler repeats a queued call's message when no process has taken the call for this long.
    queued_check: float = 60
    # A lease outlives the process that took it by this much.
    lease_margin: float = 60
    # The agent must be in the room within this time; the first interval between two looks.
    agent_wait: float = 20
    agent_step: float = 0.5
    # A dispatch without a job after this time found no worker; LiveKit does not repeat it, so it is made again.
    agent_redispatch: float = 5
    # An agent that left an answered call may be replaced by another within this time.
    agent_return: float = 5
    # LiveKit answers a waiting dial at join + ring; the HTTP client waits this much longer than the ring.
    answer_margin: float = 15
    # What must remain of the process beyond ring + answer_margin before the fence: room for the writes.
    fence_margin: float = 10
    # How long a worker repeats its decision and its fence when others write the same number, and the step between.
    fence_patience: float = 2
    fence_step: float = 0.05
    # A decision of the gates is used for the dial for this long.
    decision_valid: float = 10
    # The INVITE follows a dial's request within this time: LiveKit makes the participant join the room before.
    invite: float = 3
    # LiveKit gives up a dial at most this long after its ring time (livekit/protocol, the RPC's 80 s).
    dial_limit: float = 80
    # How long a cancel repeats its request to hang up a phone that has not joined the room yet.
    hang_up_patience: float = 5
    # A dial that failed without a SIP code: LiveKit's event, which may say why, comes a moment after its answer.
    left_wait: float = 2
    # A request to LiveKit other than a dial.
    livekit_request: float = 10
    # The same for the reconciler: up to four in a row must fit into one round.
    livekit_look: float = 5
    # A trunk whose next free second is further away than this is waited for with a delayed message.
    pacing_hold: float = 5
    # A call without a slot makes newcomers enter the line behind it for this long.
    crowded: float = 60
    # The reconciler admits calls whose turn comes within this time, with delayed messages; a message that is at
    # most `early_message` early waits in the worker.
    admit_ahead: float = 120
    early_message: float = 5
    # A trunk that failed several calls in a row is stopped for this long, doubled each time up to the longest.
    trunk_stop: float = 60
    trunk_stop_longest: float = 3600
    # LiveKit unreachable before anything rang: first wait, doubled at each attempt, with jitter.
    backoff: float = 5
    # The reconciler repeats a waiting call's message when it is this late.
    wait_grace: float = 30
    # A call that is still queued after this time ends `expired`.
    queue_ttl: float = 3600
    # Interval between looks at a live call; a phone absent on two looks this far apart has left.
    live_check: float = 300
    second_look: float = 30
    # After answer + max_duration + this a call ends without a look: END_BOUND less the longest time until the
    # reconciler gets to it (the last postponement, the reconciler's minute, its run).
    end_margin: float = 450
    # Interval at which the ids in the workspaces' slots are compared with their calls.
    slot_repair: float = 300
    # A room whose call has ended is looked at after this.
    clear_check: float = 60
    # How long after the end of its call an agent may still report.
    report_grace: float = 300
    # Delays of a webhook's attempts, each from the attempt before; up to a tenth of jitter is added.
    webhook_schedule: tuple[float, ...] = (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    webhook_connect: float = 5
    webhook_attempt: float = 15
    webhook_lease: float = 45
    # An event waits at most this long for the previous one of the same call in the same batch.
    webhook_order: float = 1
    # Waits of at least this have no delayed message: the reconciler sends one when the delivery is due.
    webhook_message: float = 60
    # How much a delivery's message may be late before the reconciler sends another.
    webhook_grace: float = 60
    # The factor itself, for durations that come with a request (ring, call length).
    scale: float = 1

    def ring_ms(self, ring_timeout_seconds: float) -> int:
        """How many ms before the end of its calling hours a phone is dialled at the latest: it rings, after
        LiveKit's way to the INVITE.
        """
        return round((ring_timeout_seconds * self.scale + self.invite) * 1000)

    def scaled(self, factor: float) -> Durations:
        """The same durations, all multiplied by `factor`."""
        changes: dict[str, float | tuple[float, ...]] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            changes[field.name] = tuple(v * factor for v in value) if isinstance(value, tuple) else value * factor
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def patient(self, least: float) -> Durations:
        """The same durations, but every wait for a response is at least `least` seconds (see PATIENT)."""
        changes = {name: max(getattr(self, name), times * least) for name, times in PATIENT.items()}
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Durations:
        """Production values with the operator's `QUEUE_TTL_SECONDS`, times the local stack's `TIME_SCALE`.

        Every wait for a response is at least the local stack's `LEAST_PATIENCE`.
        """
        durations = cls()
        if queue_ttl := environment.get("QUEUE_TTL_SECONDS"):
            durations = dataclasses.replace(durations, queue_ttl=float(queue_ttl))
        scaled = durations.scaled(float(environment.get("TIME_SCALE", "1")))
        return scaled.patient(float(environment.get("LEAST_PATIENCE", "0")))
