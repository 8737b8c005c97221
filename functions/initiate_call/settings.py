"""Settings of initiate_call from its environment variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from shared.callback_url import Policy, callback_policy
from shared.durations import Durations


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Names and URLs of the resources, as set in template.yaml."""

    calls_table: str
    workspaces_table: str
    numbers_table: str
    dial_queue_url: str
    durations: Durations
    callback_policy: Policy

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises KeyError with the name of a missing variable."""
        return cls(
            calls_table=environment["CALLS_TABLE"],
            workspaces_table=environment["WORKSPACES_TABLE"],
            numbers_table=environment["NUMBERS_TABLE"],
            dial_queue_url=environment["DIAL_QUEUE_URL"],
            durations=Durations.from_environment(environment),
            callback_policy=callback_policy(environment),
        )
