"""The LiveKit that the stack calls through: a real one named by the environment, else the stand-in."""

from __future__ import annotations

import os
import secrets
import sys

from local.errors import SettingError
from local.processes import Child, Running, child_environment


def real_livekit() -> bool:
    return bool(os.environ.get("LIVEKIT_URL"))


def check_real_livekit() -> None:
    """Raises SettingError when a real LiveKit is named without the other settings that a call through it needs.

    The stand-in's defaults would ring phones from a number that is not the trunk's.
    """
    if not real_livekit():
        return
    needed = ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "SIP_TRUNK_ID", "FROM_NUMBERS")
    missing = [name for name in needed if not os.environ.get(name, "").strip(" ,")]
    if missing:
        raise SettingError(f"LIVEKIT_URL is set, but {' and '.join(missing)} not")
    from_numbers()


def from_numbers() -> tuple[str, ...]:
    """The numbers that calls are made from, in E.164. Raises SettingError."""
    if not real_livekit():
        return ("+15550009999",)
    from shared.phone_number import e164

    try:
        return tuple(map(e164, listed("FROM_NUMBERS")))
    except ValueError as exc:
        raise SettingError(f"FROM_NUMBERS: each {exc}") from exc


def listed(name: str) -> list[str]:
    """The items of a variable of the environment that are separated by commas."""
    return [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]


def livekit_settings(running: Running, webhook_url: str) -> tuple[str, str, str, Child | None]:
    """LiveKit's URL, API key and secret, and the stand-in's process; its URL is "" until it is ready."""
    if real_livekit():
        url = os.environ["LIVEKIT_URL"].replace("wss://", "https://").replace("ws://", "http://")
        return url, os.environ["LIVEKIT_API_KEY"], os.environ["LIVEKIT_API_SECRET"], None
    key, secret = "API" + secrets.token_hex(6), secrets.token_urlsafe(32)
    child = running.start(
        "livekit",
        [
            *(sys.executable, "-m", "local.livekit", "--port", "0"),
            *("--webhook-url", webhook_url, "--time-scale", str(running.time_scale)),
            *("--api-key", key, f"--api-secret={secret}"),
            # A worker's lease lasts longer here (`template_for_emulator`): its empty room must last as long.
            *("--slack", "30"),
        ],
        child_environment(running.state),
    )
    return "", key, secret, child
