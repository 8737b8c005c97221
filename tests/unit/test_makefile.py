"""The Makefile names what a machine lacks in one line, and says what it fetches before it fetches it.

It runs in a copy without the sources; `uv` is a script that prints its arguments, so nothing is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ = (
    "Makefile",
    "pyproject.toml",
    "functions/requirements.txt",
    "examples/agent/requirements-test.txt",
    "infra/finish_build.py",
    *(path.name for path in ROOT.glob("requirements-*.txt")),
)
PYTHONS = ("python3", "python3.11", "python3.12", "python3.13", "python3.14")
UV = """#!/bin/sh
echo "uv $*"
echo "UV_SYSTEM_CERTS=$UV_SYSTEM_CERTS"
for last; do :; done
if [ "$1" = venv ]; then mkdir -p "$last"; fi
if [ "$*" != "${*#*--target}" ]; then mkdir -p .local/packages; fi
"""


def copied(folder: Path) -> Path:
    for name in READ:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def make(folder: Path, *targets: str, tools: Path | None = None, **variables: str) -> tuple[int, str]:
    """The exit code of `make` and what it prints. tools: a folder of programs that are found before others."""
    path = os.pathsep.join([*([str(tools)] if tools else []), os.environ["PATH"]])
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "UV_"))}
    done = subprocess.run(
        ["make", *targets],
        cwd=folder,
        env={**kept, "PATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def program(tools: Path, name: str, script: str) -> None:
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(script)
    (tools / name).chmod(0o755)


@pytest.mark.parametrize("target", ["setup", "browser"])
def test_every_fetch_is_announced_with_its_size(tmp_path: Path, target: str) -> None:
    program(tmp_path / "tools", "uv", UV)
    program(tmp_path / "tools", "chromium", "#!/bin/sh\n")
    code, said = make(copied(tmp_path / "checkout"), target, tools=tmp_path / "tools")
    assert code == 0, said
    lines = [line for line in said.splitlines() if line.startswith("fetching ") or "requirements" in line]
    fetches = [place for place, line in enumerate(lines) if line.startswith("uv ")]
    assert len(fetches) >= 2
    assert all(re.fullmatch(r"fetching .+: about \d+ MB on disk", lines[place - 1]) for place in fetches), said


def test_uv_itself_is_announced_too(tmp_path: Path) -> None:
    program(tmp_path / "tools", "uv", "#!/bin/sh\nexit 1\n")
    python = (
        f'#!/bin/sh\ncase "$*" in *version_info*) echo {tmp_path}/tools/python3;; *) echo python $*; ;; esac\n'
    )
    program(tmp_path / "tools", "python3", python)
    _, said = make(copied(tmp_path / "checkout"), "lock", tools=tmp_path / "tools")
    installs = [line for line in said.splitlines() if "pip install" in line or line.startswith("fetching ")]
    assert re.fullmatch(r"fetching uv into .tools: about \d+ MB on disk", installs[0]), said
    assert installs[1].startswith("python -m pip install")


@pytest.mark.parametrize("name", ["two words", "it's", "a#b", "cost$", "a:b", "semi;colon", "a(b)"])
@pytest.mark.parametrize("target", ["help", "stop", "demo"])
def test_a_path_that_make_cannot_take_is_refused_in_one_line(tmp_path: Path, name: str, target: str) -> None:
    code, said = make(copied(tmp_path / name), target)
    assert code != 0
    assert len(said.splitlines()) == 1
    assert "the path of this folder contains" in said


@pytest.mark.parametrize("name", ["plain", "a-b_c.d+e", "ünïcode", "日本"])
def test_any_other_path_is_taken(tmp_path: Path, name: str) -> None:
    code, said = make(copied(tmp_path / name), "help")
    assert code == 0, said
    assert "make demo" in said


@pytest.mark.parametrize("target", ["demo", "run", "stop", "setup", "test", "check"])
@pytest.mark.parametrize("python", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho not here >&2\nexit 127\n"])
def test_without_a_python_that_is_new_enough_one_line_says_so(tmp_path: Path, python: str, target: str) -> None:
    for name in PYTHONS:
        program(tmp_path / "tools", name, python)
    code, said = make(copied(tmp_path / "checkout"), target, tools=tmp_path / "tools")
    assert code != 0
    assert len(said.splitlines()) == 1
    assert "needs Python 3.11 or newer" in said
    assert "uv python install" in said


def test_help_needs_no_python(tmp_path: Path) -> None:
    for name in PYTHONS:
        program(tmp_path / "tools", name, "#!/bin/sh\nexit 1\n")
    code, said = make(copied(tmp_path / "checkout"), tools=tmp_path / "tools")
    assert code == 0, said
    assert "make demo" in said


def test_without_pip_and_uv_both_remedies_are_named(tmp_path: Path) -> None:
    program(tmp_path / "tools", "uv", "#!/bin/sh\nexit 1\n")
    found = f"{tmp_path}/tools/python3"
    python = f'#!/bin/sh\ncase "$*" in *version_info*) echo {found};; *) echo No module >&2; exit 1;; esac\n'
    program(tmp_path / "tools", "python3", python)
    code, said = make(copied(tmp_path / "checkout"), "demo", tools=tmp_path / "tools")
    assert code != 0
    told, made = said.splitlines()
    assert "apt install python3-pip" in told
    assert "astral.sh/uv" in told
    assert made.startswith("make: *** ")


@pytest.mark.parametrize(("given", "shown"), [({}, "1"), ({"UV_SYSTEM_CERTS": "0"}, "0")])
def test_uv_trusts_the_systems_authorities_unless_told_otherwise(
    tmp_path: Path, given: dict[str, str], shown: str
) -> None:
    stores = re.search(r"wildcard ([^)]+)\)", (ROOT / "Makefile").read_text())
    assert stores is not None
    expected = shown if given or any(Path(store).exists() for store in stores[1].split()) else ""
    program(tmp_path / "tools", "uv", UV)
    code, said = make(copied(tmp_path / "checkout"), "lock", tools=tmp_path / "tools", **given)
    assert code == 0, said
    assert set(re.findall(r"UV_SYSTEM_CERTS=(.*)", said)) == {expected}
