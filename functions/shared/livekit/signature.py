"""Verifies bodies signed with the LiveKit key (LiveKit's webhooks, agents' reports) without importing LiveKit's
client and with it aiohttp.

Source: livekit/protocol auth/ and webhook/; the Authorization header carries a JWT (HS256) whose issuer is the
API key and whose claim `sha256` is the base64 SHA-256 of the body as sent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import jwt

from shared.errors import RequestRefusedError
from shared.livekit.secret import LiveKitSecret

# As in LiveKit's own receivers: clocks may differ by a minute.
LEEWAY_SECONDS = 60


def signed_claims(body: bytes, token: str | None, secret: LiveKitSecret) -> dict[str, Any]:
    """The token's claims. Raises RequestRefusedError (401) unless this body was signed with the secret's key."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token or "",
            secret.api_secret,
            algorithms=["HS256"],
            issuer=secret.api_key,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss"]},
        )
    except (jwt.InvalidTokenError, UnicodeEncodeError) as exc:
        raise RequestRefusedError(
            401, "invalid_signature", "The Authorization header holds no valid token of this LiveKit key"
        ) from exc
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if not hmac.compare_digest(str(claims.get("sha256", "")).encode(errors="surrogatepass"), digest.encode()):
        raise RequestRefusedError(401, "invalid_signature", "The body is not the one that was signed")
    return claims
