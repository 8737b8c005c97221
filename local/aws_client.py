"""Clients of the emulated AWS, for the stack's own processes and for `admin --local`.

The operator's command imports this module on any system: it needs no POSIX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.config import Config

REGION = "us-east-1"
# The only credentials that the emulator accepts for the account's root; they are valid nowhere else.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def aws_client(service: Any, endpoint: str, config: Config | None = None) -> Any:
    """A boto3 client of the emulator at `endpoint`. Without a `config` its requests may take as long as the
    longest invocation and are not retried."""
    import boto3
    from botocore.config import Config

    patient = Config(connect_timeout=60, read_timeout=930, retries={"total_max_attempts": 1})
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=config or patient,
    )
