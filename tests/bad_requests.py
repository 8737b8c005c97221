"""Requests that must be refused, and how: a table, for the tests that send every one of them.

A refused request writes nothing, queues nothing, and is answered with a status, a code, and every wrong field.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Part of values that must never appear in an answer.
SECRET = "hunter2"

GOOD: dict[str, Any] = {"to": "+12025550123", "call_agent_id": "agent-1"}


@dataclasses.dataclass(frozen=True, slots=True)
class BadRequest:
    """A POST /v1/api/call and its answer. headers: added to the good ones; None removes one."""

    name: str
    body: bytes
    status: int
    code: str
    fields: tuple[str, ...] = ()
    headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class BadQuery:
    """A GET /v1/api/call and the fields its answer (400, invalid_request) names."""

    name: str
    query: Mapping[str, str]
    fields: tuple[str, ...]


def _short(text: str) -> str:
    """For a test's name."""
    return ascii(text) if len(text) <= 40 else f"{text[:20]!a}... of {len(text)}"


def _with(**fields: Any) -> bytes:
    """The good request with these fields changed, as ASCII JSON."""
    return json.dumps(GOOD | fields).encode()


def _without(*names: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name not in names}).encode()


def _member(name: str, text: str) -> bytes:
    """The good request with one more member, its JSON text as given."""
    return f'{{"to":"+12025550123","call_agent_id":"agent-1","{name}":{text}}}'.encode()


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


# A carrier that strips or interprets the prefix after the country code reaches another number.
PREFIXED = (
    "+1 1 900 555 0123",
    "+11876555012",
    "+1 (0) 202 555 0123",
    "+1 011 44 20 7946",
    "+44 00 1 202 555 0123",
    "+49 00 1 202 555 0123",
    "+39 00 1 202 555 0123",
    "+7 8 10 1 202 555 012",
    "+7 810 881 612 345 67",
    "+45 0 12 34 56 78",
    "+81 010 1 202 555 01",
)


def bad_requests() -> Iterator[BadRequest]:
    yield from _not_json()
    yield from _wrong_types()
    yield from _numbers()
    yield from _agents()
    yield from _bounds()
    yield from _contexts()
    yield from _urls()
    yield from _several()
    yield from _headers()
    yield from _not_allowed()


