"""Files as an office has them, made on the spot."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import noto_cjk_sans_jp_regular
import typst

FONTS = str(Path(noto_cjk_sans_jp_regular.__file__).parent)
HEAD = '#set text(font: "Noto Sans CJK JP", lang: "ja", size: 11pt)\n#set page(paper: "a4")\n'
# A grey picture as wide as the page, as a scanner leaves it.
SCAN = '#place(top + left, dx: -2cm, dy: -2cm, image("scan.png", width: 20cm, height: 28cm))\n'


def pdf(body: str, folder: Path) -> bytes:
    """A PDF with a real text layer; `scan.png` lies beside it for whoever wants a page without one."""
    source = folder / "main.typ"
    source.write_text(HEAD + body, "utf-8")
    (folder / "scan.png").write_bytes(png(40, 56))
    return bytes(typst.compile(source, format="pdf", font_paths=[FONTS], ignore_system_fonts=True))


def vertical(columns: list[str]) -> str:
    """Typst cannot set vertical Japanese; characters stacked one by one look the same in the PDF."""
    stacks = ", ".join("stack(dir: ttb, spacing: 2pt, " + ", ".join(f"[{c}]" for c in text) + ")" for text in columns)
    return f"#stack(dir: rtl, spacing: 12pt, {stacks})"


def without_unicode(data: bytes) -> bytes:
    """The same PDF whose fonts no longer say which character a glyph is."""
    assert b"/ToUnicode" in data
    return data.replace(b"/ToUnicode", b"/XxUnicode")


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\x00" + b"\x99" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def repacked(data: bytes, changes: dict[str, bytes]) -> bytes:
    """An Office file with some members replaced or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in changes:
                new.writestr(name, old.read(name))
        for name, body in changes.items():
            new.writestr(name, body)
    return out.getvalue()


_P = "http://schemas.openxmlformats.org/presentationml/2006/main"
_A = "http://schemas.openxmlformats.org/drawingml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
NAMESPACES = f'xmlns:p="{_P}" xmlns:a="{_A}" xmlns:r="{_R}"'


def relationships(*related: tuple[str, str, str]) -> bytes:
    """A part's relations: (id, last word of the type, target)."""
    far = ' TargetMode="External"'
    inside = "".join(
        f'<Relationship Id="{i}" Type="{_R}/{kind}" Target="{target}"{far if ":" in target else ""}/>'
        for i, kind, target in related
    )
    space = "http://schemas.openxmlformats.org/package/2006/relationships"
    return f'<Relationships xmlns="{space}">{inside}</Relationships>'.encode()


def shape(text: str, *, alternative: str = "", frame: str = "") -> str:
    """A shape of a slide with one paragraph for each line."""
    lines = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    placed = f'<p:nvPr><p:ph type="{frame}"/></p:nvPr>' if frame else "<p:nvPr/>"
    return (
        f'<p:sp><p:nvSpPr><p:cNvPr id="2" name="n" descr="{alternative}"/><p:cNvSpPr/>{placed}</p:nvSpPr>'
        f"<p:txBody>{lines}</p:txBody></p:sp>"
    )


def slide(*shapes: str, show: str = "1", root: str = "sld") -> bytes:
    tree = f"<p:cSld><p:spTree>{''.join(shapes)}</p:spTree></p:cSld>"
    return f'<p:{root} {NAMESPACES} show="{show}">{tree}</p:{root}>'.encode()


def pptx(slides: list[bytes], more: dict[str, bytes] | None = None) -> bytes:
    """A presentation of slides; `more`: further members, which may stand for those that are made here."""
    ids = "".join(f'<p:sldId id="{256 + i}" r:id="rId{i}"/>' for i in range(len(slides)))
    members = {
        "[Content_Types].xml": b"<Types/>",
        "_rels/.rels": relationships(("rId1", "officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f"<p:presentation {NAMESPACES}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>".encode(),
        "ppt/_rels/presentation.xml.rels": relationships(
            *((f"rId{i}", "slide", f"slides/slide{i + 1}.xml") for i in range(len(slides)))
        ),
        **{f"ppt/slides/slide{i + 1}.xml": body for i, body in enumerate(slides)},
        **(more or {}),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return out.getvalue()
