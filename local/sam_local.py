"""The files with which `sam local invoke` and `sam local start-api` run functions in containers against the stack.

Each start writes two files into the state folder:
    sam-template.yaml   the functions and their routes, for this machine's processor, with the local stack's
                        variables declared, since `sam local` passes on no others, and with their code in the
                        output folder of `make build`
    sam-env.json        the variables, by function

They contain the emulated AWS's address and credentials: no request goes to an AWS account.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local.aws_client import CREDENTIALS, REGION, aws_client
from local.paths import ROOT
from local.processes import Running

# Variables that make sense only in the stack's own processes.
OWN = ("PYTHONPATH", "RINGONCE_DEATHS", "RINGONCE_FUNCTION_LOG")
LOOPBACK = "127.0.0.1"


def container_host() -> str:
    """The host name of this machine in a container: the bridge's address on Linux, elsewhere Docker's own name."""
    if platform.system() != "Linux":
        return "host.docker.internal"
    return bridge_address() or LOOPBACK


def bridge_address(interface: str = "docker0") -> str | None:
    """The IPv4 address of a network interface of this machine; None when there is no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            # SIOCGIFADDR (Linux, netdevice(7)): bytes 20 to 24 of the answer are the address.
            answer = fcntl.ioctl(asking.fileno(), 0x8915, struct.pack("256s", interface.encode()))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def environments(
    variables: Mapping[str, Mapping[str, str]], endpoint: str, credentials: Mapping[str, str], host: str
) -> dict[str, dict[str, str]]:
    """The variables of each function as a container needs them. variables: as deployed, by logical id."""
    added = {**credentials, "AWS_ENDPOINT_URL": endpoint}
    return {
        function: {
            name: value.replace(LOOPBACK, host) for name, value in {**own, **added}.items() if name not in OWN
        }
        for function, own in variables.items()
    }


def template(source: Mapping[str, Any], declared: Mapping[str, Mapping[str, str]], code: str) -> dict[str, Any]:
    """The functions of template.yaml with their routes and the properties that `sam local` reads.

    declared: the variables of each function, by logical id. code: the folder of the built artifact.
    """
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
    shared = {"Runtime": source["Globals"]["Function"]["Runtime"], "Architectures": [machine], "CodeUri": code}
    functions = {
        name: {
            "Type": resource["Type"],
            "Properties": {
                "Handler": resource["Properties"]["Handler"],
                "Timeout": resource["Properties"]["Timeout"],
                "MemorySize": source["Globals"]["Function"]["MemorySize"],
                "Environment": {"Variables": dict(declared[name])},
                "Events": {
                    event: {
                        "Type": "HttpApi",
                        "Properties": {key: entry["Properties"][key] for key in ("Method", "Path")},
                    }
                    for event, entry in resource["Properties"].get("Events", {}).items()
                    if entry["Type"] == "HttpApi"
                },
            },
        }
        for name, resource in source["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    return {"Transform": source["Transform"], "Globals": {"Function": shared}, "Resources": functions}


def artifact_folder() -> str:
    """The folder of `make build` with the functions for this machine, relative to the checkout."""
    folder = "build" if platform.machine() in ("arm64", "aarch64") else "build-x86_64"
    return f".aws-sam/{folder}/InitiateCall-Shared"


def write(
    state: Path,
    variables: Mapping[str, Mapping[str, str]],
    endpoint: str,
    credentials: Mapping[str, str],
) -> None:
    """Writes both files into the state folder."""
    import yaml
    from samtranslator.yaml_helper import yaml_parse

    given = environments(variables, endpoint, credentials, container_host())
    source = yaml_parse((ROOT / "template.yaml").read_text())
    made = template(source, given, str(ROOT / artifact_folder()))
    (state / "sam-env.json").write_text(json.dumps(given, indent=2) + "\n")
    (state / "sam-template.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(made)), sort_keys=False))


def serve_containers(running: Running, functions: Sequence[str]) -> None:
    """Writes both files for a running stack's functions and forwards their containers' connections to it."""
    endpoint = running.info["awsEndpointUrl"]
    lambdas = aws_client("lambda", endpoint)
    variables = {
        name: lambdas.get_function_configuration(FunctionName=running.info["resources"][name])["Environment"][
            "Variables"
        ]
        for name in functions
    }
    credentials = {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}
    write(running.state, variables, endpoint, credentials)
    if (host := bridge_address()) is not None:
        forward_port(host, int(endpoint.rpartition(":")[2]), running.done)


# ── on Linux: forwards the containers' bridge to a server on loopback ───────────────────────────────


def forward_port(address: str, port: int, done: threading.Event) -> threading.Thread:
    """Forwards connections to `address`:`port` to the same port on loopback, until `done` is set.

    The stack's servers listen on loopback only. No other network reaches the bridge.
    Raises OSError when the address cannot be listened on.
    """
    listening = socket.create_server((address, port))
    listening.settimeout(0.2)

    def accept() -> None:
        with listening:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    client, _ = listening.accept()
                    threading.Thread(target=_pass_on, args=(client, port), daemon=True).start()

    thread = threading.Thread(target=accept, name=f"forward {address}:{port}", daemon=True)
    thread.start()
    return thread


def _pass_on(client: socket.socket, port: int) -> None:
    with client, contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port)) as server:
        client.settimeout(None)
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
