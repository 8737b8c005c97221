"""Who hears, thinks and speaks: from the environment."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

NAMES = ("AGENT_STT", "AGENT_LLM", "AGENT_TTS")


@dataclasses.dataclass(frozen=True)
class Providers:
    """Each the name of a model of LiveKit Inference (`deepgram/nova-3`), or of a plugin's class
    (`livekit.plugins.openai:LLM`), which is made anew for each call with what it finds in the environment."""

    stt: str
    llm: str
    tts: str

    def make(self) -> dict[str, Any]:
        """What an AgentSession takes as stt, llm and tts."""
        return {field.name: _made(getattr(self, field.name)) for field in dataclasses.fields(self)}


def read_providers(environment: Mapping[str, str]) -> Providers | None:
    """None when none is configured. Raises ValueError when only some are: an agent cannot do with half of them."""
    given = [environment.get(name, "") for name in NAMES]
    if not any(given):
        return None
    if not all(given):
        lacking = ", ".join(name for name, value in zip(NAMES, given, strict=True) if not value)
        raise ValueError(f"all of {', '.join(NAMES)} are needed, or none; not set: {lacking}")
    return Providers(*given)


def _made(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon or "/" in name:
        return name
    return getattr(importlib.import_module(module), attribute)()
