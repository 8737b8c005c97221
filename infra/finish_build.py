"""Prepares the output of `sam build` for the upload: ``python infra/finish_build.py BUILD_DIR``. With ``--python``
instead it prints the path of a Python of the runtime's version, or an empty line.

`sam build` ships no bytecode and dates its files 1980, so a function would compile every module again at
each cold start. Bytecode that Python does not compare with its source (``unchecked-hash``, PEP 552) helps.
It must be made by the runtime's own minor version, so without a Python 3.13 none is shipped.

Files that no function reads are removed; if this machine can run the artifact, every module of the functions is
then imported from it.

Standard library only: it runs under whatever Python started it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

RUNTIME = (3, 13)  # Runtime: python3.13 in template.yaml
AWS_SERVICES = {"dynamodb", "sqs", "secretsmanager", "sts"}

UNUSED = (
    "bin",  # commands
    "*-stubs",  # types, and what extensions were compiled from
    "types_*.dist-info",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/py.typed",
    "**/__pycache__",  # made anew below
    "*.dist-info/RECORD",  # what pip would remove
    "certifi/tests",
    "google/protobuf/testdata",
    "aws_lambda_powertools/event_handler",  # only its logger and its metrics are used
    "aws_lambda_powertools/utilities/[!_j]*",  # ... which need jmespath_utils
    "pydantic/v1",  # the API of its first version
    "pydantic/mypy.py",  # a plugin for type checking
    "phonenumbers/shortdata/region_*",  # emergency numbers and the like
    "phonenumbers/geodata",  # names of places
    "phonenumbers/geocoder.py",
    "phonenumbers/carrierdata",  # names of carriers
    "phonenumbers/carrier.py",
    "tzdata/zoneinfo/*.*",  # sources and tables of countries; zones' names have no dot
    "tzdata/zoneinfo/leapseconds",
    "tzdata/zoneinfo/**/__init__.py",  # zones are read as files
)

FUNCTIONS = Path(__file__).parents[1] / "functions"
# Imported by functions at their first need.
IMPORTED_LATER = ("phonenumbers", "phonenumbers.tzdata", "tzdata", "zoneinfo")
# The environment that handlers read at import. No request is made at import.
HANDLERS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "CALLS_TABLE": "calls",
    "WORKSPACES_TABLE": "workspaces",
    "NUMBERS_TABLE": "numbers",
    "DIAL_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/1/dial",
    "WEBHOOK_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/1/webhook",
    "WEBHOOK_DEAD_LETTER_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/1/dead",
    "LIVEKIT_SECRET_NAME": "livekit",
    "PUBLIC_API_URL": "https://api.example.com",
    "POWERTOOLS_SERVICE_NAME": "none",
    "POWERTOOLS_METRICS_NAMESPACE": "none",
    "PYDANTIC_DISABLE_PLUGINS": "1",
    # The artifact's bytecode is used, and no other is written beside it.
    "PYTHONDONTWRITEBYTECODE": "1",
}


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
    for pattern in UNUSED:
        for path in [*artifact.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def compile_bytecode(artifact: Path, python: str) -> None:
    """Writes the bytecode of every module, naming its source as it will lie on AWS (/var/task)."""
    mode = ["--invalidation-mode", "unchecked-hash", "-q", "-j", "0", "-s", str(artifact), "-p", "/var/task"]
    subprocess.run([python, "-m", "compileall", *mode, str(artifact)], check=True)


def is_of_this_machine(artifact: Path) -> bool:
    """Whether the artifact is for this machine's processor."""
    return any(artifact.rglob(f"*-{platform.machine()}-linux-gnu.so"))


def import_everything(artifact: Path, python: str) -> None:
    """Imports every module of the functions from the artifact, and nothing from elsewhere.

    Raises CalledProcessError when one does not import.
    """
    modules = [".".join(path.relative_to(FUNCTIONS).with_suffix("").parts) for path in FUNCTIONS.glob("*/*.py")]
    code = f"import importlib; [importlib.import_module(name) for name in {[*sorted(modules), *IMPORTED_LATER]}]"
    # -s and -S: no packages of the machine's own.
    subprocess.run([python, "-sSc", code], check=True, env={**HANDLERS_ENVIRONMENT, "PYTHONPATH": str(artifact)})


def main(build_dir: Path) -> None:
    artifacts = [folder for folder in sorted(build_dir.iterdir()) if (folder / "requirements.txt").is_file()]
    if not artifacts:
        sys.exit(f"no built function in {build_dir}")
    python = find_runtime_python()
    for artifact in artifacts:
        remove_unused(artifact)
        done = "no bytecode"
        if python:
            compile_bytecode(artifact, python)
            done = f"bytecode of {python}"
            if is_of_this_machine(artifact):
                import_everything(artifact, python)
                done += ", every module imported"
        size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
        print(f"{artifact}: {size / 1e6:.1f} MB, {done}")
    if not python:
        print(f"No Python {RUNTIME[0]}.{RUNTIME[1]} found: cold starts will take longer.", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--python":
        print(find_runtime_python() or "")
    else:
        main(Path(sys.argv[1]))
