"""The Node packages that tests use, at the versions of tests/node/package-lock.json."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "tests" / "node"


def node_project() -> Path:
    """A folder under .local with the content of tests/node and its packages.

    It is made atomically, so that concurrent or killed processes leave it complete or absent.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("NOT RUN: there is no node on this machine; nothing that needs it has been checked")
    wanted = {path.name: path.read_bytes() for path in sorted(PROJECT.iterdir()) if path.is_file()}
    folder = ROOT / ".local" / f"node-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix="node-"))
        for name, content in wanted.items():
            (made / name).write_bytes(content)
        install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        subprocess.run(install, cwd=made, check=True, timeout=600)
        try:
            made.rename(folder)
        except OSError:
            # Another process was faster.
            shutil.rmtree(made)
    return folder