def _not_json() -> Iterator[BadRequest]:
    good = _with()
    bodies = {
        "empty": b"",
        "white space": b" \r\n\t ",
        "not JSON": b"to=%2B12025550123&call_agent_id=agent-1",
        "a word": b"hello",
        "XML": b"<call><to>+12025550123</to></call>",
        "cut in a string": b'{"to":"+1202',
        "cut in an object": good[:-1],
        "cut after a comma": good[:-1] + b",",
        "cut behind a key": b'{"to"',
        "cut behind a colon": b'{"to":',
        "comma at the end": good[:-1] + b",}",
        "comma at the beginning": b"{," + good[1:],
        "two commas": b'{"to":"+12025550123",,"call_agent_id":"agent-1"}',
        "no comma": b'{"to":"+12025550123" "call_agent_id":"agent-1"}',
        "no colon": b'{"to" "+12025550123","call_agent_id":"agent-1"}',
        "a value without a key": b'{"+12025550123"}',
        "a key without quotes": b'{to:"+12025550123","call_agent_id":"agent-1"}',
        "single quotes": b"{'to':'+12025550123','call_agent_id':'agent-1'}",
        "a key that is a number": b'{1:"+12025550123"}',
        "a comment": b'{"to":"+12025550123",/* who */"call_agent_id":"agent-1"}',
        "text behind the end": good + b"x",
        "two objects": good + good,
        "two lines of objects": good + b"\n" + good,
        "an array": b"[" + good + b"]",
        "an empty array": b"[]",
        "null": b"null",
        "true": b"true",
        "a number": b"42",
        "a string": b'"call"',
        "JSON in a string": json.dumps(good.decode()).encode(),
        "True as in Python": _member("metadata", '{"a":True}'),
        "undefined": _member("metadata", '{"a":undefined}'),
        "NaN": _member("metadata", '{"a":NaN}'),
        "Infinity": _member("metadata", '{"a":Infinity}'),
        "minus Infinity": _member("dynamic_variables", '{"a":-Infinity}'),
        "NaN at the top": _member("ring_timeout_seconds", "NaN"),
        "a leading zero": _member("ring_timeout_seconds", "040"),
        "a plus before a number": _member("ring_timeout_seconds", "+40"),
        "a number that ends in a dot": _member("ring_timeout_seconds", "40."),
        "a number that begins with a dot": _member("metadata", '{"a":.5}'),
        "hexadecimal": _member("ring_timeout_seconds", "0x28"),
        "an exponent without digits": _member("metadata", '{"a":1e}'),
        "a lone minus": _member("metadata", '{"a":-}'),
        "a bracket too many": _member("metadata", '{"a":[1]]}'),
        "a brace too few": _member("metadata", '{"a":{"b":1}'),
        "wrong bracket": _member("metadata", '{"a":[1}}'),
        "an unknown escape": _member("metadata", '{"a":"\\x41"}'),
        "a short escape": _member("metadata", '{"a":"\\u12"}'),
        "a plain line break in a string": _member("metadata", '{"a":"one\ntwo"}'),
        "a plain tab in a string": _member("metadata", '{"a":"one\ttwo"}'),
        "a plain NUL in a string": _member("metadata", '{"a":"\x00"}'),
        "NUL behind the end": good + b"\x00",
        "only NUL": b"\x00\x00",
        "a no-break space between tokens": "{\u00a0}".encode(),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "UTF-32": good.decode().encode("utf-32"),
        "Latin-1": b'{"to":"+12025550123","call_agent_id":"agent-1","metadata":{"a":"\xe9"}}',
        "an overlong encoding": b'{"to":"+12025550123","call_agent_id":"agent-1","metadata":{"a":"\xc0\xaf"}}',
        "a surrogate in UTF-8": b'{"to":"+12025550123","call_agent_id":"agent-1","metadata":{"a":"\xed\xa0\x80"}}',
        "half of a character": b'{"to":"+12025550123","call_agent_id":"agent-1","metadata":{"a":"\xf0\x9f"}}',
        "high surrogate alone": _member("metadata", '{"a":"\\ud83d"}'),
        "low surrogate alone": _member("metadata", '{"a":"\\ude00"}'),
        "surrogates the wrong way round": _member("metadata", '{"a":"\\ude00\\ud83d"}'),
        "a lone surrogate in a key": _member("metadata", '{"\\ud83d":1}'),
        "a lone surrogate in the name of a field": _member("\\ud83d", "1"),
        "a lone surrogate in a variable": _member("dynamic_variables", '{"a":"\\udfff"}'),
        "a field twice": b'{"to":"+12025550123","to":"+12025550124","call_agent_id":"agent-1"}',
        "a field twice, once escaped": b'{"to":"+12025550123","\\u0074o":"+12025550123","call_agent_id":"a"}',
        "an unknown field twice": b'{"to":"+12025550123","call_agent_id":"a","x":1,"x":1}',
        "a variable twice": _member("dynamic_variables", '{"a":1,"a":2}'),
        "a key of metadata twice": _member("metadata", '{"a":1,"a":1}'),
        "a key deep in metadata twice": _member("metadata", '{"a":[{"b":{"c":1,"c":2}}]}'),
        "33 levels": _member("metadata", '{"a":' + _nested(31) + "}"),
        "30,000 levels": _member("metadata", '{"a":' + _nested(30_000) + "}"),
        "60,000 opening brackets": b'{"a":' + b"[" * 60_000,
        "60,000 opening braces": b'{"a":' * 10_000,
        "32,000 escaped quotes without an end": b'{"a":"' + b'\\"' * 32_000,
        "backslashes without an end": b'{"a":"' + b"\\" * 60_001,
        "7,000 keys, the last one twice": (b"{" + b",".join(b'"%d":1' % n for n in range(7000)) + b',"6999":1}'),
    }
    for name, body in bodies.items():
        yield BadRequest(name, body, 400, "invalid_json")
    yield BadRequest("a body of 64 KiB and a byte", good + b" " * (64 * 1024 + 1 - len(good)), 413, "too_large")
    yield BadRequest("a body of 64 KiB and a byte, not JSON", b"x" * (64 * 1024 + 1), 413, "too_large")
    yield BadRequest("a body of 5 MB", b"[" * 5_000_000, 413, "too_large")


