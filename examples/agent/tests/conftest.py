"""The environment of every test: a LiveKit key, and no provider."""

from __future__ import annotations

import pytest

from tests.fakes import KEY, SECRET


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEKIT_API_KEY", KEY)
    monkeypatch.setenv("LIVEKIT_API_SECRET", SECRET)
    for name in ("LIVEKIT_URL", "AGENT_STT", "AGENT_LLM", "AGENT_TTS", "AGENT_SCRIPT"):
        monkeypatch.delenv(name, raising=False)
