"""Phone numbers as people write them, and as E.164 (ITU-T E.164: a plus and at most 15 digits)."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[ .()\-]")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


def e164(text: str) -> str:
    """The number without spaces, dots, dashes and parentheses. Raises ValueError, its message for a client."""
    number = _PUNCTUATION.sub("", text)
    if not _E164.fullmatch(number):
        raise ValueError("must be a phone number in E.164: +, then 7 to 15 digits, the first not 0")
    return number