def _wrong_types() -> Iterator[BadRequest]:
    values: dict[str, list[Any]] = {
        "to": [12025550123, 1.5, True, None, [], ["+12025550123"], {}, {"number": "+12025550123"}],
        "call_agent_id": [7, 1.5, False, None, [], ["agent-1"], {}],
        "callback_url": [7, True, [], ["https://example.com/"], {}],
        "dynamic_variables": ["", "firstName=Ada", 0, 7, True, [], [["firstName", "Ada"]]],
        "metadata": ["", "{}", 0, 7, False, [], [{}]],
        "from": [12025550123, True, [], {}],
        "ring_timeout_seconds": ["40", "", 10.5, 1e400, True, False, [], {}, [40]],
        "max_duration_seconds": ["1800", "", 30.5, True, [], {}],
    }
    for field, wrong in values.items():
        for value in wrong:
            text = "1e400" if value == float("inf") else json.dumps(value)
            body = _with() if field not in GOOD else _without(field)
            member = f'{{"{field}":{text},'.encode() + body[1:]
            yield BadRequest(f"{field} {text}", member, 400, "invalid_request", (field,))
    for field in GOOD:
        yield BadRequest(f"no {field}", _without(field), 400, "invalid_request", (field,))
    for field in ("unknown", "To", "callAgentId", "from_", "callId", "", "dynamic_variables ", "__proto__"):
        yield BadRequest(f"a field {field!r}", _with(**{field: SECRET}), 400, "invalid_request", (field,))
    yield BadRequest("a field of 129", _with(**{"x" * 129: 1}), 400, "invalid_request", ("x" * 128,))
    yield BadRequest("a field of 60,000", _with(**{"x" * 60_000: 1}), 400, "invalid_request", ("x" * 128,))


def _numbers() -> Iterator[BadRequest]:
    numbers = [
        "",
        " ",
        "+",
        "+1",
        "+123456",  # six digits
        "+1234567890123456",  # sixteen
        "+0123456789",
        "+01234567",
        "12025550123",
        "0012025550123",
        "011 1 202 555 0123",
        "2025550123",
        "++12025550123",
        "+1202555+0123",
        "+-+12025550123",
        "12025550123+",
        "+1202555012a",
        "+1-800-FLOWERS",
        "+12025550123x12",
        "+12025550123,,12",
        "+12025550123;ext=12",
        "+1202/555/0123",
        "tel:+12025550123",
        "sip:+12025550123@example.com",
        "+１２０２５５５０１２３",
        "+١٢٠٢٥٥٥٠١٢٣",
        "＋12025550123",
        "+1202555⁰¹²³",
        "+1\u00a0202\u00a0555\u00a00123",
        "+1\u2009202 5550123",
        "+1202\u20115550123",
        "+1202555\u200b0123",
        "\u202a+12025550123\u202c",
        "+1202\t5550123",
        "+12025550123\n",
        "\n+12025550123",
        "+1202555\u00000123",
        "+1_202_555_0123",
        "+1'2025550123",
        "+1.2e10",
        "anonymous",
        "+" + "1" * 60_000,
        "()" * 20_000,
        *PREFIXED,
    ]
    for number in numbers:
        yield BadRequest(f"to {_short(number)}", _with(to=number), 400, "invalid_number", ("to",))
    for number in ("", "+", "12025550123", "+1202555012a", "+0123456789", *PREFIXED):
        yield BadRequest(f"from {number!a}", _with(**{"from": number}), 400, "invalid_number", ("from",))
    # From the number it is made from: the one that is named, in another spelling, or the workspace's first.
    for number, other in (("+15550009999", None), ("+15550009999", "+15550009999"), ("+1 (555) 000-9999", None)):
        body = _with(to=number, **{"from": other})
        yield BadRequest(f"to its own {number} {other}", body, 400, "invalid_number", ("to",))


