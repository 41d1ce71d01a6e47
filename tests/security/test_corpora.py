"""What is written, attached and answered to make a spreadsheet, a browser or a reader work for somebody else: `corpora/`."""

import asyncio
import csv
import io
import json
import re
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest

from apps.sdk.intake import CannotReadFile, close_intake, read_upload
from apps.sdk.office import csv_file
from apps.sdk.ui.render import GrowingMarkdown, render_markdown
from gateway.contracts import BadRequest, parse_request
from gateway.server.providers.base import Operation
from tenants.text_cells import text_cell

FOLDER = Path(__file__).parent / "corpora"
ROOT = Path(__file__).resolve().parents[2]


def corpus(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CELLS = corpus("csv_injection")["cell"]


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: repr(c["text"]))
def test_a_cell_runs_in_no_spreadsheet(cell: dict[str, Any]) -> None:
    written = csv_file("表.csv", ["課", "額"], [[cell["text"], 3]]).body
    rows = list(csv.reader(io.StringIO(bytes(written).decode("utf-8-sig"), newline="")))
    assert rows == [["課", "額"], ["'" * cell["kept"] + cell["text"], "3"]]
    assert text_cell(cell["text"]) == rows[1][0]


def test_every_writer_of_csv_keeps_formulas_as_text() -> None:
    writers = [
        path
        for layer in ("apps", "gateway", "kumiai", "tenants")
        for path in (ROOT / layer).rglob("*.py")
        if "tests" not in path.parts and re.search(r"csv\.(Dict)?[Ww]riter\(", path.read_text("utf-8"))
    ]
    assert len(writers) >= 4
    assert [str(p) for p in writers if "import text_cell" not in p.read_text("utf-8")] == []


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

ANSWERS = corpus("markdown_xss")["answer"]
TAGS = frozenset(
    [
        "p",
        "br",
        "strong",
        "em",
        "del",
        "code",
        "pre",
        "blockquote",
        "ul",
        "ol",
        "li",
        "hr",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "div",
        "span",
    ]
)
ATTRIBUTES = frozenset({"class", "scope", "tabindex", "role", "aria-label", "start"})
# The only things our own markup says with them.
VALUES = re.compile(r"(k-[\w-]+|p-[\w-]+|is-[\w-]+| )+|col|row|0|group|表|コード|\d+")


class Markup(HTMLParser):
    """What a browser would make of it: tags with attributes, and the text that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.tags.append(("!--", []))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("!", []))

    def check(self) -> None:
        assert {tag for tag, _ in self.tags} <= TAGS
        for tag, attributes in self.tags:
            for name, value in attributes:
                assert name in ATTRIBUTES, (tag, name)
                assert VALUES.fullmatch(value or ""), (tag, name, value)


def grown(text: str, seed: int) -> str:
    """The answer as it comes, in pieces of a model's making."""
    rng, growing, blocks = Random(seed), GrowingMarkdown(), list[str]()
    while text:
        size = rng.randint(1, 5)
        growing.add(text[:size])
        text = text[size:]
        first, changed = growing.changed()
        blocks[first:] = changed
        Markup("".join(blocks)).check()
    return "".join(blocks)


def test_the_corpus_finds_markup_that_does_something() -> None:
    for html in ("<p><a href=x>x</a></p>", '<p onclick="x">x</p>', "<!-- x -->", '<div class="x" style="y"></div>'):
        with pytest.raises(AssertionError):
            Markup(html).check()


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: a["text"][:40])
def test_an_answer_is_text_and_our_own_markup(answer: dict[str, str]) -> None:
    whole = Markup(str(render_markdown(answer["text"])))
    whole.check()
    assert answer["shown"] in whole.text
    for seed in range(3):
        assert answer["shown"] in Markup(grown(answer["text"], seed)).text


def test_answers_one_after_the_other_are_no_different() -> None:
    rng = Random(7)
    for _ in range(30):
        text = rng.choice(("\n\n", "\n", "")).join(a["text"] for a in rng.sample(ANSWERS, 6))
        Markup(str(render_markdown(text))).check()
        grown(text, 1)


# ── addresses to be fetched ──────────────────────────────────────────────────────────────────────────────────────

URLS = [url.replace("{port}", "9") for url in corpus("ssrf")["urls"]]
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "a picture": lambda url: {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    },
    "a picture, as text": lambda url: {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
    },
    "a file": lambda url: {
        "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_url": url}}]}]
    },
    "a recording": lambda url: {
        "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": url}}]}]
    },
    "a tool of the vendor": lambda url: {"tools": [{"type": "mcp", "server_label": "x", "server_url": url}]},
    "a search of the vendor": lambda url: {"web_search_options": {"user_location": url}},
    "a source of the vendor": lambda url: {"data_sources": [{"type": "azure_search", "parameters": {"endpoint": url}}]},
    "a schema": lambda url: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
    },
    "a schema of a tool": lambda url: {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"$ref": url}}}}}]
    },
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_nobody_makes_the_gateway_or_a_model_fetch_an_address(place: str) -> None:
    plain = {"model": "standard", "messages": [{"role": "user", "content": "水"}]}
    assert parse_request(Operation.CHAT, json.dumps(plain).encode())
    for url in URLS:
        with pytest.raises(BadRequest):
            parse_request(Operation.CHAT, json.dumps(plain | PLACES[place](url)).encode())


