"""LiveKit's wire protocol: Twirp errors, SIP codes as Twirp errors, and access tokens.

Sources: twitchtv/twirp `ServerHTTPStatusFromErrorCode`; livekit/protocol `livekit/sip.go`
(`sipCodeToGRPCCode`, `SIPStatus.TwirpErrorMeta`), `auth/verifier.go`; livekit/sip `pkg/sip/errors.go`;
livekit/livekit `pkg/service/auth.go`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jwt
from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from livekit.protocol import sip

HTTP_STATUS = {
    "canceled": 408, "unknown": 500, "invalid_argument": 400, "malformed": 400, "deadline_exceeded": 408,
    "not_found": 404, "bad_route": 404, "already_exists": 409, "permission_denied": 403,
    "unauthenticated": 401, "resource_exhausted": 429, "failed_precondition": 412, "aborted": 409,
    "out_of_range": 400, "unimplemented": 501, "internal": 500, "unavailable": 503, "data_loss": 500,
}  # pairs of a table  # fmt: skip
GRPC_CODE = {
    "canceled": 1, "invalid_argument": 3, "deadline_exceeded": 4, "not_found": 5, "permission_denied": 7,
    "resource_exhausted": 8, "failed_precondition": 9, "aborted": 10, "out_of_range": 11,
    "unauthenticated": 16,
}  # pairs of a table  # fmt: skip
# SIP answers by Twirp code; any other 5xx is failed_precondition, any other code invalid_argument. 401 and 407
# never occur: the SIP service answers them itself, and fails by itself without credentials that the carrier
# accepts.
SIP_CODES = {
    "resource_exhausted": {440, 480, 486, 600},
    "permission_denied": {402, 403, 433, 470, 603, 607, 608},
    "unauthenticated": {428, 436, 437, 438, 494},
    "not_found": {301, 302, 404, 410, 481, 604},
    "invalid_argument": {505, 513},
    "failed_precondition": {409, 412, 482, 483},
    "deadline_exceeded": {408, 504},
    "aborted": {487, 491},
    "out_of_range": {416},
}
SIP_REASONS = {
    404: "Not Found", 500: "Server Internal Error", 504: "Server Time-out", 600: "Busy Everywhere", 603: "Decline",
}  # pairs of a table  # fmt: skip
CLOCK_LEEWAY_SECONDS = 60
# The messages of golang-jwt.
GO_JWT_ERRORS: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "token signature is invalid: signature is invalid",
    jwt.ExpiredSignatureError: "token has invalid claims: token is expired",
}
# The releases of LiveKit that the stand-in imitates: they differ in the wording of errors.
Version = Literal["1.13.5", "1.13.11"]
# The prefix that 1.13.5 adds to errors of its internal RPC.
RPC_PREFIX = "twirp error unknown: "


@dataclass(frozen=True)
class Failure:
    """A Twirp error: its code, message and metadata (left out of the JSON when empty). `by_rpc`: it came from
    LiveKit's internal RPC."""

    code: str
    message: str
    meta: Mapping[str, str] = field(default_factory=dict)
    by_rpc: bool = False

    def response(self, version: Version) -> web.Response:
        prefix = RPC_PREFIX if self.by_rpc and version == "1.13.5" else ""
        body: dict[str, Any] = {"code": self.code, "msg": prefix + self.message}
        if self.meta:
            body["meta"] = dict(self.meta)
        return json_response(body, HTTP_STATUS[self.code])


def rpc_failure(code: str, message: str) -> Failure:
    return Failure(code, message, by_rpc=True)


def json_response(body: Any, status: int = 200) -> web.Response:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return web.Response(body=text.encode(), status=status, content_type="application/json")


class TwirpError(Exception):
    """A request is answered with `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class BadTokenError(Exception):
    """The access token is malformed, forged or expired: HTTP 401 with the reason as plain text."""


def twirp_error(code: str, message: str) -> TwirpError:
    return TwirpError(Failure(code, message))


def rpc_error(code: str, message: str) -> TwirpError:
    return TwirpError(rpc_failure(code, message))


def sip_reason(status: int) -> str:
    """The usual reason phrase of a SIP status code, or '' when it has none."""
    if status not in sip.SIPStatusCode.values():
        return ""
    name = sip.SIPStatusCode.Name(status)
    return (
        SIP_REASONS.get(status)
        or name.removeprefix("SIP_STATUS_").removeprefix("GLOBAL_").replace("_", " ").title()
    )


def sip_failure(status: int, reason: str) -> Failure:
    """CreateSIPParticipant's error when the carrier answers the INVITE with `status` (300-699)."""
    default = "failed_precondition" if 500 <= status < 600 else "invalid_argument"
    code = next((code for code, statuses in SIP_CODES.items() if status in statuses), default)
    origin = (
        "INVITE failed: " if status in {400, 404, 480, 486, 488} else "unexpected status from INVITE response: "
    )
    message = f"{origin}sip status: {status}" + (f": {reason}" if reason else "")
    detail = AnyMessage()
    detail.Pack(sip.SIPStatus(code=status, status=reason))  # type: ignore[arg-type]
    # google.rpc.Status {code 1, message 2, details 3}: its Python classes are not a dependency.
    details = (
        bytes((0x08, GRPC_CODE[code]))
        + _length_delimited(2, message.encode())
        + _length_delimited(3, detail.SerializeToString())
    )
    return Failure(
        code,
        message,
        {
            "sip_status_code": str(status),
            "sip_status": reason or str(status),
            "error_details": base64.b64encode(details).decode(),
        },
        by_rpc=True,
    )


def _length_delimited(number: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))
    return bytes((number << 3 | 2,)) + length + payload


def read_token(header: str | None, api_key: str, api_secret: str, version: Version) -> dict[str, Any]:
    """Checks an Authorization header and returns the token's claims; no claims when there is no header.

    Raises BadTokenError."""
    if header is None:
        return {}
    if not header.startswith("Bearer "):
        raise BadTokenError("invalid authorization header. Must start with Bearer ")
    token = header.removeprefix("Bearer ")
    try:
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
        if issuer != api_key:
            raise BadTokenError(f"invalid API key: {issuer}" if version == "1.13.5" else "invalid API key")
        claims: dict[str, Any] = jwt.decode(
            token,
            api_secret,
            algorithms=["HS256"],
            leeway=CLOCK_LEEWAY_SECONDS,
            options={"require": ["exp"]},
        )
    except jwt.InvalidTokenError as error:
        told = GO_JWT_ERRORS.get(type(error), str(error))
        raise BadTokenError(
            f"invalid token: {token}, error: {told}"
            if version == "1.13.5"
            else f"invalid authorization token: {told}"
        ) from error
    return claims


def require_grant(claims: Mapping[str, Any], grant: str, room: str) -> None:
    """Raises TwirpError unless the claims contain `grant` ("video.roomAdmin": for this room)."""
    section, _, name = grant.partition(".")
    grants = claims.get(section) or {}
    if not grants.get(name) or (name == "roomAdmin" and grants.get("room") != room):
        raise twirp_error("unauthenticated", "permissions denied")
