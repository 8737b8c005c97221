"""The faults and durations of the stand-in, set by `PUT /_standin/faults`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from local.livekit.scripts import OUTCOMES
from local.livekit.wire import HTTP_STATUS, Version

# A method fails with a Twirp code or below Twirp: the connection is cut, no answer is sent, a proxy's HTML page
# with 502, a gateway's 503 as text or as JSON that is not Twirp's, a plain-text 401.
TRANSPORT_FAILURES = ("cut", "hang", "html502", "text503", "json503", "list503", "text401")


def _known_outcome(outcome: str) -> str:
    if outcome not in OUTCOMES:
        raise ValueError(f"unknown outcome {outcome!r}; known: {', '.join(OUTCOMES)}")
    return outcome


def _known_failure(failure: str) -> str:
    if failure not in HTTP_STATUS and failure not in TRANSPORT_FAILURES:
        raise ValueError(f"unknown failure {failure!r}; known: {', '.join((*HTTP_STATUS, *TRANSPORT_FAILURES))}")
    return failure


Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Outcome = Annotated[str, AfterValidator(_known_outcome)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, validate_by_name=True, frozen=True)


class WebhookFaults(Model):
    """Probabilities per event and address. A reordered event is delayed by `reorder_seconds`, so that later ones
    of its room overtake it. `only`: the event names that these faults apply to (None: all)."""

    drop: Probability = 0
    duplicate: Probability = 0
    reorder: Probability = 0
    reorder_seconds: Seconds = 0.5
    delay_seconds: Seconds = 0
    only: tuple[str, ...] | None = None


class NumberFaults(Model):
    """Overrides the script of one number.

    `fail`: the failure that the request that dials it gets: before the phone rings; `while_ringing`, as soon as it
    rings; or `after` the phone has answered or the dial has ended. The phone follows `outcome` in each case.
    `without_meta`: the carrier's refusal is answered without its metadata, so without a SIP code.
    `lost_dispatches`: the number of agent dispatches for this number that are lost before one reaches a worker."""

    outcome: Outcome = "answer"
    ring_seconds: Seconds | None = None
    talk_seconds: Seconds | None = None
    fail: Annotated[str, AfterValidator(_known_failure)] | None = None
    after: bool = False
    while_ringing: bool = False
    without_meta: bool = False
    agent_join_seconds: Seconds | None = None
    lost_dispatches: Count = 0

    @model_validator(mode="after")
    def _fails_at_one_time(self) -> Self:
        if self.after and self.while_ringing:
            raise ValueError("after and whileRinging exclude each other")
        if (self.after or self.while_ringing) and not self.fail:
            raise ValueError("after and whileRinging need fail")
        return self


class DispatchFaults(Model):
    """Dispatches that reach no worker and are not repeated: with probability `lose`, the first `times` of them
    (None: always). ListDispatch then shows no job, or with a `reason` a job that failed for it (RETRYING: a job
    that stays pending)."""

    lose: Probability = 0
    times: Count | None = None
    reason: Literal["NO_CAPACITY", "ROOM_CLOSED", "DISPATCH_DELETED", "RETRYING"] | None = None


class MethodFaults(Model):
    """How a method fails: with `probability`, the first `times` requests (None: always), before or `after` it has
    taken effect. `delay_seconds`: how long each of its requests waits."""

    fail: Annotated[str, AfterValidator(_known_failure)] | None = None
    probability: Probability = 1
    times: Count | None = None
    after: bool = False
    delay_seconds: Seconds = 0


class Faults(Model):
    """All faults and durations. Seconds are real ones. `seed` makes every random choice repeatable.

    `server_version`: the release of LiveKit whose error messages and webhook User-Agent are used.
    `agent_capacity`: how many agents the workers take at a time (None: any number); a further dispatch is lost and
    its job shown as failed for NO_CAPACITY. `room_count_seconds`: the interval at which the counts that ListRooms
    shows are updated (None: LiveKit's 5 s, scaled). `media_timeout_seconds`: how long a call without audio lasts
    (None: LiveKit's 30 s, scaled). `publish_seconds`: how long a phone's participant is in the room before its
    audio is published and the phone dialled. `draining`: no new room is created."""

    agent_join_seconds: Seconds = 0.2
    ring_seconds: Seconds = 1.0
    talk_seconds: Seconds = 5.0
    seed: int | None = None
    server_version: Version = "1.13.11"
    agent_capacity: Count | None = None
    room_count_seconds: Seconds | None = None
    media_timeout_seconds: Seconds | None = None
    publish_seconds: Seconds = 0
    draining: bool = False
    webhooks: WebhookFaults = WebhookFaults()
    dispatches: DispatchFaults = DispatchFaults()
    numbers: dict[str, NumberFaults] = {}
    rates: dict[Outcome, Probability] = {}
    create_room: MethodFaults | None = None
    list_rooms: MethodFaults | None = None
    delete_room: MethodFaults | None = None
    list_participants: MethodFaults | None = None
    get_participant: MethodFaults | None = None
    remove_participant: MethodFaults | None = None
    create_dispatch: MethodFaults | None = None
    list_dispatch: MethodFaults | None = None
    delete_dispatch: MethodFaults | None = None
    create_sip_participant: Annotated[MethodFaults | None, Field(alias="createSIPParticipant")] = None

    @model_validator(mode="after")
    def _rates_are_shares(self) -> Self:
        if sum(self.rates.values()) > 1:
            raise ValueError("the rates add up to more than 1")
        return self

    def of_method(self, method: str) -> MethodFaults | None:
        """The faults of an RPC such as CreateRoom; None when it has none."""
        for name, field in Faults.model_fields.items():
            if (field.alias or "").lower() == method.lower():
                faults: MethodFaults | None = getattr(self, name)
                return faults
        return None

    def of_number(self, number: str) -> NumberFaults:
        return self.numbers.get(number) or NumberFaults()

    def durations(self, number: str) -> tuple[float, float]:
        """Seconds that a number rings and talks."""
        own = self.of_number(number)
        ring = self.ring_seconds if own.ring_seconds is None else own.ring_seconds
        return ring, self.talk_seconds if own.talk_seconds is None else own.talk_seconds

    def changed_by(self, changes: dict[str, Any]) -> Faults:
        """These faults with some replaced; None resets one to its default.

        Raises pydantic.ValidationError, which names each unknown or wrong field."""
        merged = self.model_dump(by_alias=True, exclude_unset=True) | changes
        known = {field.alias for field in Faults.model_fields.values()}
        return Faults.model_validate(
            {name: value for name, value in merged.items() if value is not None or name not in known}
        )
