"""The LiveKit project's URL and keys, from Secrets Manager by name."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import StoreError
from shared.telemetry import count, logger

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient


@dataclasses.dataclass(frozen=True, slots=True)
class LiveKitSecret:
    url: str
    api_key: str
    api_secret: str = dataclasses.field(repr=False)


# After a failed read the next one follows after this share of the cache's time: Secrets Manager may take ten
# seconds to fail, and not every request may wait for that.
RETRY_SHARE = 0.25


class LiveKitSecretCache:
    """The secret, cached for `seconds`, so that a rotation takes effect in time. While it cannot be read, the last
    known one is used, however old: its keys are probably still valid, and without keys no request can be signed or
    verified.
    """

    def __init__(
        self,
        client: SecretsManagerClient,
        name: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._name = name
        self._seconds = seconds
        self._clock = clock
        self._read_at = 0.0
        self._secret: LiveKitSecret | None = None
        # The error of the latest read if it failed, and its time.
        self._failure: StoreError | None = None
        self._failed_at = 0.0

    def get(self) -> LiveKitSecret:
        """Raises StoreError when no secret is cached and it cannot be read or is malformed."""
        if self._is_due():
            try:
                self._secret = self._read()
            except StoreError as exc:
                self._failure, self._failed_at = exc, self._clock()
                logger.error("LiveKit's secret cannot be read", extra={"reason": str(exc)})
                count("LiveKitSecretUnreadable")
            else:
                self._failure, self._read_at = None, self._clock()
        if self._secret is None:
            raise StoreError(str(self._failure))
        return self._secret

    def _is_due(self) -> bool:
        if self._failure is not None:
            return self._clock() - self._failed_at >= self._seconds * RETRY_SHARE
        return self._secret is None or self._clock() - self._read_at >= self._seconds

    def _read(self) -> LiveKitSecret:
        try:
            text = self._client.get_secret_value(SecretId=self._name)["SecretString"]
        except (ClientError, BotoCoreError, KeyError) as exc:
            raise StoreError(f"secret {self._name}: {type(exc).__name__}") from exc
        try:
            return _parsed(text)
        except (ValueError, KeyError, TypeError):
            # Without `from`: the error's text could contain the secret.
            raise StoreError(f"secret {self._name} must be JSON with url, apiKey and apiSecret") from None


def _parsed(text: str) -> LiveKitSecret:
    """Raises ValueError, KeyError or TypeError when the secret is malformed."""
    fields = json.loads(text)
    found = [fields[name] for name in ("url", "apiKey", "apiSecret")]
    if not all(isinstance(field, str) and field.isascii() and field.strip() == field != "" for field in found):
        raise ValueError
    url = urlsplit(found[0])
    if url.scheme not in ("ws", "wss", "http", "https") or not url.hostname:
        raise ValueError
    return LiveKitSecret(*found)
