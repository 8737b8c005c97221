"""The page at /docs of the local stack shows all of infra/openapi.yaml and needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from local.docs_page import html_page
from tests.openapi_page import PAGE, at, examples, media_types, operations

VOID = {"meta", "wbr", "br", "hr", "input"}


class Reader(HTMLParser):
    """Notes ids and links; fails on a tag that is not closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        assert not {"src", "onclick", "style"} & given.keys()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def read() -> Reader:
    reader = Reader()
    reader.feed(html_page())
    reader.close()
    return reader


def test_the_page_is_well_formed(read: Reader) -> None:
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))


def test_every_link_leads_somewhere(read: Reader) -> None:
    for link in read.links:
        there = link.removeprefix("#") in read.ids if link.startswith("#") else link.startswith("https://")
        assert there or link == "openapi.yaml", link


def test_nothing_comes_from_elsewhere(read: Reader) -> None:
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert "@import" not in html_page()
    assert "url(" not in html_page()


def test_it_is_light_and_dark() -> None:
    assert "prefers-color-scheme:dark" in html_page()


def test_every_operation_webhook_and_schema_is_there(read: Reader) -> None:
    places = [*operations().values(), *(f"/webhooks/{name}/post" for name in PAGE["webhooks"])]
    assert {at(place)["operationId"] for place in places} <= set(read.ids)
    assert {f"schema-{name}" for name in PAGE["components"]["schemas"]} <= set(read.ids)
    text = html_page()
    for name in PAGE["components"]["schemas"]["CallRequest"]["properties"]:
        assert f"<code>{name}</code>" in text


def test_a_schema_is_folded_and_its_place_is_inside_so_that_a_link_opens_it() -> None:
    folded = re.findall(
        r'<details class=schema><summary><h3>(\w+)</h3></summary><div id="schema-(\w+)">', html_page()
    )
    assert folded == [(name, name) for name in PAGE["components"]["schemas"]]


def test_no_long_regular_expression_is_shown() -> None:
    shown = re.findall(r"<code class=pattern>(.*?)</code>", html_page())
    assert shown
    assert max(map(len, map(unescape, shown))) <= 40


def test_every_example_is_there() -> None:
    text = html_page()
    for media_type in media_types():
        for value in examples(media_type).values():
            assert escape(json.dumps(value, indent=2, ensure_ascii=False)) in text


def test_what_the_document_says_stays_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    document = tmp_path / "page.yaml"
    text = json.dumps(
        {
            "info": {"title": hostile, "summary": hostile, "description": f"## {hostile}\n\n{hostile}"},
            "tags": [{"name": hostile, "description": hostile}],
            "paths": {
                f"/{hostile}": {
                    "get": {
                        "operationId": hostile,
                        "tags": [hostile],
                        "summary": hostile,
                        "description": hostile,
                        "parameters": [{"name": hostile, "in": hostile, "schema": {"pattern": hostile}}],
                        "responses": {hostile: {"description": hostile}},
                    }
                }
            },
            "components": {"schemas": {hostile: {"type": hostile, "enum": [hostile]}}},
        }
    )
    document.write_text(text)
    made = html_page(document)
    assert "<script" not in made
    assert len(re.findall("&lt;script", made)) >= 10
