"""The agent's script: a text whose `{names}` are replaced by the call's dynamic variables."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PLACEHOLDER = re.compile(r"[ \t]?\{([^{}\n]{1,128})\}")
_START = re.compile(r"^[\s,;:.!?]+")


@dataclasses.dataclass(frozen=True)
class Script:
    """instructions: the model's prompt. greeting: the first words. voicemail: the message for a machine; "":
    none."""

    instructions: str
    greeting: str
    voicemail: str = ""


def load(path: Path) -> Script:
    """Reads a script from a TOML file. Raises TypeError when a field is unknown or missing."""
    return Script(**tomllib.loads(path.read_text(encoding="utf-8")))


def fill(script: Script, variables: Mapping[str, Any]) -> tuple[Script, set[str]]:
    """The script for one call, and the names in it that the call has no variable for.

    A missing name is left out with the blank before it, so that "{firstName}" is never spoken. A value is inserted
    literally: braces in it are not replaced.
    """
    missing: set[str] = set()

    def value(match: re.Match[str]) -> str:
        found = variables.get(match[1].strip())
        if found is None:
            missing.add(match[1].strip())
            return ""
        blank = match[0][: match[0].index("{")]
        return blank + (("yes" if found else "no") if isinstance(found, bool) else str(found))

    def filled(text: str) -> str:
        known = len(missing)
        said = _PLACEHOLDER.sub(value, text)
        # "{firstName}, hello" without a name begins with a comma.
        return _START.sub("", said) if len(missing) > known else said

    return Script(filled(script.instructions), filled(script.greeting), filled(script.voicemail)), missing