def _agents() -> Iterator[BadRequest]:
    for agent in (
        "",
        " ",
        "a b",
        " agent-1",
        "agent-1 ",
        "agent-1\n",
        "agent.1",
        "agent/1",
        "agent#1",
        "../agent",
        "agent%201",
        "agént",
        "аgent",
        "agent\u0000",
        "{{agent}}",
        "x" * 129,
        "x" * 60_000,
    ):
        body = _with(call_agent_id=agent)
        yield BadRequest(f"call_agent_id {_short(agent)}", body, 400, "invalid_request", ("call_agent_id",))


def _bounds() -> Iterator[BadRequest]:
    for field, wrong in {
        "ring_timeout_seconds": ("9", "61", "0", "-40", "9.99", "1e3", "1" * 400, "1" * 5000, "-1e400"),
        "max_duration_seconds": ("29", "14401", "0", "-1", "29.999", "1e10", "9" * 400),
    }.items():
        for text in wrong:
            yield BadRequest(f"{field} {_short(text)}", _member(field, text), 400, "invalid_request", (field,))


def _contexts() -> Iterator[BadRequest]:
    variables = {
        "an object": {"a": {}},
        "an array": {"a": []},
        "an array of strings": {"a": ["b"]},
        "a nested object": {"firstName": {"given": "Ada"}},
        "one wrong of many": {"a": "b", "c": 1, "d": None, "e": {"f": 1}},
        "101 keys": {f"k{n}": n for n in range(101)},
        "an empty key": {"": 1},
        "a key of 129 characters": {"k" * 129: 1},
        "NUL in a value": {"a": "b\u0000c"},
        "escape in a value": {"a": "\u001b[2J"},
        "DEL in a value": {"a": "\u007f"},
        "bell in a key": {"a\u0007": 1},
    }
    for name, value in variables.items():
        body = _with(dynamic_variables=value)
        yield BadRequest(f"variables: {name}", body, 400, "invalid_variables", ("dynamic_variables",))
    long = {
        "integer": "9" * 4301,
        "negative integer": "-" + "9" * 4301,
        "integer of 30,000": "9" * 30_000,
        "fraction": "0." + "9" * 4301,
        "exponent": "1e" + "9" * 4301,
    }
    for name, number in long.items():
        for field, code in (("metadata", "invalid_request"), ("dynamic_variables", "invalid_variables")):
            body = _member(field, f'{{"a":{number}}}')
            yield BadRequest(f"{field}: a long {name}", body, 400, code, (field,))
        body = _member("metadata", f'{{"a":[1,{{"b":["9",{number}]}}]}}')
        yield BadRequest(f"metadata: a long {name} deep inside", body, 400, "invalid_request", ("metadata",))
    text = "x" * (32 * 1024)
    both = ("dynamic_variables", "metadata")
    yield BadRequest("metadata over 32 KiB", _with(metadata={"a": text}), 400, "invalid_request", ("metadata",))
    yield BadRequest(
        "variables over 32 KiB",
        _with(dynamic_variables={"a": text}),
        400,
        "invalid_request",
        ("dynamic_variables",),
    )
    yield BadRequest(
        "together over 32 KiB",
        _with(metadata={"a": text[:20_000]}, dynamic_variables={"a": text[:20_000]}),
        400,
        "invalid_request",
        both,
    )
    yield BadRequest(
        "metadata over 32 KiB by one byte",
        _member("metadata", '{"a":"' + "x" * (32 * 1024 + 1 - len('{"a":""}')) + '"}'),
        400,
        "invalid_request",
        ("metadata",),
    )
    yield BadRequest(
        "metadata over 32 KiB in bytes, not in characters",
        _member("metadata", '{"a":"' + "é" * (16 * 1024) + '"}'),
        400,
        "invalid_request",
        ("metadata",),
    )


