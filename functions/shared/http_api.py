"""API Gateway's HTTP API (payload format 2.0): reading requests, building responses.

Source: AWS, "Create AWS Lambda proxy integrations for HTTP APIs".
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import QueueError, RequestRefusedError, StoreError
from shared.telemetry import count, logger

Event = Mapping[str, Any]
Answer = dict[str, Any]

RETRY_AFTER_SECONDS = 2

# Every other route can be repeated without a key.
_ROUTES_WITH_IDEMPOTENCY_KEY = frozenset({"POST /v1/api/call", "POST /v1/api/call/{callId}/events"})


def body_bytes(event: Event) -> bytes:
    """The body as sent (API Gateway encodes most content types in base64); empty without a body.

    Raises RequestRefusedError: 400 if the body is not valid base64, 415 if it has a content encoding.
    """
    # The content type's value is not checked: `curl -d` declares a form.
    header(event, "content-type")
    encoding = header(event, "content-encoding")
    if encoding and encoding.lower() != "identity":
        raise RequestRefusedError(
            415,
            "unsupported_encoding",
            "A body with a Content-Encoding is not read; send it as it is, without that header",
        )
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else b""
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as exc:  # binascii.Error, or text that is not ASCII
        raise RequestRefusedError(400, "invalid_body", "The body is not valid base64") from exc


def header(event: Event, name: str) -> str | None:
    """A request header by its lower-case name, None when it is absent.

    Every header that this API reads has one value. API Gateway joins repeated headers with commas, and names may
    differ in case: equal values count once, empty ones are dropped. So no value contains a comma. Raises
    RequestRefusedError (400) when the values differ.
    """
    sent = [
        value
        for given, value in (event.get("headers") or {}).items()
        if given.lower() == name and isinstance(value, str)
    ]
    if not sent:
        return None
    values = {part.strip(" \t") for part in ",".join(sent).split(",")} - {""}
    if len(values) > 1:
        raise RequestRefusedError(
            400,
            "conflicting_header",
            f"The header {name} came with several values, separated by commas; it has one",
        )
    return values.pop() if values else ""


def check_idempotency_key(key: str) -> None:
    """Raises RequestRefusedError (400) when the Idempotency-Key is invalid. `header` refuses commas."""
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise RequestRefusedError(
            400, "invalid_idempotency_key", "Idempotency-Key must have 1 to 255 printable ASCII characters"
        )


def request_id(event: Event) -> str:
    return str(event.get("requestContext", {}).get("requestId", ""))


def answer(status: int, body: str | Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **(headers or {})},
        "body": body if isinstance(body, str) else json.dumps(body, separators=(",", ":")),
    }


def refusal(refused: RequestRefusedError) -> Answer:
    body: dict[str, Any] = {"status": "error", "message": refused.message, "code": refused.code}
    if refused.errors:
        body["errors"] = [{"field": error.field, "message": error.message} for error in refused.errors]
    return answer(refused.status, body, refused.headers)


def respond(event: Event, function: Callable[[Event], Answer]) -> Answer:
    """Runs one request, turns its exceptions into HTTP answers and adds `x-request-id`."""
    try:
        result = function(event)
    except RequestRefusedError as refused:
        logger.info("refused", extra={"code": refused.code, "request_id": request_id(event)})
        count("RequestsRefused")
        result = refusal(refused)
    except (StoreError, QueueError) as exc:
        logger.error("dependency down", extra={"reason": str(exc), "request_id": request_id(event)})
        count("RequestsFailed")
        with_key = event.get("routeKey") in _ROUTES_WITH_IDEMPOTENCY_KEY
        repeat = "repeat it with the same Idempotency-Key" if with_key else "repeat it later"
        result = refusal(
            RequestRefusedError(
                503,
                "unavailable",
                f"The service cannot take this request now; {repeat}",
                headers={"retry-after": str(RETRY_AFTER_SECONDS)},
            )
        )
    result["headers"]["x-request-id"] = request_id(event)
    return result
