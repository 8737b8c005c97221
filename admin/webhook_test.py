"""`admin webhook-test`: posts one signed event to a URL with deliver's address check, transport and signature, and
shows the result."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import os
import secrets
import time
from typing import Any

from admin.target import Target
from admin.terminal import AdminError, Terminal, card
from shared.call import compact, iso, json_object
from shared.callback_url import AddressRefusedError, callback_policy, check_url
from shared.clock import now_ms
from shared.durations import Durations
from webhook_dispatch.attempt import Attempted, SecretMissingError, post, signed_headers
from webhook_dispatch.transport import GuardedTransport, webhook_client


def send(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    # Only the local stack's own receiver may be on loopback.
    policy = dataclasses.replace(callback_policy(os.environ), loopback=target.local)
    try:
        check_url(arguments.url, policy)
    except AddressRefusedError as exc:
        raise AdminError(f"the URL {exc}; no call with it would be accepted") from exc
    message_id = f"evt_test_{secrets.token_hex(12)}"
    body = event_body(message_id, workspace.workspace_id)
    try:
        headers = signed_headers(workspace.webhook_secrets, message_id, _now(), body, None)
    except SecretMissingError as exc:
        raise AdminError(f"{exc}: {target.command(f'webhook-secret rotate {workspace.workspace_id}')}") from exc
    seen: dict[str, Any] = {"address": None, "tls": None, "headers": None}
    attempted, milliseconds = asyncio.run(_post(GuardedTransport(policy), arguments.url, body, headers, seen))
    given = {
        "url": arguments.url,
        "address": seen["address"],
        "tls": seen["tls"],
        "status": attempted.status,
        "error": attempted.error,
        "milliseconds": milliseconds,
        "answerHeaders": seen["headers"],
        "answer": attempted.answer,
        "sentHeaders": headers,
        "sentBody": body,
    }
    terminal.give(given, _told(given))
    if attempted.status is None or not 200 <= attempted.status < 300:
        raise AdminError(f"it did not arrive: {attempted.error or f'the answer was {attempted.status}, not 2xx'}")


def event_body(message_id: str, workspace_id: str) -> str:
    """The body of a test event; it belongs to no call, so its sequence is 0."""
    return json_object(
        {
            "id": compact(message_id),
            "type": compact("webhook.test"),
            "timestamp": compact(iso(now_ms())),
            "sequence": "0",
            "data": compact({"workspaceId": workspace_id}),
            "metadata": "null",
        }
    )


async def _post(
    transport: GuardedTransport, url: str, body: str, headers: dict[str, str], seen: dict[str, Any]
) -> tuple[Attempted, int]:
    durations = Durations()

    async def trace(step: str, told: dict[str, Any]) -> None:
        """httpcore's trace extension: called at each step of the request."""
        result: Any = told.get("return_value")
        match step:
            case "connection.connect_tcp.complete":
                host, port = result.get_extra_info("server_addr")[:2]
                seen["address"] = f"{host} port {port}"
            case "connection.start_tls.complete":
                seen["tls"] = _tls(result.get_extra_info("ssl_object"))
            case "http11.receive_response_headers.complete":
                seen["headers"] = [[name.decode("latin-1"), text.decode("latin-1")] for name, text in result[3]]

    async with webhook_client(transport, durations) as client:
        began = time.perf_counter()
        attempted = await post(client, url, body, headers, durations.webhook_attempt, _now, {"trace": trace})
        return attempted, round((time.perf_counter() - began) * 1000)


def _tls(connection: Any) -> dict[str, Any]:
    certificate = connection.getpeercert()
    return {
        "version": connection.version(),
        "names": [name for _, name in certificate.get("subjectAltName", ())],
        "validUntil": certificate.get("notAfter"),
    }


def _told(given: dict[str, Any]) -> str:
    tls, certificate = given["tls"], "none"
    if tls:
        names = ", ".join(tls["names"])
        certificate = f"{tls['version']}, certificate for {names}, until {tls['validUntil']}"
    facts = [
        ("URL", given["url"]),
        ("Address", given["address"] or "no connection was made"),
        ("TLS", certificate),
        *((f"Sent {name}", text) for name, text in given["sentHeaders"].items() if name.startswith("webhook-")),
        ("Sent", given["sentBody"]),
        ("Status", str(given["status"]) if given["status"] is not None else f"none: {given['error']}"),
        ("Milliseconds", str(given["milliseconds"])),
        *((f"Answer {name.lower()}", text) for name, text in given["answerHeaders"] or ()),
        ("Answer", given["answer"]),
    ]
    # A receiver's answer may contain control characters, which must not reach the terminal.
    return card([(_printable(name), _printable(text)) for name, text in facts])


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
