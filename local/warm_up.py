"""Starts the functions' processes before the first call."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from local.aws_client import aws_client
from local.errors import StackError
from local.processes import ANSWER_SECONDS, Running, tail, wait_for

if TYPE_CHECKING:
    from local.template_for_emulator import Adapted


def warm_up(running: Running, adapted: Adapted) -> None:
    """Invokes every function once, concurrently, with an empty batch or a request without credentials.

    With scaled time a cold start takes as long as a ringing phone. Raises StackError when a function does not
    start."""
    functions = aws_client("lambda", running.info["awsEndpointUrl"])
    routes = {function: route for route, function in adapted.routes}

    def failure(name: str) -> str | None:
        # Not through the API, which has a time-out.
        event = request_event(routes[name]) if name in routes else {"Records": []}
        answer = functions.invoke(FunctionName=running.info["resources"][name], Payload=json.dumps(event).encode())
        if "FunctionError" in answer:
            return str(answer["Payload"].read().decode())
        if name not in routes:
            return None
        method, path = routes[name].split(" ", 1)
        status = request_status(method, running.info["apiUrl"] + re.sub(r"\{[^}]+\}", "none", path))
        return None if status < 500 else f"it answered {status}"

    pool = ThreadPoolExecutor(len(adapted.functions))
    try:
        started = {name: pool.submit(failure, name) for name in adapted.functions}
        wait_for(lambda: all(one.done() for one in started.values()), "every function", running)
    finally:
        # The emulator's end also ends the invocations that still wait.
        pool.shutdown(wait=False, cancel_futures=True)
    for name, one in started.items():
        if failed := one.result():
            log = tail(running.state / "logs" / f"{name}.log")
            raise StackError(f"the function {name} does not start: {failed}\n{log}")


def request_event(route: str) -> dict[str, Any]:
    """The event of an HTTP API for a request to `METHOD /path` without a body or credentials."""
    method, path = route.split(" ", 1)
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {},
        "pathParameters": dict.fromkeys(re.findall(r"\{([^}]+)\}", path), "none"),
        "requestContext": {"http": {"method": method, "path": path}, "requestId": "start", "routeKey": route},
        "isBase64Encoded": False,
    }


def request_status(method: str, url: str) -> int:
    """The status of the answer to a request without a body or credentials."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=ANSWER_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
