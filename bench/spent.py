"""The functions' requests to AWS, recorded through botocore's events, by function and operation."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from botocore.client import BaseClient

from bench.units import read_units

OURS = (
    "initiate_call.",
    "dial_worker.",
    "livekit_events.",
    "webhook_dispatch.",
    "reconcile_calls.",
    "calls_api.",
    "shared.",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """read: DynamoDB read units. failed: AWS's error code, for a condition that did not hold."""

    function: str
    service: str
    operation: str
    table: str
    read: float
    failed: str | None
    params: Mapping[str, Any]


def clients_of(value: object, depth: int = 4) -> set[BaseClient]:
    """The boto3 clients that a function's module holds, in objects of the project's own."""
    if isinstance(value, BaseClient):
        return {value}
    if depth == 0 or not (isinstance(value, ModuleType) or type(value).__module__.startswith(OURS)):
        return set()
    names = vars(value) if hasattr(value, "__dict__") else getattr(type(value), "__slots__", ())
    found: set[BaseClient] = set()
    for name in names:
        if not isinstance(inner := getattr(value, name, None), ModuleType):
            found |= clients_of(inner, depth - 1)
    return found


@contextlib.contextmanager
def recorded(modules: Mapping[str, ModuleType]) -> Iterator[list[Request]]:
    """Every request that the functions (name: handler's module) make meanwhile, in the order of their answers."""
    made: list[Request] = []
    lock = threading.Lock()
    hooks: list[tuple[BaseClient, str, Any]] = []
    for function, module in modules.items():
        for client in clients_of(module):

            def keep(params: Any, context: Any, **_: Any) -> None:
                context["ringonce_params"] = params

            def note(parsed: Any, model: Any, context: Any, function: str = function, **_: Any) -> None:
                request = _request(function, parsed, model, context["ringonce_params"])
                with lock:
                    made.append(request)

            for event, hook in (("before-parameter-build", keep), ("after-call", note)):
                client.meta.events.register(event, hook)
                hooks.append((client, event, hook))
    try:
        yield made
    finally:
        for client, event, hook in hooks:
            client.meta.events.unregister(event, hook)


def _request(function: str, parsed: Mapping[str, Any], model: Any, params: Mapping[str, Any]) -> Request:
    service = model.service_model.service_name
    read = 0.0
    match model.name:
        case "GetItem":
            read = read_units(parsed.get("Item"), consistent=params.get("ConsistentRead", False))
        case "BatchGetItem":
            found = [item for items in parsed.get("Responses", {}).values() for item in items]
            missing = sum(len(asked["Keys"]) for asked in params["RequestItems"].values()) - len(found)
            read = sum(read_units(item, consistent=True) for item in [*found, *[None] * missing])
        case "Query":
            # Half a unit at least; the items of these queries are a few keys.
            read = 1.0 if params.get("ConsistentRead") else 0.5
    return Request(
        function,
        service,
        model.name,
        params.get("TableName", ""),
        read,
        parsed.get("Error", {}).get("Code"),
        params,
    )