# ── bombs ────────────────────────────────────────────────────────────────────────────────────────────────────────

FILES = corpus("bombs")["file"]
BOOK = b'<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" '
BOOK += b'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">'
BOOK += b'<sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>'
RELATIONS = (
    b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
)
RELATIONS += b'Type="http://x/worksheet" Target="worksheets/sheet1.xml"/></Relationships>'


def zipped(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, body in members:
            new.writestr(name, body)
    return out.getvalue()


def book(sheet: bytes) -> bytes:
    rows = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>' + sheet
    return zipped(
        ("xl/workbook.xml", BOOK), ("xl/_rels/workbook.xml.rels", RELATIONS),
        ("xl/worksheets/sheet1.xml", rows + b"</sheetData></worksheet>"),
    )  # fmt: skip


def declared(doctype: str, body: str = "<a>&c;</a>") -> bytes:
    return zipped(("word/document.xml", f'<?xml version="1.0"?><!DOCTYPE a {doctype}>{body}'.encode()))


def lying_size() -> bytes:
    """The directory says ten bytes; the member unpacks to fifty megabytes."""
    data = bytearray(zipped(("xl/workbook.xml", b"<a>" + b" " * 50_000_000 + b"</a>")))
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    return bytes(data)


def encrypted_member() -> bytes:
    data = bytearray(zipped(("xl/workbook.xml", b"<a/>")))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def pdf(body: bytes) -> bytes:
    return b"%PDF-1.7\n" + body + b"\ntrailer<</Root 1 0 R/Size 9>>\n%%EOF\n"


def pdf_stream() -> bytes:
    packed = zlib.compress(b"BT (x) Tj ET " * 8_000_000, 9)
    head = b"1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    head += b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>endobj\n"
    head += b"4 0 obj<</Filter/FlateDecode/Length %d>>stream\n" % len(packed)
    return pdf(head + packed + b"\nendstream endobj")


RECIPES: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: zipped(("xl/workbook.xml", b"<a>" + b" " * 60_000_000 + b"</a>")),
    "many_members": lambda: zipped(*((f"xl/{n}", b"") for n in range(6_000)), how=zipfile.ZIP_STORED),
    "sum_of_members": lambda: zipped(*((f"word/{n}.bin", b"ab" * 450_000) for n in range(250))),
    "same_name_twice": lambda: zipped(("xl/workbook.xml", b"<a/>"), ("xl/workbook.xml", b"<b/>")),
    "lying_size": lying_size,
    "billion_laughs": lambda: declared(
        "[<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10)) + "]", "<a>&a9;</a>"
    ),
    "outer_entity": lambda: declared('[<!ENTITY c SYSTEM "file:///etc/passwd">]'),
    "outer_dtd": lambda: zipped(("xl/workbook.xml", b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd"><a/>')),
    "entity_in_utf16": lambda: zipped(
        ("word/document.xml", '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY c "x">]><a>&c;</a>'.encode("utf-16"))
    ),
    "encrypted_member": encrypted_member,
    "nested": lambda: zipped(("a.zip", zipped(("b.zip", zipped(("c.txt", b"0" * 9_000_000)))))),
    "climbing_names": lambda: zipped(("xl/workbook.xml", b"<a"), ("../../../../tmp/x", b"x"), ("/etc/x", b"x")),
    "huge_sheet": lambda: book(b"".join(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (n, n) for n in range(1, 90))),
    "wide_sheet": lambda: book(b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'),
    "deep_xml": lambda: zipped(("word/document.xml", b"<a>" * 200_000 + b"</a>" * 200_000)),
    "pdf_stream": pdf_stream,
    "pdf_loop": lambda: pdf(
        b"1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2147483647>>endobj"
    ),
    "long_line": lambda: b"a," * 9_000_000,
    "many_quotes": lambda: b'"' * 9_000_001,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    asyncio.run(close_intake())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f["make"])
async def test_a_bomb_does_not_go_off(file: dict[str, str]) -> None:
    try:
        await read_upload(file["name"], RECIPES[file["make"]](), timeout_s=60)
        told = "read"
    except CannotReadFile as problem:
        told = problem.type.rpartition(":")[2]
    assert file["told"] in (told, "bounded")
    # Whoever comes next is read.
    assert (await read_upload("次.csv", "課,数\n水,3\n".encode())).tables


def test_every_recipe_is_in_the_corpus() -> None:
    assert {f["make"] for f in FILES} == set(RECIPES)
