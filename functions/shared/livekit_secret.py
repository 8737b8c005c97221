"""The LiveKit project's URL and keys, from Secrets Manager by name."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import StoreError

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient


@dataclasses.dataclass(frozen=True, slots=True)
class LiveKitSecret:
    url: str
    apiKey: str
    apiSecret: str = dataclasses.field(repr=False)


class LiveKitSecretCache:
    """The secret as read at most `seconds` ago, so that a rotation is seen in time."""

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

    def get(self) -> LiveKitSecret:
        """Raises StoreError when the secret cannot be read, ValueError when it is not what it should be."""
        if self._secret is None or self._clock() - self._read_at >= self._seconds:
            try:
                text = self._client.get_secret_value(SecretId=self._name)["SecretString"]
            except (ClientError, BotoCoreError) as exc:
                raise StoreError(f"secret {self._name}: {type(exc).__name__}") from exc
            try:
                fields = json.loads(text)
                self._secret = LiveKitSecret(fields["url"], fields["apiKey"], fields["apiSecret"])
            except (ValueError, KeyError, TypeError):
                # Without `from`: the text of the error could show the secret.
                raise ValueError(f"secret {self._name} must be JSON with url, apiKey and apiSecret") from None
            self._read_at = self._clock()
        return self._secret
