"""Settings of reconcile_calls from its environment variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from shared.durations import Durations


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Names and URLs of the resources, as set in template.yaml."""

    calls_table: str
    workspaces_table: str
    numbers_table: str
    dial_queue_url: str
    webhook_queue_url: str
    livekit_secret_name: str
    durations: Durations

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises KeyError with the name of a missing variable."""
        return cls(
            calls_table=environment["CALLS_TABLE"],
            workspaces_table=environment["WORKSPACES_TABLE"],
            numbers_table=environment["NUMBERS_TABLE"],
            dial_queue_url=environment["DIAL_QUEUE_URL"],
            webhook_queue_url=environment["WEBHOOK_QUEUE_URL"],
            livekit_secret_name=environment["LIVEKIT_SECRET_NAME"],
            durations=Durations.from_environment(environment),
        )
