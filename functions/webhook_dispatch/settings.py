"""What the webhook functions read from their environment."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from webhook_dispatch.address_guard import DEFAULT_PORTS, Policy


def callback_policy(environment: Mapping[str, str]) -> Policy:
    """CALLBACK_PORTS: the operator's list, `443,8443`. ALLOW_LOOPBACK_CALLBACKS: the local stack only.

    The latter counts only where AWS itself is emulated on loopback, so that no deployment can carry it.
    """
    ports = environment.get("CALLBACK_PORTS", "")
    emulated = urlsplit(environment.get("AWS_ENDPOINT_URL", "")).hostname in ("127.0.0.1", "localhost")
    return Policy(
        ports=frozenset(int(port) for port in ports.split(",") if port.strip()) or DEFAULT_PORTS,
        loopback=emulated and environment.get("ALLOW_LOOPBACK_CALLBACKS") == "1",
    )
