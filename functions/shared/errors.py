"""The project's own errors. Errors of AWS and LiveKit are translated into these where their clients are called.

RingonceError
├── RequestRefusedError      a client's request that cannot be accepted: status, code, field errors
├── TooManyScopesError       a number has as many suppressions as it may have
├── StoreError               a DynamoDB request failed
│   └── StoreUnclearError    ... and may have been executed (time-out, connection cut, 5xx)
├── QueueError               SQS did not confirm a message
└── LiveKitError             LiveKit answered with an error: Twirp code, HTTP status, SIP code
    ├── LiveKitUnreachableError             the request was never sent
    │   └── LiveKitSecretUnreadableError    ... as there are no keys to sign it with
    └── LiveKitUnclearError                 it was sent, its outcome is unknown
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


class RingonceError(Exception):
    """Base class of the project's errors."""


@dataclasses.dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field of a request."""

    field: str
    message: str
    code: str = "invalid_request"


class RequestRefusedError(RingonceError):
    """Becomes the HTTP answer `{"status":"error","message","code","errors"}`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def refusal(status: int, *errors: FieldError) -> RequestRefusedError:
    """The answer to a request with these errors; its code is theirs if they have the same."""
    codes = {error.code for error in errors}
    message = "; ".join(f"{error.field} {error.message}" for error in errors)
    return RequestRefusedError(status, codes.pop() if len(codes) == 1 else "invalid_request", message, errors)


def workspace_not_allowed() -> RequestRefusedError:
    return RequestRefusedError(403, "workspace_not_allowed", "This workspace is unknown or disabled")


class TooManyScopesError(RingonceError):
    """A suppression would be of one scope more than a number may have."""


class StoreError(RingonceError):
    """DynamoDB refused or could not be reached; nothing was written."""


class StoreUnclearError(StoreError):
    """The outcome of a write is unknown: read before deciding."""


class QueueError(RingonceError):
    """SQS did not confirm a message. It may have been accepted; every message may be delivered twice."""


class LiveKitError(RingonceError):
    """LiveKit answered with an error.

    code: the Twirp code, `unknown` when the answer was not Twirp JSON. http_status: its status.
    sip_status_code: the carrier's, when there was one.
    """

    def __init__(self, code: str, http_status: int, sip_status_code: int | None = None) -> None:
        super().__init__(f"{code} (HTTP {http_status}, SIP {sip_status_code})")
        self.code = code
        self.http_status = http_status
        self.sip_status_code = sip_status_code


class LiveKitUnreachableError(LiveKitError):
    """No connection: the request was never sent."""

    def __init__(self) -> None:
        super().__init__("unreachable", 0)


class LiveKitSecretUnreadableError(LiveKitUnreachableError):
    """The project's URL and keys cannot be read: no request could be made."""


class LiveKitUnclearError(LiveKitError):
    """Time-out, connection cut after sending, or a proxy's answer instead of LiveKit's."""

    def __init__(self, http_status: int = 0) -> None:
        super().__init__("unclear", http_status)
