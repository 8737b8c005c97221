"""infra/openapi.yaml as one HTML page, made on the server: no script, nothing from other hosts, light and dark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

DOCUMENT = Path(__file__).resolve().parents[1] / "infra" / "openapi.yaml"
METHODS = ("get", "post", "put", "patch", "delete")
# The API's address in the document's examples.
PLACEHOLDER = "https://API"
# A longer regular expression says less than the description of its field.
LONGEST_PATTERN = 40

Json = dict[str, Any]

# Raw HTML in the document stays text.
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table")


@lru_cache(maxsize=4)
def html_page(document: Path = DOCUMENT, address: str = PLACEHOLDER) -> str:
    """The page of an OpenAPI 3.1 document, with `address` as the API's URL in its examples.

    Raises OSError or yaml.YAMLError when the document cannot be read.
    """
    text = document.read_text(encoding="utf-8").replace(f"{PLACEHOLDER}/", f"{address}/")
    return _Page(yaml.safe_load(text)).html()


class _Page:
    def __init__(self, document: Json) -> None:
        self.document = document

    def html(self) -> str:
        info = self.document["info"]
        title = escape(info["title"])
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title} API</title><style>{_STYLE}</style></head><body>"
            f"<nav><a class=name href=#top>{title}</a>"
            "<input type=checkbox id=contents><label for=contents>Contents</label>"
            f"<div>{''.join(self.navigation())}</div></nav>"
            f"<main id=top><header><h1>{title} API</h1><p class=lead>{escape(info['summary'])}</p>"
            "<p>For programs: <a href=openapi.yaml>openapi.yaml</a></p></header>"
            f"<section class=text>{self.text()}</section>{''.join(self.sections())}"
            f"<section><h2 id=schemas>Schemas</h2>{''.join(self.schemas())}</section></main></body></html>"
        )

    # ── parts of the page ───────────────────────────────────────────────────────────────────────

    def navigation(self) -> Iterator[str]:
        for heading in re.findall(r"^## (.+)$", self.document["info"]["description"], re.MULTILINE):
            yield f'<a href="#{_anchor(heading)}">{escape(heading)}</a>'
        for tag, operations in self.by_tag():
            yield f"<b>{escape(tag['name'])}</b>"
            for method, _, operation in operations:
                yield (
                    f'<a href="#{escape(operation["operationId"])}"><i class={method}>{method.upper()}</i> '
                    f"{escape(operation['summary'])}</a>"
                )
        yield '<b><a href="#schemas">Schemas</a></b>'

    def text(self) -> str:
        html = _text(self.document["info"]["description"])
        return re.sub(r"<h2>(.*?)</h2>", lambda found: f'<h2 id="{_anchor(found[1])}">{found[1]}</h2>', html)

    def by_tag(self) -> list[tuple[Json, list[tuple[str, str, Json]]]]:
        """Each tag with its operations: method, path (of a webhook: its event), operation."""
        found = [
            (method, path, self.with_shared_parameters(item, operation))
            for group in ("paths", "webhooks")
            for path, item in self.document.get(group, {}).items()
            for method, operation in item.items()
            if method in METHODS
        ]
        return [
            (tag, [entry for entry in found if tag["name"] in entry[2]["tags"]]) for tag in self.document["tags"]
        ]

    def with_shared_parameters(self, item: Json, operation: Json) -> Json:
        return operation | {"parameters": item.get("parameters", []) + operation.get("parameters", [])}

    def sections(self) -> Iterator[str]:
        for tag, operations in self.by_tag():
            yield f"<section><h2>{escape(tag['name'])}</h2>{_text(tag.get('description'))}"
            for method, path, operation in operations:
                yield self.operation(method, path, operation)
            yield "</section>"

    def operation(self, method: str, path: str, operation: Json) -> str:
        body = operation.get("requestBody", {}).get("content", {})
        return (
            f'<article id="{escape(operation["operationId"])}"><h3>{escape(operation["summary"])}</h3>'
            f"<p class=route><i class={method}>{method.upper()}</i> <code>{_path(path)}</code></p>"
            f"{_text(operation.get('description'))}"
            f"{self.parameters(operation['parameters'])}"
            f"{''.join(self.body(kind, media_type) for kind, media_type in body.items())}"
            f"<h4>Answers</h4>{''.join(self.answers(operation['responses']))}</article>"
        )

    def parameters(self, parameters: list[Json]) -> str:
        rows = []
        for given in parameters:
            parameter = self.resolved(given)
            rows.append(
                self.row(
                    f"<code>{escape(parameter['name'])}</code><small>{escape(parameter['in'])}</small>",
                    parameter["schema"],
                    parameter.get("required", False),
                    parameter.get("description"),
                )
            )
        return f"<h4>Parameters</h4>{_table(rows)}" if rows else ""

    def body(self, kind: str, media_type: Json) -> str:
        return (
            f"<h4>Body <small>{escape(kind)}</small></h4>{self.schema(media_type['schema'])}"
            f"{''.join(_examples(media_type))}"
        )

    def answers(self, responses: Json) -> Iterator[str]:
        for status, given in responses.items():
            response = self.resolved(given)
            name = f"<b class=s{str(status)[0]}>{escape(str(status))}</b>"
            details = []
            headers = "".join(
                f"<li><code>{escape(header)}</code> {_inline(self.resolved(value).get('description'))}</li>"
                for header, value in response.get("headers", {}).items()
            )
            if headers:
                details.append(f"<h5>Headers</h5><ul>{headers}</ul>")
            for media_type in response.get("content", {}).values():
                reference = _reference(media_type["schema"])
                if reference:
                    details.append(f"<p>Schema: {self.type(media_type['schema'])}</p>")
                details += _examples(media_type)
            text = f"<div>{_text(response['description'])}</div>"
            if details:
                yield f"<details class=answer><summary>{name}{text}</summary>{''.join(details)}</details>"
            else:
                yield f"<div class=answer>{name}{text}</div>"

    def schemas(self) -> Iterator[str]:
        for name, schema in self.document["components"]["schemas"].items():
            # The id is inside: browsers open a <details> that a link leads into.
            yield (
                f"<details class=schema><summary><h3>{escape(name)}</h3></summary>"
                f'<div id="schema-{escape(name)}">{_text(schema.get("description"))}{self.schema(schema)}</div>'
                "</details>"
            )

    # ── schemas ─────────────────────────────────────────────────────────────────────────────────

    def schema(self, schema: Json) -> str:
        """A table of an object's fields; of anything else, what it is."""
        required = set()
        fields: Json = {}
        for part in self.parts(schema):
            required |= set(part.get("required", ()))
            for name, field in part.get("properties", {}).items():
                fields[name] = {**fields.get(name, {}), **field}
        if not fields:
            return f"<p>{self.type(schema)}{self.limits(schema)}</p>"
        rows = [
            self.row(f"<code>{escape(name)}</code>", field, name in required, field.get("description"))
            for name, field in fields.items()
        ]
        return _table(rows)

    def parts(self, schema: Json) -> Iterator[Json]:
        """The schema and all that it is composed of."""
        if "$ref" in schema:
            yield from self.parts(self.resolved(schema))
        for part in schema.get("allOf", ()):
            yield from self.parts(part)
        yield schema

    def row(self, name: str, schema: Json, required: bool, description: str | None) -> str:
        word = "<small class=required>required</small>" if required else ""
        target = self.resolved(schema)
        text = _text(description or target.get("description"))
        return f"<tr><td>{name}{word}</td><td>{self.type(schema)}{self.limits(schema)}</td><td>{text}</td></tr>"

    def type(self, schema: Json) -> str:
        """What a value is, in a word, with a link to the schema of that name."""
        reference = _reference(schema)
        if reference:
            return f'<a href="#schema-{escape(reference)}">{escape(reference)}</a>'
        if "const" in schema:
            return f"<code>{escape(json.dumps(schema['const']))}</code>"
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return " or ".join(self.type(part) for part in schema[several])
        if schema.get("type") == "array":
            return f"array of {self.type(schema['items'])}"
        kinds = schema.get("type", "object" if "properties" in schema or "allOf" in schema else "any")
        return escape(" or ".join(kinds) if isinstance(kinds, list) else kinds)

    def limits(self, schema: Json) -> str:
        said = []
        if "enum" in schema:
            said.append(", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"]))
        if "minimum" in schema or "maximum" in schema:
            least, most = schema.get("minimum"), schema.get("maximum")
            said.append(f"at least {least}" if most is None else f"{least} to {most:,}")
        if "maxLength" in schema:
            said.append(f"at most {schema['maxLength']:,} characters")
        if "maxProperties" in schema:
            said.append(f"at most {schema['maxProperties']} keys")
        if "default" in schema:
            said.append(f"default <code>{escape(json.dumps(schema['default']))}</code>")
        if len(schema.get("pattern", "")) in range(1, LONGEST_PATTERN + 1):
            said.append(f"<code class=pattern>{escape(schema['pattern'])}</code>")
        for part in schema.get("anyOf", ()):
            if "$ref" not in part:
                said.append(self.limits(part))
        return "".join(f"<small>{entry}</small>" for entry in said if entry)

    def resolved(self, value: Json) -> Json:
        """What a $ref leads to, or the value itself."""
        if "$ref" not in value:
            return value
        found: Any = self.document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        return self.resolved(found)


