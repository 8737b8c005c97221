"""boto3 clients with the time-outs this project needs.

A client's own retries must fit into its function's time-out: two attempts with at most 2 s to connect and 3 s to
read the response fit everywhere. The pool keeps a connection for every thread that one process runs.

Parameter validation in the client is off: mypy and the services check parameters, and validation takes a tenth of
a request's CPU time.
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
