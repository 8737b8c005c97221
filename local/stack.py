"""The whole system in processes of this user: `python -m local.stack`, ended by Ctrl-C or
`python -m local.stack stop`.

An emulated AWS on which template.yaml is deployed, the API's plain address in front of it, a LiveKit stand-in,
a webhook receiver and the console, a page that shows all of it at work. When it is ready, it prints its addresses
and keys on stderr, with a `curl` command that places a call. Programs read `stack.json` in the state folder, or
the same JSON in the line `READY {json}` on stdout, which is left out when stdout is a terminal: apiUrl,
consoleUrl, workspaceId, apiKey, webhookSecret, liveKitUrl, liveKitApiKey, liveKitApiSecret, liveKitStandIn
(whether it is one), receiverUrl, awsEndpointUrl, timeScale, logs and deaths (folders), resources {logical id:
physical id; a queue's is its URL}, pids.

Environment:
    PORT                the API's port; any free one without it
    TIME_SCALE          factor on every duration of the system, 0.05 without it; answers have 4 s at least
    RINGONCE_LOCAL_DIR  the state folder, .local without it: stacks with different ones run side by side
    LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET, SIP_TRUNK_ID, FROM_NUMBERS
                        a real LiveKit in place of the stand-in, its outbound trunk and the trunk's numbers
                        ("+15550100,+15550101"); time then runs as it does (TIME_SCALE 1)
    AGENT_NAME, CALLING_CODES
                        with those: the agent, `outbound-caller` without it, and the calling codes that may be
                        called ("+1,+44"), +1 without it

Every server binds 127.0.0.1. However this process ends, the others end too (`local/process_hooks`).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from local.aws_client import REGION, aws_client
from local.command_line import CommandLine, port, positive
from local.demo_workspace import write_workspace
from local.deployment import deploy, function_environments, zipped
from local.emulated_aws import answers, start_emulator
from local.errors import SettingError, StackError
from local.lambda_triggers import poll_stream, run_schedule
from local.livekit_settings import check_real_livekit, livekit_settings, real_livekit
from local.paths import AWS_PYTHON, FUNCTIONS, PACKAGES, ROOT
from local.ports import reserved_port
from local.processes import ANSWER_SECONDS, Child, Running, child_environment, ready_line, wait_for
from local.signals import StoppedError, pause, stop_on_signals
from local.stack_lock import locked, stop
from local.state_folder import clear, state_folder, temporary_folder, write_info
from local.warm_up import warm_up


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check_packages() -> None:
    """Raises StackError unless the environments of `make setup` exist and are up to date."""
    installed = PACKAGES / "installed-requirements.txt"
    if not AWS_PYTHON.exists() or not installed.exists():
        raise StackError("run `make setup` first")
    if installed.read_bytes() != (FUNCTIONS / "requirements.txt").read_bytes():
        raise StackError("functions/requirements.txt has changed: run `make setup`")


def time_scale() -> float:
    """The factor that TIME_SCALE names. Raises SettingError."""
    try:
        return positive(os.environ.get("TIME_SCALE") or "0.05")
    except argparse.ArgumentTypeError as exc:
        raise SettingError(f"TIME_SCALE {exc}") from exc


@contextlib.contextmanager
def stack(state: Path, api_port: int = 0, progress: Callable[[str], None] = say) -> Iterator[Running]:
    """A running stack, which ends with the context.

    progress: called with the name of each step. Raises StackError when a part does not start, StoppedError when a
    signal arrives before it is ready.
    """
    check_packages()
    # The workspace is written with this checkout's code, also when .venv was installed from another checkout.
    sys.path.insert(0, str(FUNCTIONS))
    check_real_livekit()
    scale = 1.0 if real_livekit() else time_scale()
    with locked(state) as lock:
        running = Running(state, scale, lock)
        clear(state)
        shutil.rmtree(state / "logs", ignore_errors=True)
        (state / "logs").mkdir()
        shutil.rmtree(state / "deaths", ignore_errors=True)
        (state / "deaths").mkdir()
        temporary_folder(state).mkdir()
        try:
            _start(running, api_port, progress)
            yield running
        finally:
            running.stop()
            clear(state)


def _start(running: Running, wanted_port: int, progress: Callable[[str], None]) -> None:
    with reserved_port(wanted_port) as api_port, reserved_port() as aws_port:
        api_url, endpoint = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{aws_port}"
        progress("starting the emulated AWS, LiveKit and the webhook receiver")
        start_emulator(running, aws_port)
        livekit_url, livekit_key, livekit_secret, livekit = livekit_settings(
            running, f"{api_url}/v1/livekit/events"
        )
        webhook_secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        receiver = running.start(
            "receiver",
            [sys.executable, "-m", "local.receiver", "--port", "0", "--secret", webhook_secret],
            child_environment(running.state),
        )
        pause(0)

        progress("translating template.yaml")
        os.environ.setdefault("AWS_DEFAULT_REGION", REGION)
        from local import sam_local, template_for_emulator

        code_uri = "s3://ringonce-local-code/functions.zip"
        translated = template_for_emulator.translate(ROOT / "template.yaml", code_uri)
        names = [n for n, r in translated["Resources"].items() if r["Type"] == "AWS::Lambda::Function"]
        adapted = template_for_emulator.adapt(
            translated, function_environments(running, api_url, names), running.time_scale
        )
        wait_for(lambda: answers(f"{endpoint}/_ministack/health"), "the emulated AWS", running)
        if livekit:
            livekit_url = wait_for(lambda: ready_line(livekit), "the LiveKit stand-in", running)
        receiver_url = wait_for(lambda: ready_line(receiver), "the webhook receiver", running)

        progress("deploying template.yaml")
        resources = deploy(endpoint, adapted, zipped(FUNCTIONS), code_uri)
        pause(0)
        aws_client("secretsmanager", endpoint).create_secret(
            Name="ringonce/livekit",
            SecretString=json.dumps({"url": livekit_url, "apiKey": livekit_key, "apiSecret": livekit_secret}),
        )
        target = f"{endpoint}/_aws/execute-api/{resources['HttpApi']}/$default"
        api_gateway = running.start(
            "api_gateway",
            [
                *(sys.executable, "-m", "local.api_gateway", "--port", str(api_port), "--target", target),
                *("--timeout", str(ANSWER_SECONDS)),
            ],
            child_environment(running.state),
        )
        wait_for(lambda: ready_line(api_gateway), "the API", running)
    running.info = {
        "apiUrl": api_url,
        "workspaceId": "demo",
        "apiKey": "rk_" + secrets.token_urlsafe(24),
        "webhookSecret": webhook_secret,
        "liveKitUrl": livekit_url,
        "liveKitApiKey": livekit_key,
        "liveKitApiSecret": livekit_secret,
        "liveKitStandIn": livekit is not None,
        "receiverUrl": receiver_url,
        "awsEndpointUrl": endpoint,
        "timeScale": running.time_scale,
        "logs": str(running.state / "logs"),
        "deaths": str(running.state / "deaths"),
        "resources": resources,
    }
    write_workspace(running)
    console = start_console(running)
    sam_local.serve_containers(running, adapted.functions)
    progress("starting the functions")
    warm_up(running, adapted)
    running.info["consoleUrl"] = wait_for(lambda: ready_line(console), "the console", running)
    running.info["pids"] = {"stack": os.getpid()} | {c.name: c.process.pid for c in running.children.values()}
    for mapping in adapted.stream_mappings:
        running.in_background(poll_stream, running, mapping)
    # One run reads all shards here: concurrent runs slow each other down on a machine with few processors.
    for schedule in {each.function: dataclasses.replace(each, input=None) for each in adapted.schedules}.values():
        running.in_background(run_schedule, running, schedule)


def start_console(running: Running) -> Child:
    """Starts the console. It gets `info` with the API key by its environment, because every user of the machine
    can read a command line."""
    environment = child_environment(running.state)
    packages = os.pathsep.join([environment["PYTHONPATH"], str(FUNCTIONS)])
    return running.start(
        "console",
        [sys.executable, "-m", "local.console"],
        {**environment, "PYTHONPATH": packages, "RINGONCE_CONSOLE": json.dumps(running.info)},
    )


def run(state: Path, api_port: int, output: TextIO) -> None:
    """Runs a stack until a signal. Says on stderr when it is ready, and on `output` for programs."""
    with stack(state, api_port) as running:
        write_info(state, running.info)
        say(shown(running.info, state))
        if not output.isatty():
            print("READY", json.dumps(running.info), file=output, flush=True)
        while True:
            pause(0.5)
            running.check()


def shown(info: Mapping[str, Any], state: Path) -> str:
    """What a person needs of a running stack: addresses, keys, and a command that places a call."""
    number = "+15550000000" if info["liveKitStandIn"] else os.environ.get("TO", "+1...")
    body = {
        "to": number,
        "call_agent_id": "a1b2c3d4e5f6a7b8c9d0e1f2",
        "callback_url": f"{info['receiverUrl']}/hook",
    }
    return f"""