def _urls() -> Iterator[BadRequest]:
    urls = [
        " ",
        "/hook",
        "hook",
        "example.com",
        "example.com/hook",
        "//example.com/hook",
        "http://example.com/hook",
        "ftp://example.com/hook",
        "ws://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:application/json,{}",
        "mailto:ada@example.com",
        "https:",
        "https:/",
        "https://",
        "https:///hook",
        "https:example.com/hook",
        "https:/example.com/hook",
        "https://?a=b",
        "https://#a",
        "https://:443/",
        "https://.",
        "https://./",
        "https://user@example.com/",
        f"https://user:{SECRET}@example.com/",
        f"https://:{SECRET}@example.com/",
        "https://@example.com/",
        "https://example.com@127.0.0.1/",
        "https://127.0.0.1/",
        "https://127.0.0.1./",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://0/",
        "https://0.0.0.0/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://8.8.8.8/",
        "https://[::1]/",
        "https://[::]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fd00:ec2::254]/",
        "https://[fe80::1%25eth0]/",
        "https://[2001:db8::1]/",
        "https://[2606:4700:4700::1111]/",
        "https://[v1.example.com]/",
        "https://[example.com]/",
        "https://[::1/",
        "https://::1/",
        "https://example.com:[443]/",
        "https://１２７.0.0.1/",
        "https://①②⑦.⓪.⓪.①/",
        "https://127。0。0。1/",
        "https://localhost/",
        "https://LOCALHOST/",
        "https://localhost./",
        "https://hook.localhost/",
        "https://localhost.localdomain/",
        "https://printer.local/",
        "https://metadata.google.internal/",
        "https://router.lan/",
        "https://nas.home/",
        "https://1.0.0.127.in-addr.arpa/",
        "https://intranet/",
        "https://%6c%6f%63%61%6c%68%6f%73%74/",
        "https://127%2e0%2e0%2e1/",
        "https://example%2ecom/",
        "https://example..com/",
        "https://.example.com/",
        "https://-example.com/",
        "https://example-.com/",
        "https://exa$mple.com/",
        "https://exämple.com/",
        "https://exаmple.com/",
        "https://example。com/",
        "https://" + "a" * 64 + ".com/",
        "https://" + "a." * 127 + "com/",
        "https://example.com:80/",
        "https://example.com:8443/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:-1/",
        "https://example.com:port/",
        "https://example.com:4４3/",
        "https://exa mple.com/",
        " https://example.com/",
        "https://example.com/ ",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com/\r\nx-header: 1",
        "https://exam\tple.com/",
        "https://example.com/\u0000",
        "https://example.com/\u007f",
        "https://example.com\\@127.0.0.1/",
        "https:\\\\example.com\\",
        "https://example.com/" + "x" * (2049 - len("https://example.com/")),
        "https://example.com/" + "x" * 60_000,
    ]
    for url in urls:
        yield BadRequest(f"url {_short(url)}", _with(callback_url=url), 400, "invalid_url", ("callback_url",))


