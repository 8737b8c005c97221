"""A body that was signed with the LiveKit key, and everything that only looks like one."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

import jwt
import pytest

from shared.errors import RequestRefusedError
from shared.livekit.secret import LiveKitSecret
from shared.livekit.signature import LEEWAY_SECONDS, signed_claims

SECRET = LiveKitSecret("wss://you.livekit.cloud", "API1", "s" * 48)
BODY = b'{"event":"room_finished"}'
DIGEST = base64.b64encode(hashlib.sha256(BODY).digest()).decode()


def token(key: str = SECRET.api_secret, algorithm: str = "HS256", **changes: Any) -> str:
    """A token of the body's; a claim that is None is left out."""
    claims = {"iss": SECRET.api_key, "exp": int(time.time()) + 300, "sha256": DIGEST} | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm)


def refusal(body: bytes, given: str | None) -> str:
    with pytest.raises(RequestRefusedError) as refused:
        signed_claims(body, given, SECRET)
    assert (refused.value.status, refused.value.code) == (401, "invalid_signature")
    return refused.value.message


def test_the_claims_of_a_signed_body_are_given_back() -> None:
    claims = signed_claims(BODY, token(video={"room": "r"}), SECRET)
    assert (claims["iss"], claims["video"]) == ("API1", {"room": "r"})


def test_clocks_may_differ_by_a_minute() -> None:
    # Half a minute to each side: how slow the machine is must not decide.
    now = int(time.time())
    soon: list[dict[str, Any]] = [{"exp": now - LEEWAY_SECONDS + 30}, {"nbf": now + LEEWAY_SECONDS - 30}]
    for changes in soon:
        assert signed_claims(BODY, token(**changes), SECRET)["sha256"] == DIGEST
    late: list[dict[str, Any]] = [{"exp": now - LEEWAY_SECONDS - 1}, {"nbf": now + LEEWAY_SECONDS + 3600}]
    for changes in late:
        assert "no valid token" in refusal(BODY, token(**changes))


@pytest.mark.parametrize("given", [None, "", "x", "a.b.c", "caf\u00e9", "\udc80"])
def test_a_text_that_is_no_token_is_refused(given: str | None) -> None:
    assert "no valid token" in refusal(BODY, given)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "t" * 48},
        {"algorithm": "HS384"},
        {"key": "", "algorithm": "none"},
        {"iss": "API2"},
        {"iss": None},
        {"exp": None},
    ],
    ids=str,
)
def test_a_token_that_is_not_this_keys_is_refused(changes: dict[str, Any]) -> None:
    assert "no valid token" in refusal(BODY, token(**changes))


@pytest.mark.parametrize("digest", [None, "", 7, [DIGEST], DIGEST.lower(), DIGEST[:-1], DIGEST + "=", "\ud800"])
def test_a_token_of_another_body_is_refused(digest: Any) -> None:
    assert "not the one that was signed" in refusal(BODY, token(sha256=digest))


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY[:-1], BODY.upper()])
def test_a_body_that_was_changed_is_refused(body: bytes) -> None:
    assert "not the one that was signed" in refusal(body, token())
