"""LiveKit's signature on its webhooks, checked without importing its whole client (and aiohttp with it).

Source: livekit/protocol webhook/; the Authorization header is a JWT without `Bearer`, signed with the API
secret (HS256), whose claim `sha256` is the base64 SHA-256 of the body as sent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import jwt
from google.protobuf.json_format import Parse, ParseError
from livekit.protocol.webhook import WebhookEvent

from shared.errors import RequestRefused
from shared.livekit_secret import LiveKitSecret

# As LiveKit's own receivers: clocks may differ by a minute.
LEEWAY_SECONDS = 60


def verified_event(body: bytes, token: str | None, secret: LiveKitSecret) -> WebhookEvent:
    """The event, if LiveKit sent it. Raises RequestRefused (401 signature, 400 not an event)."""
    try:
        claims = jwt.decode(
            token or "",
            secret.apiSecret,
            algorithms=["HS256"],
            issuer=secret.apiKey,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss"]},
        )
    except jwt.InvalidTokenError as exc:
        raise RequestRefused(401, "invalid_signature", "The Authorization header is not LiveKit's") from exc
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if not hmac.compare_digest(str(claims.get("sha256", "")).encode(), digest.encode()):
        raise RequestRefused(401, "invalid_signature", "The body is not the one that was signed")
    try:
        return Parse(body, WebhookEvent(), ignore_unknown_fields=True)
    except (ParseError, UnicodeDecodeError) as exc:
        raise RequestRefused(400, "invalid_event", "The body is not a LiveKit webhook event") from exc
