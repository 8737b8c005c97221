"""The cold start of the route for reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUNCTIONS = Path(__file__).parent.parent.parent / "functions"


def test_taking_a_report_imports_neither_livekits_client_nor_aiohttp() -> None:
    """Their import takes longer than everything else that the route does."""
    program = "import sys, calls_api.reports; print({'aiohttp', 'livekit', 'livekit.api'} & sys.modules.keys())"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=FUNCTIONS, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "set()", run.stderr