def _several() -> Iterator[BadRequest]:
    yield BadRequest("an empty object", b"{}", 400, "invalid_request", ("to", "call_agent_id"))
    yield BadRequest(
        "every field wrong",
        json.dumps(
            {
                "to": "1",
                "call_agent_id": "a b",
                "callback_url": f"http://user:{SECRET}@localhost",
                "dynamic_variables": {"a": {"password": SECRET}},
                "metadata": SECRET,
                "from": SECRET,
                "ring_timeout_seconds": 9,
                "max_duration_seconds": "1800",
                "unknown": SECRET,
            }
        ).encode(),
        400,
        "invalid_request",
        (
            "to",
            "call_agent_id",
            "callback_url",
            "dynamic_variables",
            "metadata",
            "from",
            "ring_timeout_seconds",
            "max_duration_seconds",
            "unknown",
        ),
    )
    yield BadRequest("two wrong numbers", _with(**{"to": "1", "from": "2"}), 400, "invalid_number", ("to", "from"))
    yield BadRequest(
        "a wrong number and a wrong URL",
        _with(to="1", callback_url="http://example.com"),
        400,
        "invalid_request",
        ("to", "callback_url"),
    )
    yield BadRequest(
        "a wrong number and too large a context",
        _with(to="1", metadata={"a": "x" * 33_000}),
        400,
        "invalid_request",
        ("to", "metadata"),
    )
    yield BadRequest(
        "a thousand unknown fields",
        _with(**{f"x{n}": n for n in range(1000)}),
        400,
        "invalid_request",
        tuple(f"x{n}" for n in range(1000)),
    )