the local stack is ready, until Ctrl-C
  console         {info["consoleUrl"]}
  API             {info["apiUrl"]}
  API's docs      {info["apiUrl"]}/docs
  workspace       {info["workspaceId"]}
  API key         {info["apiKey"]}
  webhook secret  {info["webhookSecret"]}
  for programs    {state / "stack.json"}

place a call from another terminal:

curl -s {info["apiUrl"]}/v1/api/call -H "x-workspace-id: {info["workspaceId"]}" -H "x-api-key: {info["apiKey"]}" \\
  -d {shlex.quote(json.dumps(body))}

for other examples:

export API_URL={info["apiUrl"]} API_KEY={info["apiKey"]}
"""


def main(arguments: Sequence[str]) -> int:
    state = state_folder()
    command = CommandLine(
        prog="python -m local.stack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument(
        "action", nargs="?", choices=["stop"], help="ends the stack that runs in the state folder"
    )
    given = command.parse_args(arguments)
    try:
        if given.action == "stop":
            stopped = stop(state)
            say("no local stack is running" if stopped is None else f"stopped the local stack (process {stopped})")
            return 0
        api_port = port(os.environ.get("PORT") or "0")
        stop_on_signals()
        run(state, api_port, sys.stdout)
    except StoppedError:
        say("stopped")
    except argparse.ArgumentTypeError as exc:
        command.error(f"PORT {exc}")
    except SettingError as exc:
        command.error(str(exc))
    except StackError as exc:
        say(f"local stack: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
