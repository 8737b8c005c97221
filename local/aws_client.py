"""Clients of the emulated AWS: its region and its credentials."""

from __future__ import annotations

from typing import Any

REGION = "us-east-1"
# The only credentials that the emulator takes for the account's root; they open nothing else.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def aws_client(service: Any, endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        # An invocation is answered when it ends, and is not to be repeated.
        config=Config(connect_timeout=60, read_timeout=930, retries={"total_max_attempts": 1}),
    )