def _headers() -> Iterator[BadRequest]:
    cases: list[tuple[str, Mapping[str, str | None], int, str]] = [
        ("no workspace", {"x-workspace-id": None}, 400, "missing_workspace"),
        ("an empty workspace", {"x-workspace-id": ""}, 400, "missing_workspace"),
        ("an unknown workspace", {"x-workspace-id": "unknown"}, 403, "workspace_not_allowed"),
        ("the workspace in capitals", {"x-workspace-id": "DEMO"}, 403, "workspace_not_allowed"),
        ("two workspaces", {"x-workspace-id": "demo,other"}, 400, "conflicting_header"),
        ("two workspaces, one in capitals", {"x-workspace-id": "demo, DEMO"}, 400, "conflicting_header"),
        ("two of three workspaces the same", {"x-workspace-id": "demo,demo,other"}, 400, "conflicting_header"),
        ("only commas as workspace", {"x-workspace-id": ", ,"}, 400, "missing_workspace"),
        ("a workspace's slots", {"x-workspace-id": "demo#slots"}, 403, "workspace_not_allowed"),
        ("the switch", {"x-workspace-id": "#switch"}, 403, "workspace_not_allowed"),
        ("a trunk", {"x-workspace-id": "trunk#ST_demo"}, 403, "workspace_not_allowed"),
        ("a workspace of 65 characters", {"x-workspace-id": "x" * 65}, 403, "workspace_not_allowed"),
        ("a workspace of 9,000 characters", {"x-workspace-id": "x" * 9000}, 403, "workspace_not_allowed"),
        ("a workspace not in ASCII", {"x-workspace-id": "dém\u00f6"}, 403, "workspace_not_allowed"),
        ("half a character as workspace", {"x-workspace-id": "\udc80"}, 403, "workspace_not_allowed"),
        ("a workspace with NUL", {"x-workspace-id": "demo\u0000"}, 403, "workspace_not_allowed"),
        ("a space as workspace", {"x-workspace-id": " "}, 400, "missing_workspace"),
        ("no key", {"x-api-key": None}, 401, "invalid_api_key"),
        ("an empty key", {"x-api-key": ""}, 401, "invalid_api_key"),
        ("a wrong key", {"x-api-key": SECRET}, 401, "invalid_api_key"),
        ("a key not in ASCII", {"x-api-key": "schlüssel"}, 401, "invalid_api_key"),
        ("half a character as key", {"x-api-key": "\udcff"}, 401, "invalid_api_key"),
        ("a key of 9,000 characters", {"x-api-key": "x" * 9000}, 401, "invalid_api_key"),
        ("a wrong bearer", {"x-api-key": None, "authorization": f"Bearer {SECRET}"}, 401, "invalid_api_key"),
        ("a bearer without a key", {"x-api-key": None, "authorization": "Bearer"}, 401, "invalid_api_key"),
        ("basic", {"x-api-key": None, "authorization": "Basic cmtfdGVzdF9rZXk="}, 401, "invalid_api_key"),
        ("no scheme", {"x-api-key": None, "authorization": "rk_test_key"}, 401, "invalid_api_key"),
        ("two keys", {"x-api-key": "rk_test_key,another"}, 400, "conflicting_header"),
        ("two bearers", {"x-api-key": None, "authorization": "Bearer a,Bearer b"}, 400, "conflicting_header"),
        (
            "a bearer and another's",
            {"x-api-key": "", "authorization": "Bearer a, Basic b"},
            400,
            "conflicting_header",
        ),
        ("two Idempotency-Keys", {"idempotency-key": "a,b"}, 400, "conflicting_header"),
        ("two Idempotency-Keys, one longer", {"idempotency-key": "a, a b,a"}, 400, "conflicting_header"),
        ("a comma in quotes", {"idempotency-key": '"a,b"'}, 400, "conflicting_header"),
        ("only commas as Idempotency-Key", {"idempotency-key": ","}, 400, "invalid_idempotency_key"),
        ("a space as Idempotency-Key", {"idempotency-key": " "}, 400, "invalid_idempotency_key"),
        (
            "two long Idempotency-Keys",
            {"idempotency-key": f"{'k' * 256},{'k' * 256}"},
            400,
            "invalid_idempotency_key",
        ),
        ("two content types", {"content-type": "application/json,text/plain"}, 400, "conflicting_header"),
        ("two content encodings", {"content-encoding": "identity, gzip"}, 400, "conflicting_header"),
        *(
            (f"content encoding {name}", {"content-encoding": name}, 415, "unsupported_encoding")
            for name in ("gzip", "GZIP", "br", "deflate", "zstd", "x", "gzip,gzip")
        ),
        ("an empty Idempotency-Key", {"idempotency-key": ""}, 400, "invalid_idempotency_key"),
        ("256 characters", {"idempotency-key": "k" * 256}, 400, "invalid_idempotency_key"),
        ("a key with a control character", {"idempotency-key": "a\u0007"}, 400, "invalid_idempotency_key"),
        ("a key with a line break", {"idempotency-key": "a\nb"}, 400, "invalid_idempotency_key"),
        ("a key with DEL", {"idempotency-key": "a\u007f"}, 400, "invalid_idempotency_key"),
        ("an Idempotency-Key not in ASCII", {"idempotency-key": "clé"}, 400, "invalid_idempotency_key"),
        ("an emoji as Idempotency-Key", {"idempotency-key": "📞"}, 400, "invalid_idempotency_key"),
    ]
    for name, headers, status, code in cases:
        yield BadRequest(name, _with(), status, code, headers=headers)
    packed = gzip.compress(_with())
    yield BadRequest("a gzip", packed, 415, "unsupported_encoding", headers={"content-encoding": "gzip"})
    # Authorization is checked before the body.
    unknown = {"x-workspace-id": "unknown"}
    yield BadRequest("a stranger's bad request", b"{", 403, "workspace_not_allowed", headers=unknown)
    yield BadRequest("a bad request, a wrong key", b"{", 401, "invalid_api_key", headers={"x-api-key": "x"})


def _not_allowed() -> Iterator[BadRequest]:
    yield BadRequest("another country", _with(to="+442079460000"), 403, "number_not_allowed", ("to",))
    yield BadRequest("another's number", _with(**{"from": "+12025550199"}), 403, "from_not_allowed", ("from",))
    yield BadRequest(
        "another country from another's number",
        _with(**{"to": "+442079460000", "from": "+12025550199"}),
        403,
        "number_not_allowed",
        ("to", "from"),
    )


BAD_REQUESTS = tuple(bad_requests())

_FORGED = {
    "an object": "eyJhIjoxfQ",  # {"a":1}
    "one part": "WyJhIl0",  # ["a"]
    "numbers": "WzEsMl0",  # [1,2]
    "another key": "WyIyMDI2LTExLTI0VDA5OjMwOjAwLjAwMFoiLCJXT1JLU1BBQ0UjMSJd",
    "not a time": "WyJub3ciLCJDQUxMIzAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMCJd",
    "10,000 brackets": "W1tb" * 2500,
}

