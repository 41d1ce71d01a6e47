"""Reads PDFs page by page and says of each page whether its characters can be trusted."""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from gateway.reading.legibility import garbled, misread, unreadable
from gateway.reading.pictures import SIDE, lines_in
from gateway.reading.problems import CorruptFile, FileTooLarge, ProtectedFile, check_characters
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark, joined, listed

# A page whose picture covers this much and whose text is this short is a scan with a page number or a stamp on it.
_SCAN_COVERS = 0.5
_SCAN_TEXT_AT_MOST = 30
_OBJECTS_LOOKED_AT = 5_000
# Setting Japanese beside digits leaves a quarter of an em, which pdfium takes for a space; a real gap is wider.
_NARROW_GAP_EM = 0.6
_TINY_PT = 1.5
# A page takes a second or two, and a person waits; what is left then stays a picture, and is said to be one.
_SCANS_S = 10.0
# A line of letters in the smallest size that anybody reads.
_LETTERS_FROM_PIXELS = 10_000
_COPY_ALLOWED = 0x10
_MODE_INVISIBLE = 3
_PROPERTY_WORDS = {"Author": "作成者", "Subject": "サブタイトル", "Keywords": "キーワード"}


@dataclass(frozen=True, slots=True)
class _Glyph:
    character: str
    left: float
    bottom: float
    right: float
    top: float

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.bottom + self.top) / 2

    @property
    def size(self) -> float:
        return max(self.right - self.left, self.top - self.bottom, 0.1)


@dataclass(slots=True)
class _PageFacts:
    text: str = ""
    unmapped: int = 0
    is_vertical: bool = False
    images: int = 0
    image_cover: float = 0.0
    image_pixels: int = 0
    objects: int = 0
    is_crowded: bool = False
    visible_texts: int = 0
    invisible_texts: int = 0
    pale_texts: int = 0
    fields: list[str] = field(default_factory=list)
    notes: int = 0
    is_scan_read: bool = False


def read_pdf(data: bytes, limits: Limits, *, reads_pictures: bool = False) -> Reading:
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if raw.FPDF_GetLastError() == raw.FPDF_ERR_PASSWORD or "password" in str(error).lower():
            raise ProtectedFile("パスワードを外して保存し直してから、もう一度添付してください。") from error
        raise CorruptFile("PDFを開けるか確かめて、作り直すか保存し直してください。") from error
    try:
        return _read(document, limits, reads_pictures=reads_pictures)
    except pdfium.PdfiumError as error:
        raise CorruptFile("PDFを開けるか確かめて、作り直すか保存し直してください。") from error
    finally:
        document.close()


def _read(document: pdfium.PdfDocument, limits: Limits, *, reads_pictures: bool) -> Reading:
    count = len(document)
    if count == 0:
        raise CorruptFile("ページがひとつもありません。PDFを作り直してください。")
    if count > limits.max_pages:
        raise FileTooLarge(f"{limits.max_pages}ページまでに分けて添付してください。", limit_pages=limits.max_pages)
    parts: list[Part] = []
    facts: list[_PageFacts] = []
    characters = 0
    until = time.monotonic() + _SCANS_S
    for index in range(count):
        page = _facts(document, index)
        characters += len(page.text)
        check_characters(characters, limits.max_characters)
        facts.append(page)
        part = _part(index + 1, page)
        may_hold_letters = part.state is PartState.EMPTY and page.image_pixels >= _LETTERS_FROM_PIXELS
        if reads_pictures and may_hold_letters and time.monotonic() < until:
            part = _scanned(document, index, part)
            page.is_scan_read = part.state is PartState.OK
            characters += len(part.text)
        parts.append(part)
    warnings = _warnings(facts, parts)
    return Reading(
        kind=Kind.PDF,
        text=joined(tuple(parts)),
        parts=tuple(parts),
        warnings=tuple(warnings),
        tables=(),
        findings=tuple(_findings(document, facts)),
        summary=_summary(parts),
        has_unread=any(_holds_unread(page, part) for page, part in zip(facts, parts, strict=True))
        or document.count_attachments() > 0,
    )


def _holds_unread(page: _PageFacts, part: Part) -> bool:
    """Whether a page has something that nobody here has read; a page with nothing on it has not."""
    if part.state is PartState.OK:
        return bool(page.images or page.notes or page.is_crowded)
    return bool(page.objects or page.notes)


