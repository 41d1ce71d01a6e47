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
