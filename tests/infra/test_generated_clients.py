"""Clients that are generated from infra/openapi.yaml: each generator has nothing to warn of, what it makes passes
the strictest check of its language, and with it a call is placed and read.

The server adds a field to every answer, a call waits for a reason and the event is of a type and has a reason that
the page does not know: clients that were generated before any of them was added go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.openapi_page import PAGE, ROOT, examples, operations
from tests.system import API_KEY, Context, System, http_event

FILE = ROOT / "infra" / "openapi.yaml"
PROGRAMS = ROOT / "tests" / "generated_clients"
GENERATORS = ROOT / ".venv-generators" / "bin"
SECONDS = 300
# No telemetry, no look for newer versions.
ENVIRONMENT = os.environ | {
    "REDOCLY_TELEMETRY": "off",
    "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
    "NO_COLOR": "1",
}
VARIABLES = {"firstName": "Ada", "openInvoices": 2, "balance": 129.5, "isMember": True, "nickname": None}
SEEN = {
    "status": "queued",
    "waiting": ["permit", None],
    "events": ["call.queued"],
    "order": "order-7",
    "variables": VARIABLES,
    "listed": [True],
    "missing": "call_not_found",
    "refused": ["to"],
    "event": ["call.moved", 3, "moved", None],
    "report": {"text": "Ada will come.", "kept": True},
}


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What the command prints on both channels. It succeeds."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def generator(name: str) -> Path:
    program = GENERATORS / name
    assert program.exists(), f"{program} is made by `make setup`"
    return program


def event() -> str:
    """A webhook of a later version."""
    webhook = examples("/webhooks/call.ended/post/requestBody/content/application~1json")["busy"]
    data = webhook["data"] | {"endReason": "moved", "movedTo": "+12025550199"}
    return json.dumps(webhook | {"type": "call.moved", "data": data, "region": "eu"})


@pytest.fixture(scope="module")
def api(whole_system: System) -> Iterator[str]:
    """The URL of the API over HTTP; every answer has a field more than today's."""
    whole_system.reset()
    patterns = {
        route: re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.partition(" ")[2]))
        for route in operations()
    }

    class Api(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            [(route, match)] = [
                (route, match)
                for route, pattern in patterns.items()
                if route.startswith(f"{self.command} ") and (match := pattern.fullmatch(url.path))
            ]
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            sent = http_event(
                route, body, dict(self.headers), path=match.groupdict(), query=dict(parse_qsl(url.query))
            )
            function = "initiate_call" if route == "POST /v1/api/call" else "calls_api"
            told: dict[str, Any] = whole_system.handlers[function](sent, Context(20))
            given = json.loads(told["body"]) | {"another": {"field": 1}}
            if "waitingFor" in given:
                given["waitingFor"] = "permit"
            text = json.dumps(given).encode()
            self.send_response(told["statusCode"])
            for name, value in (told["headers"] | {"content-length": str(len(text))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def folder_in(node_modules: Path) -> Iterator[Path]:
    """Node looks for packages from the program's own folder upwards."""
    with tempfile.TemporaryDirectory(dir=node_modules) as folder:
        yield Path(folder)


def test_redocly_has_nothing_to_warn_of(node_modules: Path) -> None:
    told = run("node_modules/.bin/redocly", "lint", FILE, "--format=json", folder=node_modules)
    report = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert report["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}, report["problems"]


def test_a_client_in_typescript(node_modules: Path, api: str) -> None:
    binaries = node_modules / "node_modules" / ".bin"
    with folder_in(node_modules) as folder:
        told = run(binaries / "openapi-typescript", FILE, "-o", "api.ts", folder=folder)
        assert re.fullmatch(r"✨ openapi-typescript [0-9.]+\n🚀 \S+ → api\.ts \[\S+\]\n", told), told
        for name in ("client.ts", "tsconfig.json"):
            shutil.copy(PROGRAMS / name, folder)
        (folder / "package.json").write_text('{"type": "module"}')
        assert run(binaries / "tsc", folder=folder) == ""
        said = run("node", "client.js", folder=folder, API_URL=api, API_KEY=API_KEY, EVENT=event())
    assert json.loads(said) == SEEN


def test_clients_in_python(tmp_path: Path, api: str) -> None:
    # As generated: the ruff that it would run on its files brings errors of types into them.
    (tmp_path / "configuration.yaml").write_text("post_hooks: []\n")
    told = run(
        *(generator("openapi-python-client"), "generate", "--path", FILE, "--config", "configuration.yaml"),
        *("--meta", "none", "--output-path", "ringonce_client", "--fail-on-warning"),
        folder=tmp_path,
    )
    assert told == "Generating ringonce_client\n"
    told = run(
        generator("datamodel-codegen"),
        *("--input", FILE, "--input-file-type", "openapi", "--output", "models.py"),
        *("--output-model-type", "pydantic_v2.BaseModel", "--use-annotated", "--formatters", "builtin"),
        folder=tmp_path,
    )
    assert told == ""
    # Every model has its name from the page: no Call1, no CallMetadataType0.
    made = re.findall(r"^class (\w+)\(", (tmp_path / "models.py").read_text(), re.MULTILINE)
    assert sorted(made) == sorted(PAGE["components"]["schemas"])
    listed = re.findall(
        r'^    "(\w+)",$', (tmp_path / "ringonce_client/models/__init__.py").read_text(), re.MULTILINE
    )
    assert listed
    assert set(listed) <= set(made)
    for name in ("client.py", "with_models.py"):
        shutil.copy(PROGRAMS / name, tmp_path)
    checked = ("-p", "ringonce_client", "-m", "models", "-m", "client", "-m", "with_models")
    run(
        *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", generator("python")),
        *("--cache-dir", ROOT / ".local" / "mypy-generated-clients", *checked),
        folder=tmp_path,
    )
    for name in ("client.py", "with_models.py"):
        program = (generator("python"), "-W", "error", name)
        said = run(*program, folder=tmp_path, API_URL=api, API_KEY=API_KEY, EVENT=event())
        assert json.loads(said) == SEEN, name