def _part(number: int, page: _PageFacts) -> Part:
    label = f"{number}ページ"
    letters = "".join(page.text.split())
    if not letters:
        if page.images:
            return Part(label, "", PartState.EMPTY, "画像だけのページです。文字を読み取れません")
        if page.objects:
            return Part(label, "", PartState.EMPTY, "図形だけのページです。文字を読み取れません")
        return Part(label, "", PartState.EMPTY, "白紙のページです")
    if garbled(page.text, unmapped=page.unmapped):
        return Part(label, page.text, PartState.GARBLED, "文字化けしています。元の資料で確かめてください")
    if page.image_cover > _SCAN_COVERS and len(letters) <= _SCAN_TEXT_AT_MOST:
        return Part(label, page.text, PartState.EMPTY, "ほとんどが画像のページです。画像の中の文字は読み取れません")
    note = "縦書きのページです" if page.is_vertical else ""
    return Part(label, page.text, PartState.OK, note)


def _scanned(document: pdfium.PdfDocument, index: int, part: Part) -> Part:
    """A page that is a picture, with the letters that were read in it; as it was where there are none."""
    page = document[index]
    try:
        scale = SIDE / max(page.get_width(), page.get_height(), 1.0)
        bitmap = page.render(scale=scale)
        text = "\n".join(lines_in(bitmap.to_numpy()[:, :, :3]))
        bitmap.close()
    finally:
        page.close()
    if not text.strip():
        return part
    note = "画像のページから読み取った文字です。元の資料と見比べてください"
    return Part(part.label, text, PartState.OK, note, is_seen=True)


def _warnings(facts: Sequence[_PageFacts], parts: Sequence[Part]) -> list[Remark]:
    warnings = [
        Remark("unread-page" if part.state is PartState.EMPTY else "garbled-page", f"{part.note}。", part.label)
        for part in parts
        if part.state in (PartState.EMPTY, PartState.GARBLED)
    ]
    for page, part in zip(facts, parts, strict=True):
        if part.state is not PartState.OK:
            continue
        lost = sum(map(unreadable, page.text)) or page.unmapped
        if lost:
            warnings.append(Remark("gaiji", f"外字など、読み取れない文字が{lost}字あります。", part.label))
        if misread(page.text):
            warnings.append(Remark("misread", "文字化けの疑いがあります。", part.label))
    vertical = [i for i, page in enumerate(facts, 1) if page.is_vertical]
    if vertical:
        warnings.append(
            Remark(
                "vertical-text",
                "縦書きのページを、右の行から順に並べました。読む順番が合っているか確かめてください。",
                listed(vertical, "ページ"),
            )
        )
    scans = [i for i, page in enumerate(facts, 1) if page.is_scan_read]
    if scans:
        words = "画像のページの文字を読み取りました。読み誤りがないか、元の資料と見比べてください。"
        warnings.append(Remark("scan", words, listed(scans, "ページ")))
    pictures = [
        i
        for i, (page, part) in enumerate(zip(facts, parts, strict=True), 1)
        if page.images and part.state is PartState.OK and not page.is_scan_read
    ]
    if pictures:
        total = sum(facts[i - 1].images for i in pictures)
        warnings.append(
            Remark("image", f"画像が{total}点あります。画像の中の文字は読んでいません。", listed(pictures, "ページ"))
        )
    crowded = [i for i, page in enumerate(facts, 1) if page.is_crowded]
    if crowded:
        words = "図や線がとても多いページです。画像があるかどうかは調べきれていません。"
        warnings.append(Remark("crowded-page", words, listed(crowded, "ページ")))
    return warnings


