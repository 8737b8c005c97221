"""DynamoDB in memory, as far as this project's requests use it: a request takes a tenth of a millisecond, not ten.

A request's expressions are evaluated as they are, as Python, so that the stores' own conditions decide. One that
is not understood raises, and so does a read of an item that is not consistent. What is reserved, too large or of
the wrong type is not noticed: moto's tests do that.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, to_wire

Item = dict[str, Any]

_SORTED_BY = {
    None: "sk",
    "due": "checkAt",
    "byWorkspace": "createdAt",
    "line": "turn",
    "suppressed": "number",
}
_BETWEEN = re.compile(r"(\w+) BETWEEN (:\w+) AND (:\w+)")
_WORD = re.compile(r"[:#]?[A-Za-z_]\w*(?:\.#?\w+)*|(?<![<>!])=")
_CLAUSE = re.compile(r"\b(SET|REMOVE|ADD|DELETE)\b")
_COMMA = re.compile(r",(?![^(]*\))")


# Items of one answer of a scan, or of one that counts; DynamoDB takes a megabyte.
SCANNED = 3


class _Absent:
    """An attribute that the item does not have: no comparison with it holds."""

    def _differs(self, other: object) -> bool:
        return False

    __lt__ = __le__ = __gt__ = __ge__ = _differs
    __eq__ = _differs
    __hash__ = None  # type: ignore[assignment]


_ABSENT = _Absent()
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "attribute_exists": lambda value: value is not _ABSENT,
    "attribute_not_exists": lambda value: value is _ABSENT,
    "begins_with": lambda value, start: value.startswith(start),
    "contains": lambda value, part: value is not _ABSENT and part in value,
    "size": lambda value: value if value is _ABSENT else len(value),
    "if_not_exists": lambda value, instead: instead if value is _ABSENT else value,
    "list_append": lambda first, second: [*first, *second],
}
_OPERATORS = {"AND": " and ", "OR": " or ", "NOT": " not ", "=": " == "}


def _path(name: str, request: dict[str, Any]) -> list[str]:
    """The attribute names of a path such as `#left.reason`."""
    return [request["ExpressionAttributeNames"][part] if part[0] == "#" else part for part in name.split(".")]


@functools.cache
def _compiled(expression: str) -> Any:
    def python(match: re.Match[str]) -> str:
        word = match[0]
        if word in _OPERATORS or word in _FUNCTIONS:
            return _OPERATORS.get(word, word)
        return f"_values[{word!r}]" if word[0] == ":" else f"_found({word!r})"

    expression = expression.replace("<>", "!=")
    return compile(_WORD.sub(python, _BETWEEN.sub(r"\1 >= \2 AND \1 <= \3", expression)), expression, "eval")


def _evaluated(request: dict[str, Any]) -> Callable[[str, Item], Any]:
    """What evaluates an expression of this request for an item."""
    values = from_wire(request.get("ExpressionAttributeValues", {}))

    def evaluate(expression: str, item: Item) -> Any:
        def found(name: str) -> Any:
            value: Any = item
            for part in _path(name, request):
                if part not in value:
                    return _ABSENT
                value = value[part]
            return value

        given = {"__builtins__": {}, "_values": values, "_found": found, **_FUNCTIONS}
        return eval(_compiled(expression), given)

    return evaluate


@functools.cache
def _actions(expression: str) -> list[tuple[str, str, str]]:
    """The actions of an UpdateExpression: clause, what it changes, value."""
    _, *clauses = _CLAUSE.split(expression)
    return [
        (clause, target, value)
        for clause, actions in zip(clauses[::2], clauses[1::2], strict=True)
        for target, _, value in (
            action.strip().partition(" = " if clause == "SET" else " ") for action in _COMMA.split(actions)
        )
    ]


def _updated(item: Item, request: dict[str, Any]) -> Item:
    """The item after an UpdateExpression; each expression reads the item as it was before."""
    after, evaluate = dict(item), _evaluated(request)
    for clause, target, value in _actions(request["UpdateExpression"]):
        *above, name = _path(target, request)
        if above:
            # Below a map, which must be there.
            [outer] = above
            after[outer] = below = dict(after[outer])
            assert clause == "REMOVE"
            below.pop(name, None)
        elif clause == "REMOVE":
            after.pop(name, None)
        elif clause == "SET":
            after[name] = evaluate(value, item)
        else:
            change = evaluate(value, item)
            if clause == "DELETE":
                after[name] = after.get(name, set()) - change
                if not after[name]:
                    del after[name]
            else:
                before = after.get(name, set() if isinstance(change, set) else 0)
                after[name] = before | change if isinstance(change, set) else before + change
    return after


class DynamoDBInMemory:
    """A boto3 client. requests: what was asked, in order. tables: the items, by table and key."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[Any, ...], Item]] = {}
        self.requests: list[str] = []
        self._deleted: set[str] = set()
        self._tokens: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        handler: Callable[[dict[str, Any]], Any] = getattr(self, _OPERATIONS[operation])

        def send(**request: Any) -> Any:
            with self._lock:
                self.requests.append(operation)
                return handler(request)

        return send

    def table(self, name: str) -> dict[tuple[Any, ...], Item]:
        if name in self._deleted:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": name}}, "")
        return self.tables.setdefault(name, {})

    def _store(self, table: str, key: tuple[Any, ...], item: Item) -> None:
        """Every write of an item."""
        self.table(table)[key] = item

    def _sent(self, item: Item) -> dict[str, Any]:
        """An item in DynamoDB's format."""
        return to_wire(item)

    def _create_table(self, request: dict[str, Any]) -> None:
        """A table that is not created is made by its first request."""
        self.tables[request["TableName"]] = {}

    def _delete_table(self, request: dict[str, Any]) -> None:
        self._deleted.add(request["TableName"])

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request.get("ConsistentRead")
        item = self.table(request["TableName"]).get(_key(from_wire(request["Key"])))
        return {} if item is None else {"Item": self._sent(item)}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        self.table(request["TableName"]).pop(_key(from_wire(request["Key"])), None)
        return {}

    def _check(self, request: dict[str, Any], item: Item | None) -> None:
        condition = request.get("ConditionExpression")
        if condition is None or _evaluated(request)(condition, item or {}):
            return
        answer: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": condition}}
        if item is not None and request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
            answer["Item"] = self._sent(item)
        raise ClientError(answer, "UpdateItem")

    def _put(self, request: dict[str, Any]) -> dict[str, Any]:
        item = from_wire(request["Item"])
        table = self.table(request["TableName"])
        self._check(request, table.get(_key(item)))
        self._store(request["TableName"], _key(item), item)
        return {}

    def _update(self, request: dict[str, Any]) -> dict[str, Any]:
        key = from_wire(request["Key"])
        table = self.table(request["TableName"])
        self._check(request, table.get(_key(key)))
        before = table.get(_key(key))
        self._store(request["TableName"], _key(key), _updated(before or key, request))
        match request.get("ReturnValues"):
            case "ALL_NEW":
                return {"Attributes": self._sent(table[_key(key)])}
            case "ALL_OLD" if before is not None:
                return {"Attributes": self._sent(before)}
        return {}

    def _transact_write(self, request: dict[str, Any]) -> dict[str, Any]:
        """Updates and condition checks, all or none. A repeat with the same token is answered as the first."""
        token, actions = request["ClientRequestToken"], request["TransactItems"]
        if token in self._tokens:
            if self._tokens[token] != actions:
                raise ClientError(
                    {"Error": {"Code": "IdempotentParameterMismatchException"}}, "TransactWriteItems"
                )
            return {}
        reasons, failed = [], False
        for [[kind, action]] in (action.items() for action in actions):
            assert kind in ("Update", "ConditionCheck")
            there = self.table(action["TableName"]).get(_key(from_wire(action["Key"])))
            try:
                self._check(action, there)
                reasons.append({"Code": "None"})
            except ClientError as exc:
                failed = True
                response: Any = exc.response
                item = {"Item": response["Item"]} if "Item" in response else {}
                reasons.append({"Code": "ConditionalCheckFailed"} | item)
        if failed:
            error: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
            raise ClientError(error, "TransactWriteItems")
        for action in actions:
            if "Update" in action:
                self._update(action["Update"])
        self._tokens[token] = actions
        return {}

    def _batch_get(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {}
        for name, asked in request["RequestItems"].items():
            assert asked["ConsistentRead"]
            table = self.table(name)
            items = [table[key] for key in map(_key, map(from_wire, asked["Keys"])) if key in table]
            found[name] = list(self._projected(items, asked))
        return {"Responses": found, "UnprocessedKeys": {}}

    def _query(self, request: dict[str, Any]) -> dict[str, Any]:
        # An index has no consistent reads.
        assert request.get("ConsistentRead", False) is ("IndexName" not in request)
        evaluate, condition = _evaluated(request), request["KeyConditionExpression"]
        items = [item for item in self.table(request["TableName"]).values() if evaluate(condition, item)]
        if request.get("Select") != "COUNT":
            return self._page(items, request, _SORTED_BY[request.get("IndexName")])
        answer = self._page(items, {"Limit": SCANNED} | request, _SORTED_BY[request.get("IndexName")])
        return {"Count": len(answer.pop("Items"))} | answer

    def _scan(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._page(list(self.table(request["TableName"]).values()), {"Limit": SCANNED} | request, None)

    def _page(self, items: list[Item], request: dict[str, Any], by: str | None) -> dict[str, Any]:
        """by: the attribute that the items are sorted by, before their key."""

        def order(item: Item) -> tuple[Any, ...]:
            return (item[by], _key(item)) if by else _key(item)

        forward = request.get("ScanIndexForward", True)
        items = sorted(items, key=order, reverse=not forward)
        if "ExclusiveStartKey" in request:
            start = order(from_wire(request["ExclusiveStartKey"]))
            items = [item for item in items if (order(item) > start if forward else order(item) < start)]
        limit = request.get("Limit", len(items))
        page = items[:limit]
        answer: dict[str, Any] = {} if len(items) <= limit else {"LastEvaluatedKey": self._sent(page[-1])}
        if "FilterExpression" in request:
            evaluate = _evaluated(request)
            page = [item for item in page if evaluate(request["FilterExpression"], item)]
        return answer | {"Items": list(self._projected(page, request))}

    def _projected(self, items: list[Item], request: dict[str, Any]) -> Iterator[Any]:
        """In DynamoDB's format, with the attributes of the ProjectionExpression if there is one."""
        if "ProjectionExpression" not in request:
            yield from map(self._sent, items)
            return
        names = {_path(name, request)[0] for name in request["ProjectionExpression"].split(", ")}
        for item in items:
            yield {name: value for name, value in self._sent(item).items() if name in names}


# By a client's methods, what carries them out.
_OPERATIONS = {
    "create_table": "_create_table",
    "delete_table": "_delete_table",
    "get_item": "_get",
    "put_item": "_put",
    "delete_item": "_delete",
    "update_item": "_update",
    "transact_write_items": "_transact_write",
    "batch_get_item": "_batch_get",
    "query": "_query",
    "scan": "_scan",
}


def _key(item: Item) -> tuple[Any, ...]:
    if "pk" in item:
        return item["pk"], item["sk"]
    return (item["id"] if "id" in item else item["workspaceId"],)
