"""GET of one call and of the list of calls."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from shared.call import Call, Status, compact, event_id_of, iso, json_object, snapshot
from shared.call_store import CallStore
from shared.errors import FieldError, RequestRefusedError, refusal
from shared.http_api import Event
from shared.line import waiting_view
from shared.phone_number import e164
from shared.table_keys import CALL_ID

_AGENT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CREATED_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
# A literal + in a query string arrives as a space.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,3})?(Z|[+ -]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_CONSENT = ("basis", "obtainedAt", "reference")
_PARTITION_KEY = re.compile(r"CALL#[0-9a-f]{24}")


def call_of_workspace(calls: CallStore, workspace_id: str, call_id: str) -> Call:
    """Raises RequestRefusedError (404) when the call does not exist or belongs to another workspace."""
    call = calls.get(call_id) if CALL_ID.fullmatch(call_id) else None
    if call is None or call.workspace_id != workspace_id:
        raise RequestRefusedError(404, "call_not_found", "This workspace has no such call")
    return call


def call_view(call: Call, now_ms: int) -> str:
    """A call as JSON text: its state, its events, and the request's context, verbatim."""
    fields = {name: compact(value) for name, value in _state(call, now_ms).items()}
    fields |= {
        "callbackUrl": compact(call.callback_url),
        "dynamicVariables": call.dynamic_variables or "null",
        "metadata": call.metadata or "null",
        "events": "[" + ",".join(_event_view(call, n) for n in range(1, len(call.events) + 1)) + "]",
    }
    return json_object(fields)


def _state(call: Call, now_ms: int) -> dict[str, Any]:
    """The call after its latest event, when and under which rules it may ring, and why it waits. Webhooks have
    only the first: their bodies never change.
    """
    consent = call.consent
    return snapshot(call, len(call.events)) | {
        "scheduledAt": None if call.scheduled_at_ms is None else iso(call.scheduled_at_ms),
        "expiresAt": None if call.expires_at_ms is None else iso(call.expires_at_ms),
        "purpose": call.purpose,
        "timeZone": call.time_zone,
        "consent": None if consent is None else {name: consent.get(name) for name in _CONSENT},
        "dtmf": call.dtmf,
        **waiting_view(call, now_ms),
    }


def _event_view(call: Call, sequence: int) -> str:
    entry = call.events[sequence - 1]
    fields = {
        "id": compact(event_id_of(call, sequence)),
        "type": compact(entry["type"]),
        "timestamp": compact(iso(entry["at"])),
        "sequence": str(sequence),
    }
    if "gates" in entry:
        fields["gates"] = entry["gates"]
    if "data" in entry:
        fields["report"] = entry["data"]
    return json_object(fields)


@dataclasses.dataclass(frozen=True, slots=True)
class ListQuery:
    """A valid query of the list. cursor: the end of the previous page (createdAt, partition key)."""

    status: str | None = None
    agent: str | None = None
    to: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    limit: int = 20
    cursor: tuple[str, str] | None = None


def list_query(event: Event) -> ListQuery:
    """Raises RequestRefusedError (400) with every invalid or unknown parameter."""
    fields, errors = query_fields(
        event,
        {
            "status": _status,
            "agent": _agent,
            "to": number_given,
            "created_after": _time,
            "created_before": _time,
            "limit": limit_given,
            "cursor": _cursor,
        },
    )
    query = ListQuery(**fields)
    earliest, latest = query.created_after or "0", query.created_before or "9"
    # DynamoDB refuses an inverted range, and a start key outside the range.
    if earliest > latest:
        errors.append(FieldError("created_before", "must not be before created_after"))
    elif query.cursor is not None and not earliest <= query.cursor[0] <= latest:
        errors.append(FieldError("cursor", "belongs to a query with other times"))
    if errors:
        raise refusal(400, *errors)
    return query


def query_fields(
    event: Event, readers: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], list[FieldError]]:
    """The parameters of the query, each as its reader has read it, and every one that is invalid or unknown."""
    given: Mapping[str, str] = event.get("queryStringParameters") or {}
    errors, fields = [], {}
    for name, text in given.items():
        if name not in readers:
            errors.append(FieldError(name[:128], "is not a parameter of this request"))
            continue
        try:
            fields[name] = readers[name](text)
        except ValueError as exc:
            errors.append(FieldError(name, str(exc)))
    return fields, errors


def list_calls(calls: CallStore, workspace_id: str, query: ListQuery, now_ms: int) -> str:
    """One page, newest first, as JSON text. A page may be short and still have a cursor."""
    found, last = calls.page_of_workspace(
        workspace_id,
        limit=query.limit,
        agent=query.agent,
        to=query.to,
        created_after=query.created_after,
        created_before=query.created_before,
        start=query.cursor,
    )
    shown = [
        compact(_state(call, now_ms)) for call in found if query.status is None or call.status == query.status
    ]
    return json_object(
        {
            "status": compact("success"),
            "calls": "[" + ",".join(shown) + "]",
            "cursor": compact(None if last is None else write_cursor(*last)),
        }
    )


def write_cursor(*last: str) -> str:
    """Where the next page of a list starts, as the client gives it back."""
    return base64.urlsafe_b64encode(json.dumps(last).encode()).decode().rstrip("=")


def read_cursor(text: str, *parts: re.Pattern[str]) -> list[str]:
    """What `write_cursor` was given. parts: how each of it looks. Raises ValueError for any other text."""
    # It only holds a position within the client's own workspace: a forged one gives access to nothing else.
    try:
        last = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
        if not isinstance(last, list) or not all(
            part.fullmatch(given) for part, given in zip(parts, last, strict=True)
        ):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise ValueError("is not a cursor of this API") from None
    return last


def _cursor(text: str) -> tuple[str, str]:
    created_at, key = read_cursor(text, _CREATED_AT, _PARTITION_KEY)
    return created_at, key


def _status(text: str) -> str:
    if text not in get_args(Status):
        raise ValueError(f"must be one of {', '.join(get_args(Status))}")
    return text


def _agent(text: str) -> str:
    if not _AGENT.fullmatch(text):
        raise ValueError("must have 1 to 128 of A-Z, a-z, 0-9, _ and -")
    return text


def number_given(text: str) -> str:
    """A number of a path or a query as E.164. Raises ValueError."""
    # A literal + in a query string arrives as a space.
    return e164("+" + text[1:] if text.startswith(" ") and "+" not in text else text)


def _time(text: str) -> str:
    """The time in the format of `createdAt`, in UTC: DynamoDB compares strings."""
    if not _TIME.fullmatch(text):
        raise ValueError("must be a time like 2026-11-24T09:30:00.000Z or 2026-11-24T10:30:00+01:00")
    try:
        moment = datetime.datetime.fromisoformat(text.replace(" ", "+")).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time that exists, like 2026-11-24T09:30:00.000Z") from None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def limit_given(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 100 and len(text) <= 3):
        raise ValueError("must be a whole number from 1 to 100")
    return int(text)