def _findings(document: pdfium.PdfDocument, facts: Sequence[_PageFacts]) -> list[Remark]:
    findings = []
    properties = document.get_metadata_dict(skip_empty=True)
    for key, words in _PROPERTY_WORDS.items():
        if value := properties.get(key, "").strip():
            findings.append(Remark("property", f"文書の情報に{words}「{value[:80]}」が残っています。", "文書の情報"))
    scanned = [i for i, page in enumerate(facts, 1) if page.invisible_texts and not page.visible_texts]
    if scanned:
        findings.append(
            Remark(
                "ocr-layer",
                "画像に重ねられた文字（OCRの結果）を読み取りました。読み誤りがないか確かめてください。",
                listed(scanned, "ページ"),
            )
        )
    for code, words, pages in (
        (
            "invisible-text",
            "目に見えない文字（透明な文字）があり、一緒に読み取りました。",
            [i for i, page in enumerate(facts, 1) if page.invisible_texts and page.visible_texts],
        ),
        (
            "pale-text",
            "白い文字かごく小さい文字があり、一緒に読み取りました。",
            [i for i, page in enumerate(facts, 1) if page.pale_texts],
        ),
        (
            "annotation",
            "注釈（コメント）があります。注釈の文は読んでいません。",
            [i for i, page in enumerate(facts, 1) if page.notes],
        ),
    ):
        if pages:
            findings.append(Remark(code, words, listed(pages, "ページ")))
    if attached := document.count_attachments():
        findings.append(Remark("attachment", f"PDFの中に別のファイルが{attached}個入っています。中は読んでいません。"))
    if raw.FPDFDoc_GetJavaScriptActionCount(document) > 0:
        findings.append(Remark("script", "PDFにスクリプトが入っています。実行はしていません。"))
    if not raw.FPDF_GetDocPermissions(document) & _COPY_ALLOWED:
        findings.append(Remark("copy-restricted", "作成者がコピーを制限しているPDFです。使い方を確かめてください。"))
    return findings


def _summary(parts: Sequence[Part]) -> str:
    unread = sum(part.state is PartState.EMPTY for part in parts)
    bad = sum(part.state is PartState.GARBLED for part in parts)
    if unread == len(parts):
        return f"{len(parts)}ページすべて、文字を読み取れません"
    if not unread and not bad:
        return f"{len(parts)}ページを読み取りました（文字化けなし）"
    told = [f"{unread}ページは文字を読み取れません"] if unread else []
    told += [f"{bad}ページは文字化けしています"] if bad else []
    return f"{len(parts)}ページのうち{'、'.join(told)}"


def _facts(document: pdfium.PdfDocument, index: int) -> _PageFacts:
    facts = _PageFacts()
    page = document[index]
    try:
        _look_at_objects(page, facts)
        _look_at_annotations(page, facts)
        text_page = page.get_textpage()
        try:
            _take_text(text_page, facts)
        finally:
            text_page.close()
    finally:
        page.close()
    if facts.fields:
        facts.text = f"{facts.text}\n（入力欄）\n" + "\n".join(facts.fields)
    return facts


# ── Text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_text(text_page: pdfium.PdfTextPage, facts: _PageFacts) -> None:
    codes: list[int] = []
    glyphs: list[_Glyph | None] = []
    turned = 0
    count = text_page.count_chars()
    for i in range(count):
        code = raw.FPDFText_GetUnicode(text_page, i)
        is_generated = raw.FPDFText_IsGenerated(text_page, i) == 1
        codes.append(code)
        if is_generated or chr(code).isspace():
            glyphs.append(None)
            continue
        facts.unmapped += raw.FPDFText_HasUnicodeMapError(text_page, i) == 1
        left, bottom, right, top = text_page.get_charbox(i, loose=True)
        glyphs.append(_Glyph(chr(code), left, bottom, right, top))
        turned += abs(raw.FPDFText_GetCharAngle(text_page, i)) > 0.1
    seen = [glyph for glyph in glyphs if glyph is not None]
    facts.is_vertical = bool(seen) and turned < len(seen) / 2 and _is_vertical(seen)
    facts.text = _in_columns(seen) if facts.is_vertical else _in_lines(codes, glyphs)


def _in_lines(codes: Sequence[int], glyphs: Sequence[_Glyph | None]) -> str:
    """pdfium's own order, without the spaces it reads out of Japanese typesetting."""
    kept: list[int] = []
    for i, code in enumerate(codes):
        if code == 0x20 and glyphs[i] is None and 0 < i < len(codes) - 1:
            before, after = glyphs[i - 1], glyphs[i + 1]
            if (
                before is not None
                and after is not None
                and (_is_japanese(before.character) or _is_japanese(after.character))
                and after.left - before.right < _NARROW_GAP_EM * max(before.size, after.size)
            ):
                continue
        # The mark pdfium leaves where a word was hyphenated at the end of a line.
        if code in (0x02, 0xFFFE, 0xAD):
            continue
        kept.append(code)
    # Characters beyond the BMP arrive as two surrogates.
    text = "".join(map(chr, kept)).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")).strip()


def _is_japanese(character: str) -> bool:
    code = ord(character)
    return 0x3000 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0xFF00 <= code <= 0xFFEF


