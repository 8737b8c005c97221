"""An agent's side of a Ringonce call, to copy beside an agent of your own: what it was sent for, what it reports.

Needs livekit-api (and aiohttp, which that needs). It rests on the published contract only.

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

# Ringonce takes tokens that are valid for at most 10 minutes.
TOKEN_SECONDS = 300
# Seconds between the tries of one report. The first report may wait for a function that starts.
WAITS = (0.5, 1, 2, 4, 8)
TRY_SECONDS = 15


class ReportRefusedError(Exception):
    """Ringonce does not take this report, and repeating it will not help."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class ReportFailedError(Exception):
    """Ringonce could not be reached, or could not take the report, in any try."""


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """What the agent was sent for.

    dynamic_variables: the agent's context, what its prompt may say. metadata: the customer's own, for the agent's
    program; never let it reach the prompt. events_url: where reports go.
    """

    call_id: str
    workspace_id: str
    call_agent_id: str
    to: str
    dynamic_variables: dict[str, Any]
    metadata: dict[str, Any]
    events_url: str

    @property
    def identity(self) -> str:
        """The phone's participant in the room."""
        return f"call-{self.call_id}"


def read_dispatch(job_metadata: str) -> Dispatch:
    """From the job's metadata, `ctx.job.metadata`. Raises ValueError when Ringonce did not write it."""
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
        # Without `from`, and without the text: it holds the customer's data.
        raise ValueError("the job was not dispatched by Ringonce: its metadata is not as it should be") from None
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
) -> int:
    """Reports `agent.<name>` on the call. Returns the sequence of the resulting event.

    It is tried for about a minute and counts once, however often it gets through. key: gives a report of your own
    the same name at every call of this function; without one each call is a report of its own. The LiveKit key
    comes from LIVEKIT_API_KEY and LIVEKIT_API_SECRET when it is not given. Raises ReportRefusedError or
    ReportFailedError."""
    body = json.dumps({"type": kind, "data": data or {}}, ensure_ascii=False, allow_nan=False).encode()
    headers = {"content-type": "application/json", "idempotency-key": key or uuid.uuid4().hex}
    failure = ""
    # A session that was given stays open.
    async with contextlib.nullcontext(session) if session else aiohttp.ClientSession() as http:
        for wait in (*WAITS, None):
            # A new token for each try: the one before may have run out.
            token = signed(body, room, api_key, api_secret)
            try:
                async with http.post(
                    dispatch.events_url,
                    data=body,
                    headers=headers | {"authorization": f"Bearer {token}"},
                    timeout=aiohttp.ClientTimeout(total=TRY_SECONDS),
                    allow_redirects=False,
                ) as answer:
                    told = await _object(answer)
                    if answer.status == 200:
                        return int(told["sequence"])
                    if answer.status < 500 and answer.status != 429:
                        raise ReportRefusedError(answer.status, told.get("code", ""), told.get("message", ""))
                    failure = f"HTTP {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as exc:
                failure = type(exc).__name__
            if wait is not None:
                await asyncio.sleep(wait)
    raise ReportFailedError(f"{kind} was not taken: {failure}")


def signed(body: bytes, room: str, api_key: str | None = None, api_secret: str | None = None) -> str:
    """The token that lets this body, and nothing else, be reported of the call in this room."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    token = AccessToken(api_key, api_secret).with_grants(VideoGrants(room=room)).with_sha256(digest)
    return token.with_ttl(datetime.timedelta(seconds=TOKEN_SECONDS)).to_jwt()


async def _object(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        told = json.loads(await answer.read())
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {}
