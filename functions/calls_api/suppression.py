"""Suppression: the numbers that a workspace's calls must not ring.

What a client is told to be suppressed is written: no call to that number is fenced after the answer. Every change
is one log line with the whole number, from which the table can be rebuilt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from calls_api.queries import limit_given, number_given, query_fields, read_cursor, write_cursor
from shared.call import Call, iso
from shared.clock import Clock
from shared.errors import FieldError, RequestRefusedError, StoreError, TooManyScopesError, refusal
from shared.http_api import Event
from shared.numbers import ALL, MAXIMUM_REASON, NumberRecord, NumberStore, Suppression
from shared.phone_number import E164, canonical
from shared.policies import DEFAULT
from shared.policies import NAME as POLICY_NAME
from shared.raw_json import body_members
from shared.request_model import PLAIN_TEXT, ErrorMessage, NullIsAbsent, PhoneNumber, RequestModel, validate
from shared.telemetry import logger
from shared.timestamps import Timestamp, rfc3339_ms
from shared.workspaces import Workspace

MAXIMUM_SUPPRESSION_BYTES = 16 * 1024
MAXIMUM_IMPORT_BYTES = 1024 * 1024
MAXIMUM_IMPORTED = 1000

# An import begins no write after this time. One whose answers do not come (shared/aws.py) ends within the
# function's 29 s.
IMPORT_SECONDS = 8
# Numbers that an import reads with one request, and how many it writes at the same time.
_READ_TOGETHER = 100
_WRITERS = 16


def _in_future(text: str, info: ValidationInfo) -> str:
    """info.context: now, epoch ms."""
    if info.context is not None and rfc3339_ms(text) <= info.context:
        raise PydanticCustomError("invalid_request", "must be in the future")
    return text


Scope = Annotated[
    str,
    Field(pattern=rf"^{POLICY_NAME.pattern}$"),
    ErrorMessage("must be all or the name of a policy: 1 to 64 of a-z, 0-9, _ and -, the first a letter"),
    NullIsAbsent(),
]
Reason = Annotated[
    str | None,
    Field(max_length=MAXIMUM_REASON, pattern=PLAIN_TEXT),
    ErrorMessage(f"must be a text of at most {MAXIMUM_REASON} characters, none of them a control character"),
]
EndsAt = Annotated[Timestamp, AfterValidator(_in_future)] | None


class SuppressionRequest(RequestModel, extra="forbid"):
    """The body of PUT /v1/api/suppression/{number}."""

    scope: Scope = ALL
    reason: Reason = None
    expires_at: EndsAt = None


class ImportedSuppression(RequestModel, extra="forbid"):
    """One of the suppressions of an import."""

    number: PhoneNumber
    scope: Scope = ALL
    reason: Reason = None
    expires_at: EndsAt = None


class ImportRequest(RequestModel, extra="forbid"):
    """The body of POST /v1/api/suppression/import. Each suppression is read by itself: an invalid one does not
    keep the others from being written.
    """

    suppressions: Annotated[
        list[Any],
        Field(min_length=1, max_length=MAXIMUM_IMPORTED),
        ErrorMessage(f"must be a list of 1 to {MAXIMUM_IMPORTED:,} suppressions"),
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of one suppression of an import. retry: it was not written; the same may be sent again."""

    result: Literal["accepted", "invalid", "retry"]
    number: str | None = None
    errors: tuple[FieldError, ...] = ()

    def view(self) -> dict[str, Any]:
        view: dict[str, Any] = {"result": self.result, "number": self.number}
        if self.errors:
            view["errors"] = [{"field": error.field, "message": error.message} for error in self.errors]
        return view


