"""Makes what `sam build` left ready to upload: ``python infra/finish_build.py BUILD_DIR``. With ``--python``
in its place it prints the path of a Python of the runtime's version, or an empty line.

`sam build` ships no bytecode and dates its files 1980, so a function would compile every module again at
each cold start. Bytecode that Python does not compare with its source (``unchecked-hash``, PEP 552) helps.
It must be made by the runtime's own minor version, so without a Python 3.13 none is shipped.

Standard library only: it runs under whatever Python started it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

RUNTIME = (3, 13)  # Runtime: python3.13 in template.yaml
AWS_SERVICES = {"dynamodb", "sqs", "secretsmanager", "sts"}


def runs_as_runtime(python: str) -> bool:
    """Whether ``python`` starts (a pyenv shim may not) and has the runtime's minor version."""
    try:
        answer = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == str(RUNTIME)


def find_runtime_python() -> str | None:
    """A path of a Python of the runtime's minor version: the one running this, on PATH, uv's, or pyenv's."""
    version = ".".join(map(str, RUNTIME))
    candidates = [sys.executable, *filter(None, [shutil.which(f"python{version}")])]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        found = subprocess.run(
            [uv, "python", "find", "--no-python-downloads", version], capture_output=True, text=True
        )
        candidates += found.stdout.split()
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += [str(path) for path in sorted(pyenv.glob(f"versions/{version}*/bin/python"), reverse=True)]
    return next((python for python in candidates if runs_as_runtime(python)), None)


def remove_unused(artifact: Path) -> None:
    """Removes what the runtime never reads; most of it describes other AWS services."""
    for data in (artifact / "botocore" / "data", artifact / "boto3" / "data"):
        for service in data.iterdir():
            if service.is_dir() and service.name not in AWS_SERVICES:
                shutil.rmtree(service)
    unused = [*artifact.glob("*-stubs"), *artifact.glob("types_*.dist-info"), artifact / "bin"]
    for folder in [*unused, *artifact.rglob("__pycache__")]:
        shutil.rmtree(folder, ignore_errors=True)


def compile_bytecode(artifact: Path, python: str) -> None:
    """Writes the bytecode of every module, naming its source as it will lie on AWS (/var/task)."""
    mode = ["--invalidation-mode", "unchecked-hash", "-q", "-j", "0", "-s", str(artifact), "-p", "/var/task"]
    subprocess.run([python, "-m", "compileall", *mode, str(artifact)], check=True)


def main(build_dir: Path) -> None:
    artifacts = [folder for folder in sorted(build_dir.iterdir()) if (folder / "requirements.txt").is_file()]
    if not artifacts:
        sys.exit(f"no built function in {build_dir}")
    python = find_runtime_python()
    for artifact in artifacts:
        remove_unused(artifact)
        if python:
            compile_bytecode(artifact, python)
        size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
        print(f"{artifact}: {size / 1e6:.1f} MB, {'bytecode of ' + python if python else 'no bytecode'}")
    if not python:
        print(f"No Python {RUNTIME[0]}.{RUNTIME[1]} found: cold starts will take longer.", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--python":
        print(find_runtime_python() or "")
    else:
        main(Path(sys.argv[1]))
