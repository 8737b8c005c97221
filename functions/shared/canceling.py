"""Canceling, by a client (calls_api) or an operator (admin): a queued call is ended before it dials; a ringing or
answered one is hung up.
"""

from __future__ import annotations

import asyncio
import dataclasses

from shared.call import Call, Outcome
from shared.call_store import CallStore
from shared.clock import Clock, to_ms
from shared.durations import Durations
from shared.ending import end_call
from shared.errors import LiveKitError, RequestRefusedError, StoreError
from shared.livekit.secret import LiveKitSecretCache
from shared.telemetry import logger

REASON = "canceled_by_api"


@dataclasses.dataclass(frozen=True, slots=True)
class Canceler:
    """Cancels calls. livekit_secret: None when LiveKit cannot be asked from here; the reconciler hangs up then.
    clock: epoch milliseconds.
    """

    calls: CallStore
    livekit_secret: LiveKitSecretCache | None
    durations: Durations
    clock: Clock

    def cancel(self, call: Call) -> None:
        """Returns once the call is canceled or its request to hang up is stored. Idempotent.

        Raises RequestRefusedError (409) when the call has ended for another reason, StoreError when nothing could
        be written."""
        seen: Call | None = call
        # Each iteration is lost to a change of the call, and a call changes its status only a few times.
        for _ in range(10):
            if seen is None:
                raise StoreError("the call is gone")
            if seen.ended:
                if seen.end_event.get("reason") != REASON and (seen.hangup or {}).get("reason") != REASON:
                    raise RequestRefusedError(409, "call_ended", f"The call has already ended: {seen.status}")
                return
            if seen.status == "queued":
                ended = end_call(
                    self.calls, seen, Outcome("canceled", "canceled_by_api"), self.durations, self.clock
                )
                if ended is not None:
                    if not ended.attempts:
                        # No process has taken its lease: it has neither room nor slot.
                        self.calls.leave_due(ended.call_id)
                    return
            else:
                if seen.hangup is not None or self.calls.ask_to_hang_up(seen, REASON, self.clock()).won:
                    self.hang_up_now(seen)
                    return
            seen = self.calls.get(call.call_id)
        raise StoreError("the call changed at every attempt")

    def hang_up_now(self, call: Call) -> None:
        """Best effort: the request to hang up is stored, and the reconciler repeats it until the phone is gone."""
        if self.livekit_secret is None:
            return
        read_secret = self.livekit_secret.get
        # Imported here: importing the LiveKit client takes longer than any other route takes to answer.
        from shared.hang_up import hang_up_phone
        from shared.livekit.client import connect

        async def hang_up() -> None:
            async with connect(read_secret, self.durations.livekit_request) as livekit:
                seen: Call | None = call
                give_up_at_ms = self.clock() + to_ms(self.durations.hang_up_patience)
                while seen is not None and not seen.ended:
                    answered = seen.status == "in_progress"
                    if await hang_up_phone(self.calls, livekit, seen, answered=answered) or answered:
                        return
                    if self.clock() >= give_up_at_ms:
                        return
                    # LiveKit has the dial, and the phone is not in the room yet.
                    await asyncio.sleep(self.durations.agent_step)
                    seen = await asyncio.to_thread(self.calls.get, call.call_id)

        try:
            asyncio.run(hang_up())
        except (LiveKitError, StoreError) as exc:
            logger.warning("not hung up at once", extra={"call_id": call.call_id, "reason": str(exc)})