@dataclasses.dataclass(frozen=True, slots=True)
class Suppressor:
    """Suppresses numbers and releases them. clock: epoch milliseconds."""

    numbers: NumberStore
    clock: Clock

    def suppress(self, workspace: Workspace, number: str, body: bytes, key: dict[str, str]) -> dict[str, Any]:
        """PUT: the number's suppressions once this one is written. number: of the path. key: the API key.

        Raises RequestRefusedError (4xx), StoreError (not known to be written: repeat it).
        """
        number = number_of_path(number)
        now_ms = self.clock()
        fields = body_members(body, MAXIMUM_SUPPRESSION_BYTES)
        request, errors = validate(
            SuppressionRequest,
            {name: value for name, (value, _) in fields.items()},
            unknown="is not a field of this request",
            context=now_ms,
        )
        errors += _scope_errors(workspace, request)
        if request is None or errors:
            raise refusal(400, *errors)
        suppression = _suppression(request, key, now_ms)
        try:
            record = self.add(workspace.workspace_id, number, suppression, now_ms)
        except TooManyScopesError as exc:
            raise refusal(400, FieldError("scope", f"is one too many: {exc}")) from exc
        return number_view(record, self.clock())

    def opt_out(self, call: Call, scope: str, said: str | None, now_ms: int) -> None:
        """What an agent reports: the callee wants no more calls. said: in which words.

        Raises StoreError (not known to be written: repeat it).
        """
        suppression = Suppression(scope, (said or "")[:MAXIMUM_REASON], now_ms, by={"call": call.call_id})
        try:
            self.add(call.workspace_id, call.to, suppression, now_ms)
        except TooManyScopesError:
            # It has as many scopes as a number may have: it wants no calls at all.
            self.add(call.workspace_id, call.to, dataclasses.replace(suppression, scope=ALL), now_ms)

    def add(
        self,
        workspace_id: str,
        number: str,
        suppression: Suppression,
        now_ms: int,
        seen: NumberRecord | None = None,
        *,
        keep_longer: bool = False,
    ) -> NumberRecord:
        """Writes a suppression and then its log line. keep_longer, and what it raises: as NumberStore.suppress."""
        record = self.numbers.suppress(workspace_id, number, suppression, now_ms, seen, keep_longer=keep_longer)
        # What holds then: the table is rebuilt from these lines, and one that was kept must not end sooner.
        holds = record.of_scope(suppression.scope, now_ms) or suppression
        _log("suppressed", record, holds, holds.by)
        return record

    def release(self, workspace: Workspace, event: Event, key: dict[str, str]) -> dict[str, Any]:
        """DELETE: the suppressions that are left. Raises RequestRefusedError: 404 when there was none."""
        number = number_of_path(event["pathParameters"]["number"])
        fields, errors = query_fields(event, {"scope": _scope})
        if errors:
            raise refusal(400, *errors)
        scope, now_ms = fields.get("scope"), self.clock()
        before, after = self.numbers.release(workspace.workspace_id, number, scope, now_ms)
        removed = [gone for gone in before.holding(now_ms) if scope in (None, gone.scope)]
        if not removed:
            raise RequestRefusedError(404, "not_suppressed", "This number has no such suppression")
        for suppression in removed:
            _log("released", after, suppression, key)
        return number_view(after, now_ms)

    def view(self, workspace_id: str, event: Event) -> dict[str, Any]:
        """GET: the suppressions of one number that have not ended."""
        number = number_of_path(event["pathParameters"]["number"])
        _, errors = query_fields(event, {})
        if errors:
            raise refusal(400, *errors)
        return number_view(self.numbers.get(workspace_id, number), self.clock())

    def page(self, workspace_id: str, event: Event) -> dict[str, Any]:
        """GET of the list: one page of the suppressed numbers, by number. A page may be short and still have a
        cursor: suppressions that have ended are left out.
        """
        fields, errors = query_fields(event, {"limit": limit_given, "cursor": _cursor})
        if errors:
            raise refusal(400, *errors)
        found, last = self.numbers.suppressed(workspace_id, fields.get("limit", 20), fields.get("cursor"))
        now_ms = self.clock()
        return {
            "status": "success",
            "numbers": [_entry(record, now_ms) for record in found if record.holding(now_ms)],
            "cursor": None if last is None else write_cursor(last),
        }

    def import_all(self, workspace: Workspace, body: bytes, key: dict[str, str]) -> dict[str, Any]:
        """POST of an import: a result for each suppression, in their order; `retry` if it was not written in time.
        One that lasts longer than what is asked for is kept.

        Raises RequestRefusedError (4xx); StoreError when not one could be written.
        """
        now_ms = self.clock()
        fields = body_members(body, MAXIMUM_IMPORT_BYTES)
        request, errors = validate(
            ImportRequest,
            {name: value for name, (value, _) in fields.items()},
            unknown="is not a field of this request",
        )
        if request is None or errors:
            raise refusal(400, *errors)
        results: dict[int, Result] = {}
        # Those of one number in their order: of a scope the one that lasts longest holds.
        wanted: dict[str, list[tuple[int, Suppression]]] = {}
        for place, given in enumerate(request.suppressions):
            row, errors = validate(
                ImportedSuppression,
                given,
                unknown="is not a field of a suppression",
                below=f"suppressions.{place}",
                context=now_ms,
            )
            errors += _scope_errors(workspace, row, f"suppressions.{place}.")
            if row is None or errors:
                results[place] = Result("invalid", errors=tuple(errors))
            else:
                wanted.setdefault(canonical(row.number), []).append((place, _suppression(row, key, now_ms)))
        written, failed = self._write_all(workspace.workspace_id, wanted, now_ms)
        if failed is not None and not any(result.result == "accepted" for result in written.values()):
            raise failed
        results |= written
        ordered = [results[place] for place in range(len(request.suppressions))]
        counts = {
            name: sum(result.result == name for result in ordered) for name in ("accepted", "invalid", "retry")
        }
        return {"status": "success", **counts, "results": [result.view() for result in ordered]}

    def _write_all(
        self, workspace_id: str, wanted: dict[str, list[tuple[int, Suppression]]], now_ms: int
    ) -> tuple[dict[int, Result], StoreError | None]:
        """The results by their place, and the first error of the store."""
        give_up_ms = now_ms + IMPORT_SECONDS * 1000
        results: dict[int, Result] = {}
        failures: list[StoreError] = []

        def write(number: str, seen: NumberRecord) -> None:
            record: NumberRecord | None = seen
            for place, suppression in wanted[number]:
                if self.clock() >= give_up_ms or failures:
                    return
                try:
                    self.add(workspace_id, number, suppression, now_ms, record, keep_longer=True)
                    results[place] = Result("accepted", number)
                except TooManyScopesError as exc:
                    error = FieldError(f"suppressions.{place}.scope", f"is one too many: {exc}")
                    results[place] = Result("invalid", number, (error,))
                except StoreError as exc:
                    failures.append(exc)
                record = None

        numbers = list(wanted)
        with ThreadPoolExecutor(_WRITERS) as pool:
            for start in range(0, len(numbers), _READ_TOGETHER):
                if self.clock() >= give_up_ms or failures:
                    break
                some = numbers[start : start + _READ_TOGETHER]
                try:
                    seen = self.numbers.get_many(workspace_id, some)
                except StoreError as exc:
                    failures.append(exc)
                    break
                list(pool.map(write, some, [seen[number] for number in some]))
        for number, rows in wanted.items():
            for place, _ in rows:
                results.setdefault(place, Result("retry", number))
        return results, failures[0] if failures else None


