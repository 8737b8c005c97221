"""API Gateway's HTTP API (payload format 2.0): what comes in, what goes out.

Source: AWS, "Create AWS Lambda proxy integrations for HTTP APIs".
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import QueueError, RequestRefused, StoreError
from shared.telemetry import count, logger

Event = Mapping[str, Any]
Answer = dict[str, Any]

RETRY_AFTER_SECONDS = 2


def body_bytes(event: Event) -> bytes:
    """The body as sent: API Gateway hands most content types over in base64. Empty when there is none.

    Raises RequestRefused: 400 on base64 that is none, 415 on a content encoding.
    """
    # Its type is not looked at: what `curl -d` sends is called a form.
    header(event, "content-type")
    encoding = header(event, "content-encoding")
    if encoding and encoding.lower() != "identity":
        raise RequestRefused(
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
        raise RequestRefused(400, "invalid_body", "The body is not valid base64") from exc


def header(event: Event, name: str) -> str | None:
    """A request header by its lower-case name, None when there is none.

    Every header that this API reads has one value. One that was sent more than once arrives joined by commas, as
    API Gateway does it, or under names in different case: equal values count once, empty ones not at all. So no
    value holds a comma. Raises RequestRefused (400) when the values are different.
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
        raise RequestRefused(
            400,
            "conflicting_header",
            f"The header {name} came with several values, separated by commas; it has one",
        )
    return values.pop() if values else ""


def check_idempotency_key(key: str) -> None:
    """Raises RequestRefused (400) when this is not what an Idempotency-Key may be. `header` refuses commas."""
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise RequestRefused(
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


def refusal(refused: RequestRefused) -> Answer:
    body: dict[str, Any] = {"status": "error", "message": refused.message, "code": refused.code}
    if refused.errors:
        body["errors"] = [{"field": error.field, "message": error.message} for error in refused.errors]
    return answer(refused.status, body, refused.headers)


def respond(event: Event, function: Callable[[Event], Answer]) -> Answer:
    """Runs one request and turns what it raises into the contract's answers; adds `x-request-id`."""
    try:
        result = function(event)
    except RequestRefused as refused:
        logger.info("refused", extra={"code": refused.code, "request_id": request_id(event)})
        count("RequestsRefused")
        result = refusal(refused)
    except (StoreError, QueueError) as exc:
        logger.error("dependency down", extra={"reason": str(exc), "request_id": request_id(event)})
        count("RequestsFailed")
        result = refusal(
            RequestRefused(
                503,
                "unavailable",
                "The service cannot take this request now; repeat it with the same Idempotency-Key",
                headers={"retry-after": str(RETRY_AFTER_SECONDS)},
            )
        )
    result["headers"]["x-request-id"] = request_id(event)
    return result
