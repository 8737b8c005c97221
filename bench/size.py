"""How large the artifact is that `sam deploy` uploads: one for all functions."""

from __future__ import annotations

import tempfile
import zipfile

from bench.artifact import artifact_folder
from bench.table import Figure, report

ZIPPED_MB = 12.0


def main() -> None:
    artifact = artifact_folder()
    if artifact is None:
        return
    files = [path for path in sorted(artifact.rglob("*")) if path.is_file()]
    with tempfile.TemporaryFile() as target:
        # As the SAM CLI packs it.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(artifact))
        zipped = target.tell()
    unzipped = sum(path.stat().st_size for path in files)
    report(
        "artifact",
        [Figure("zipped", zipped / 1e6, "MB", ZIPPED_MB), Figure("unzipped", unzipped / 1e6, "MB")],
    )