def number_view(record: NumberRecord, now_ms: int) -> dict[str, Any]:
    """A number with its suppressions that have not ended, as the API shows it."""
    return {"status": "success", **_entry(record, now_ms)}


def number_of_path(text: str) -> str:
    """The canonical number. Its plus sign may be encoded. Raises RequestRefusedError (400)."""
    try:
        return canonical(number_given(unquote(text)))
    except ValueError as exc:
        raise refusal(400, FieldError("number", str(exc), "invalid_number")) from exc


def _entry(record: NumberRecord, now_ms: int) -> dict[str, Any]:
    return {
        "number": record.number,
        "suppressions": [
            {
                "scope": suppression.scope,
                "reason": suppression.reason or None,
                "at": iso(suppression.at_ms),
                "expiresAt": None if suppression.until_ms is None else iso(suppression.until_ms),
                "by": {
                    "keyId": suppression.by.get("key"),
                    "label": suppression.by.get("label"),
                    "callId": suppression.by.get("call"),
                    "operator": suppression.by.get("operator"),
                },
            }
            for suppression in sorted(record.holding(now_ms), key=lambda one: one.scope)
        ],
    }


def _suppression(
    request: SuppressionRequest | ImportedSuppression, key: dict[str, str], now_ms: int
) -> Suppression:
    until_ms = None if request.expires_at is None else rfc3339_ms(request.expires_at)
    return Suppression(request.scope, request.reason or "", now_ms, until_ms, by=key)


def _scope_errors(
    workspace: Workspace, request: SuppressionRequest | ImportedSuppression | None, below: str = ""
) -> Iterable[FieldError]:
    """A scope that no call can have would suppress nothing."""
    if request is not None and request.scope not in (ALL, DEFAULT, *workspace.policies):
        yield FieldError(f"{below}scope", "is neither all nor a policy of this workspace", "unknown_purpose")


def _log(action: str, record: NumberRecord, suppression: Suppression, by: dict[str, str]) -> None:
    until_ms = suppression.until_ms
    logger.info(
        "suppression changed",
        extra={
            "workspace_id": record.workspace_id,
            "number": record.number,
            "scope": suppression.scope,
            "action": action,
            "reason": suppression.reason,
            "expires_at": None if until_ms is None else iso(until_ms),
            "by": by,
        },
    )


def _scope(text: str) -> str:
    if not POLICY_NAME.fullmatch(text):
        raise ValueError("must be all or the name of a policy")
    return text


def _cursor(text: str) -> str:
    [number] = read_cursor(text, E164)
    return number
