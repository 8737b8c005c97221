"""One signed POST and its result.

Standard Webhooks (https://www.standardwebhooks.com): id and body are the event's, the same on every attempt and
replay; timestamp and signature are the attempt's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import httpx
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from shared.callback_url import AddressRefusedError
from shared.raw_json import ascii_compact
from shared.telemetry import logger
from webhook_dispatch.transport import LOCATION

ANSWER_BYTES = 8 * 1024
ANSWER_CHARACTERS = 500
LOCATION_CHARACTERS = 500
METADATA_HEADER_BYTES = 4 * 1024
USER_AGENT = "Ringonce-Webhooks/1"

_HTTPCORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Attempted:
    """The result of a POST. status: the HTTP status; None without a response, then `error` gives the reason.
    retry_after: seconds. location: a redirect's target, in printable ASCII."""

    status: int | None = None
    error: str | None = None
    answer: str = ""
    retry_after: float | None = None
    location: str | None = None


class SecretMissingError(ValueError):
    """There is no valid secret to sign with; the message gives the reason."""


def signed_headers(
    webhook_secrets: tuple[str, ...], message_id: str, at: datetime.datetime, body: str, metadata: str | None
) -> dict[str, str]:
    """The headers of one attempt, with a signature for each secret (two during a rotation).

    Raises SecretMissingError without a secret or with an invalid one.
    """
    if not webhook_secrets:
        raise SecretMissingError("the workspace has no webhook secret")
    try:
        signatures = [Webhook(secret).sign(message_id, at, body) for secret in webhook_secrets]
    except (ValueError, EmptyWebhookSecretError) as exc:
        raise SecretMissingError("the workspace's webhook secret is not valid") from exc
    headers = {
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
    if metadata is not None:
        text = ascii_compact(metadata)
        if len(text) <= METADATA_HEADER_BYTES:
            headers["metadata"] = text
    return headers


async def post(
    client: httpx.AsyncClient,
    url: str,
    body: str,
    headers: dict[str, str],
    seconds: float,
    now: Callable[[], datetime.datetime],
    extensions: dict[str, Any] | None = None,
) -> Attempted:
    """Posts once, with a total time limit in seconds. Never raises: an exception becomes the result's `error`.

    The status alone decides. The response's body is kept for people: at most 8 KiB are read, fewer if they do not
    arrive in time.
    """
    heard: Attempted | None = None
    read = bytearray()
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream("POST", url, content=body.encode(), headers=headers, extensions=extensions) as answer,
        ):
            heard = Attempted(
                answer.status_code,
                retry_after=retry_after_seconds(answer.headers.get("retry-after"), now()),
                location=_location(answer),
            )
            async for part in answer.aiter_raw():
                read += part
                if len(read) >= ANSWER_BYTES:
                    break
    except TimeoutError:
        error = "no answer in time"
    except AddressRefusedError as exc:
        error = f"callback_url {exc}"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, *_HTTPCORE_ERRORS) as exc:
        error = _said(exc)
    except Exception as exc:
        # No response may leave a delivery without an outcome: it would be repeated for ever.
        logger.exception("webhook failed in an unforeseen way", extra={"webhook_id": headers.get("webhook-id")})
        error = _said(exc)
    if heard is None:
        return Attempted(error=error)
    text = read[:ANSWER_BYTES].decode("utf-8", "replace")[:ANSWER_CHARACTERS]
    return dataclasses.replace(heard, answer=text)


def retry_after_seconds(value: str | None, now: datetime.datetime) -> float | None:
    """Seconds from RFC 9110's Retry-After (seconds or a date); None when it is absent or invalid."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _location(answer: httpx.Response) -> str | None:
    """A redirect's target as the receiver wrote it; None for any other response. Shown, never followed."""
    given = answer.extensions.get(LOCATION)
    if given is None or not 300 <= answer.status_code < 400:
        return None
    # Characters that a URL may not contain are escaped, so that terminals and pages cannot interpret them.
    text = "".join(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}" for byte in given)
    return text[:LOCATION_CHARACTERS] or None


def _said(exc: Exception) -> str:
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return text.encode("utf-8", "replace").decode()[:ANSWER_CHARACTERS]
