"""Reads the dispatch of a Ringonce call and sends reports, in an agent of your own that this file is copied to.

Needs livekit-api (and its dependency aiohttp). It uses the published contract only.

    dispatch = read_dispatch(ctx.job.metadata)
    await report(dispatch, ctx.room.name, "agent.summary", {"text": "Will come on Friday"})
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import hashlib
import json
import uuid
from typing import Any

import aiohttp
from livekit.api.access_token import AccessToken, VideoGrants

# Ringonce accepts tokens that are valid for at most 10 minutes.
TOKEN_SECONDS = 300
# Seconds between the tries of one report. The first report may wait for a function that starts.
WAITS = (0.5, 1, 2, 4, 8)
TRY_SECONDS = 15


class ReportRefusedError(Exception):
    """Ringonce refused this report; a repetition would be refused too."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class ReportFailedError(Exception):
    """No try reached Ringonce or was accepted by it."""


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """The call that the agent was dispatched to.

    dynamic_variables: the agent's context, for its prompt. metadata: the customer's own data, for the agent's
    program and not for the prompt. events_url: the address that reports are sent to."""

    call_id: str
    workspace_id: str
    call_agent_id: str
    to: str
    dynamic_variables: dict[str, Any]
    metadata: dict[str, Any]
    events_url: str

    @property
    def identity(self) -> str:
        """The identity of the phone's participant in the room."""
        return f"call-{self.call_id}"


def read_dispatch(job_metadata: str) -> Dispatch:
    """Parses the job's metadata, `ctx.job.metadata`. Raises ValueError when Ringonce did not write it."""
    try:
        fields = json.loads(job_metadata)
        dispatch = Dispatch(
            call_id=fields["callId"],
            workspace_id=fields["workspaceId"],
            call_agent_id=fields["callAgentId"],
            to=fields["to"],
            dynamic_variables=fields["dynamicVariables"],
            metadata=fields["metadata"],
            events_url=fields["eventsUrl"],
        )
    except (ValueError, KeyError, TypeError):
        # Neither the cause nor the text is shown: they contain the customer's data.
        raise ValueError("the job was not dispatched by Ringonce: its metadata lacks fields") from None
    if not isinstance(dispatch.dynamic_variables, dict) or not isinstance(dispatch.metadata, dict):
        raise ValueError("the job was not dispatched by Ringonce: variables and metadata must be objects")
    return dispatch


async def report(
    dispatch: Dispatch,
    room: str,
    kind: str,
    data: dict[str, Any] | None = None,
    *,
    key: str | None = None,
    api_key: str | None = None,
    api_secret: str | None = None,
    session: aiohttp.ClientSession | None = None,
) -> int | None:
    """Reports `agent.<name>` on the call. Returns the sequence of the resulting event; None for an `agent.opt_out`
    that has suppressed the callee, but came too late to be an event.

    It is retried for about a minute and counts once, also when several tries arrive. key: calls of this function
    with the same key are one report; without a key each call is a separate report. The LiveKit key defaults to
    LIVEKIT_API_KEY and LIVEKIT_API_SECRET. Raises ReportRefusedError or ReportFailedError."""
    body = json.dumps({"type": kind, "data": data or {}}, ensure_ascii=False, allow_nan=False).encode()
    headers = {"content-type": "application/json", "idempotency-key": key or uuid.uuid4().hex}
    failure = ""
    # The caller's session stays open.
    async with contextlib.nullcontext(session) if session else aiohttp.ClientSession() as http:
        for wait in (*WAITS, None):
            # A new token for each try: the previous one may have expired.
            token = signed(body, room, api_key, api_secret)
            try:
                async with http.post(
                    dispatch.events_url,
                    data=body,
                    headers=headers | {"authorization": f"Bearer {token}"},
                    timeout=aiohttp.ClientTimeout(total=TRY_SECONDS),
                    allow_redirects=False,
                ) as answer:
                    fields = await _object(answer)
                    if answer.status == 200:
                        return fields.get("sequence")
                    if answer.status < 500 and answer.status != 429:
                        raise ReportRefusedError(answer.status, fields.get("code", ""), fields.get("message", ""))
                    failure = f"HTTP {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as exc:
                failure = type(exc).__name__
            if wait is not None:
                await asyncio.sleep(wait)
    raise ReportFailedError(f"{kind} was not accepted: {failure}")


def signed(body: bytes, room: str, api_key: str | None = None, api_secret: str | None = None) -> str:
    """The token for a report with exactly this body on the call in this room."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    token = AccessToken(api_key, api_secret).with_grants(VideoGrants(room=room)).with_sha256(digest)
    return token.with_ttl(datetime.timedelta(seconds=TOKEN_SECONDS)).to_jwt()


async def _object(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        fields = json.loads(await answer.read())
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) else {}
