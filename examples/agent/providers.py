"""The providers of speech recognition, language model and speech synthesis, from the environment."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

NAMES = ("AGENT_STT", "AGENT_LLM", "AGENT_TTS")


@dataclasses.dataclass(frozen=True)
class Providers:
    """Each is the name of a model of LiveKit Inference (`deepgram/nova-3`) or of a plugin's class
    (`livekit.plugins.openai:LLM`), of which each call gets a new object that reads its settings from the
    environment."""

    stt: str
    llm: str
    tts: str

    def make(self) -> dict[str, Any]:
        """The arguments stt, llm and tts of an AgentSession."""
        return {field.name: _made(getattr(self, field.name)) for field in dataclasses.fields(self)}


def read_providers(environment: Mapping[str, str]) -> Providers | None:
    """The configured providers; None when none is configured. Raises ValueError when only some of NAMES are
    set."""
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