def _reference(schema: Json) -> str | None:
    """The name of the schema this one is, or is a narrower kind of."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    return _reference(schema["allOf"][0]) if "allOf" in schema else None


def _examples(media_type: Json) -> list[str]:
    return [
        f"<details><summary>Example: {escape(example.get('summary', name))}</summary>"
        f"<pre>{escape(json.dumps(example['value'], indent=2, ensure_ascii=False))}</pre></details>"
        for name, example in media_type.get("examples", {}).items()
    ]


def _table(rows: list[str]) -> str:
    return f"<div class=wide><table class=fields>{''.join(rows)}</table></div>"


def _path(path: str) -> str:
    """With its parameters marked, and places where it may be broken."""
    return re.sub(r"(\{\w+\})", r"<var>\1</var>", escape(path).replace("/", "/<wbr>"))


def _text(markdown: str | None) -> str:
    return str(_markdown.render(markdown)) if markdown else ""


def _inline(markdown: str | None) -> str:
    return str(_markdown.renderInline(markdown)) if markdown else ""


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


_STYLE = """
:root{color-scheme:light dark;--back:#fff;--soft:#f5f6f8;--line:#dfe2e8;--text:#1d2330;--faint:#626b7c;
--accent:#2457d6;--get:#1f6feb;--post:#178a4c;--good:#178a4c;--bad:#b3401f;--worse:#a3123f}
@media(prefers-color-scheme:dark){:root{--back:#12151b;--soft:#1a1f28;--line:#2c3340;--text:#e4e8ef;
--faint:#98a2b3;--accent:#7aa5ff;--get:#6ea8ff;--post:#52c98a;--good:#52c98a;--bad:#ef9273;--worse:#ff7a9c}}
*{box-sizing:border-box}html{scroll-padding-top:1rem}
body{margin:0;display:grid;grid-template-columns:17rem minmax(0,1fr);background:var(--back);color:var(--text);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1.25rem 1rem;background:var(--soft);
border-right:1px solid var(--line);font-size:.875rem}
nav a{display:block;padding:.15rem .25rem;color:inherit}nav b{display:block;margin:1rem .25rem .25rem}
nav b a{padding:0}nav .name{font-size:1.1rem;font-weight:700;margin-bottom:.75rem}
nav input,nav label{display:none}
main{padding:2rem clamp(1rem,4vw,3.5rem) 6rem;max-width:68rem}
h1{font-size:2rem;margin:0}.lead{font-size:1.15rem;color:var(--faint);margin:.25rem 0 1.5rem}
h2{margin:3rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}.text h2{border:0;margin-top:1.5rem}
h3{margin:0 0 .5rem}h4{margin:1.5rem 0 .5rem}h4 small{font-weight:400}h5{margin:.5rem 0 .25rem}
article,.schema{margin:1rem 0;padding:1.25rem 1.25rem .75rem;border:1px solid var(--line);border-radius:10px}
.schema{margin:.5rem 0;padding:.6rem 1.25rem}.schema h3{display:inline;font-size:1rem}
.schema>div{scroll-margin-top:4rem;padding-top:.5rem}
.text{max-width:46rem}
code,pre{font:.85em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--soft);padding:.1em .3em;border-radius:4px;overflow-wrap:anywhere}
pre{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:.75rem 1rem;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
pre code{background:none;padding:0}
.route{margin:.25rem 0 .5rem}.route code{font-size:1rem}var{font-style:normal;color:var(--accent)}
i.get,i.post{font-style:normal;font-weight:700;font-size:.75em;color:var(--get)}i.post{color:var(--post)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.925rem}
td,th{text-align:left;vertical-align:top;padding:.5rem .75rem .5rem 0;border-top:1px solid var(--line)}
.fields td:first-child{width:26%}.fields td:nth-child(2){width:30%;overflow-wrap:anywhere}
td p,summary p,.answer p{margin:0 0 .25rem}small{display:block;color:var(--faint);font-size:.8rem}
h4 small{display:inline}small.required{color:var(--bad)}code.pattern{font-size:.75rem}
.answer{border-top:1px solid var(--line);padding:.5rem 0}.answer>summary,div.answer{cursor:pointer;display:grid;
grid-template-columns:3.5rem minmax(0,1fr);list-style:none}div.answer{cursor:auto}
.answer>summary b::after{content:" ▸";color:var(--faint);font-size:.7em}
details[open].answer>summary b::after{content:" ▾"}
.answer>summary:hover{background:var(--soft)}.answer>summary::-webkit-details-marker{display:none}
details.answer>:not(summary){margin-left:3.5rem}summary{cursor:pointer}
b.s2{color:var(--good)}b.s4{color:var(--bad)}b.s5,b.sd{color:var(--worse)}
@media(max-width:56rem){body{display:block}
nav{position:static;height:auto;border-right:0;display:grid;
grid-template-columns:1fr auto 1.5rem;align-items:center}
nav .name{margin:0}nav input{display:block;order:1}nav label{display:block}
nav div{display:none;grid-column:1/-1;order:2;columns:2}nav b{break-after:avoid}
nav input:checked~div{display:block}}
@media(max-width:40rem){article,.schema{padding-inline:.75rem}.fields tr,.fields td{display:block}
.fields td,.fields td:first-child,.fields td:nth-child(2){width:auto;border:0;padding:.1rem 0}
.fields tr{border-top:1px solid var(--line);padding:.5rem 0}
.fields td:first-child small{display:inline;margin-left:.5rem}
details.answer>:not(summary){margin-left:0}}
@media print{nav{display:none}body{display:block}}
"""