def _is_vertical(glyphs: Sequence[_Glyph]) -> bool:
    """Whether most characters stand below the one before, a full size lower, rather than beside it."""
    down = across = 0
    for one, other in pairwise(glyphs):
        size = max(one.size, other.size)
        dx, dy = other.x - one.x, other.y - one.y
        if abs(dx) < 0.35 * size and -2.2 * size < dy < -0.4 * size:
            down += 1
        elif abs(dy) < 0.35 * size and 0.2 * size < dx < 3 * size:
            across += 1
    return down >= 8 and down > 2 * across


def _in_columns(glyphs: Sequence[_Glyph]) -> str:
    """Vertical text in reading order: bands from the top (段組), in each the columns from the right."""
    size = median(glyph.size for glyph in glyphs)
    lines: list[str] = []
    for band in _bands(glyphs, size):
        columns: list[list[_Glyph]] = []
        for glyph in sorted(band, key=lambda g: -g.x):
            if columns and abs(median(g.x for g in columns[-1][-8:]) - glyph.x) < 0.6 * size:
                columns[-1].append(glyph)
            else:
                columns.append([glyph])
        lines += ["".join(g.character for g in sorted(column, key=lambda g: -g.y)) for column in columns]
        lines.append("")
    return "\n".join(lines).strip()


def _bands(glyphs: Sequence[_Glyph], size: float) -> list[list[_Glyph]]:
    """Splits where a blank strip more than one and a half characters high runs over the whole page."""
    bands: list[list[_Glyph]] = []
    floor = float("inf")
    for glyph in sorted(glyphs, key=lambda g: -g.top):
        if bands and glyph.top > floor - 1.5 * size:
            bands[-1].append(glyph)
        else:
            bands.append([glyph])
        floor = min(floor, glyph.bottom)
    return bands


# ── Everything on a page that is not text ────────────────────────────────────────────────────────────────────────


def _look_at_objects(page: pdfium.PdfPage, facts: _PageFacts) -> None:
    width, height = page.get_size()
    area = max(width * height, 1.0)
    for seen, item in enumerate(page.get_objects(max_depth=5)):
        if seen >= _OBJECTS_LOOKED_AT:
            facts.is_crowded = True
            return
        facts.objects += 1
        if item.type == raw.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = item.get_bounds()
            share = max(right - left, 0) * max(top - bottom, 0) / area
            # Rules, dots and gradients are often pictures, too; nobody can write in a strip that small.
            if share > 0.002:
                facts.images += 1
                wide, high = ctypes.c_uint(), ctypes.c_uint()
                raw.FPDFImageObj_GetImagePixelSize(item, wide, high)
                facts.image_pixels += wide.value * high.value
                facts.image_cover += min(share, 1.0)
        elif item.type == raw.FPDF_PAGEOBJ_TEXT:
            if raw.FPDFTextObj_GetTextRenderMode(item) == _MODE_INVISIBLE:
                facts.invisible_texts += 1
            else:
                facts.visible_texts += 1
                facts.pale_texts += _is_white(item) or _is_tiny(item)


def _is_white(item: pdfium.PdfObject) -> bool:
    red, green, blue, opacity = (ctypes.c_uint() for _ in range(4))
    if not raw.FPDFPageObj_GetFillColor(item, red, green, blue, opacity):
        return False
    return min(red.value, green.value, blue.value) > 250 or opacity.value < 10


def _is_tiny(item: pdfium.PdfObject) -> bool:
    left, bottom, right, top = item.get_bounds()
    width, height = float(right - left), float(top - bottom)
    return 0 < height < _TINY_PT and width > 4 * height


def _look_at_annotations(page: pdfium.PdfPage, facts: _PageFacts) -> None:
    """Filled-in form fields are annotations and no page text: a form without them would look empty."""
    for i in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, i)
        if not annotation:
            continue
        try:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            if kind == raw.FPDF_ANNOT_WIDGET:
                value = _annotation_text(annotation, b"V")
                if value.strip():
                    name = _annotation_text(annotation, b"TU") or _annotation_text(annotation, b"T")
                    facts.fields.append(f"{name}：{value}" if name else value)
            elif kind not in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP) and _annotation_text(annotation, b"Contents"):
                facts.notes += 1
        finally:
            raw.FPDFPage_CloseAnnot(annotation)


def _annotation_text(annotation: object, key: bytes) -> str:
    size = raw.FPDFAnnot_GetStringValue(annotation, key, None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    raw.FPDFAnnot_GetStringValue(annotation, key, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), size)
    return buffer.raw[: size - 2].decode("utf-16-le", "replace")