BAD_QUERIES = (
    *(BadQuery(f"status {text!a}", {"status": text}, ("status",)) for text in (
        "", "ringing", "Queued", "queued,busy", " queued", "completed\u0000",
    )),
    *(BadQuery(f"limit {_short(text)}", {"limit": text}, ("limit",)) for text in (
        "", "0", "101", "-1", "1.5", "ten", " 5", "5 ", "1e1", "0x10", "\u0665", "\u00b2", "9" * 5000, "20,20",
    )),
    *(BadQuery(f"to {_short(text)}", {"to": text}, ("to",)) for text in (
        "", "12025550123", "+", "+1", "+1202555012a", "abc", "+" + "1" * 16,
    )),
    *(BadQuery(f"agent {_short(text)}", {"agent": text}, ("agent",)) for text in (
        "", "a b", "agént", "x" * 129, "a#b",
    )),
    *(BadQuery(f"{name} {_short(text)}", {name: text}, (name,))
      for name in ("created_after", "created_before")
      for text in (
        "", "now", "0", "2026-11-24", "2026-11-24T09:30:00", "2026-11-24 09:30:00Z", "2026-11-24T09:30:00+0100",
        "2026-11-24T09:30:00+24:00", "2026-11-24T09:30:00+01:60", "2026-11-24T09:30:00+1",
        "2026-11-24T09:30:00  01:00", "2026-11-24T09:30:00Z+01:00", "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-11-24T24:00:00Z", "2026-11-24T09:30:61Z",
        "2026-11-24T09:30:00.1234Z", "２026-11-24T09:30:00Z", "2026-11-24T09:30:00Z ",
      )),
    *(BadQuery(f"cursor {_short(text)}", {"cursor": text}, ("cursor",)) for text in (
        "", "x", "====", "a b", "é", "../..", "bnVsbA",
    )),
    *(BadQuery(f"a forged cursor: {name}", {"cursor": text}, ("cursor",)) for name, text in _FORGED.items()),
    BadQuery("an unknown parameter", {"page": "2"}, ("page",)),
    BadQuery("an unknown parameter of 500 characters", {"p" * 500: "2"}, ("p" * 128,)),
    BadQuery("another's workspace", {"workspaceId": "other"}, ("workspaceId",)),
    BadQuery(
        "an end before the beginning",
        {"created_after": "2026-11-25T00:00:00Z", "created_before": "2026-11-24T00:00:00Z"},
        ("created_before",),
    ),
    BadQuery(
        "a cursor of another query",
        # ["2026-11-24T09:30:00.000Z","CALL#000000000000000000000000"]
        {
            "cursor": "WyIyMDI2LTExLTI0VDA5OjMwOjAwLjAwMFoiLCAiQ0FMTCMwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAiXQ",
            "created_before": "2026-11-23T00:00:00Z",
        },
        ("cursor",),
    ),
    BadQuery(
        "everything wrong",
        {"status": "x", "agent": "a b", "to": "x", "created_after": "x", "created_before": "x", "limit": "x",
         "cursor": "x", "page": "x"},
        ("status", "agent", "to", "created_after", "created_before", "limit", "cursor", "page"),
    ),
)  # a table: a request and its wrong fields  # fmt: skip

BAD_CALL_IDS = (
    "",
    "0",
    "0" * 23,
    "0" * 24,
    "0" * 25,
    "G" * 24,
    "A" * 24,
    "f9e8d7c6b5a4f3e2d1c0b9a8 ",
    "f9e8d7c6b5a4f3e2d1c0b9a\n",
    "CALL#f9e8d7c6b5a4f3e2d1c0b9a8",
    "../../../etc/passwd",
    "%2e%2e",
    "\u0660" * 24,
    "\u0000" * 24,
    "x" * 5000,
    "{callId}",
)
