"""boto3 clients with the time-outs this project needs.

A client's own retries must fit into its function's time-out: two tries, at most 2 s to connect and 3 s to
be answered, are over in time everywhere. Connections are kept, for as many threads as one process runs.

The clients do not check a request's parameters before they send it: mypy and the services do, and it would be a
tenth of the processor's time that a request takes.
"""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config

CONNECT_SECONDS, READ_SECONDS = 2, 3
CONFIG = Config(
    connect_timeout=CONNECT_SECONDS,
    read_timeout=READ_SECONDS,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=20,
    tcp_keepalive=True,
    parameter_validation=False,
)


def client(service: Any) -> Any:
    return boto3.client(service, config=CONFIG)
