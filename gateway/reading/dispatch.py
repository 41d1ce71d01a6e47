"""Decides by content what a file is, checks that its name agrees, and calls the reader."""

import zipfile
import zlib
from pathlib import PurePath

from docx.exceptions import PythonDocxError
from docx.opc.exceptions import OpcError
from docx.oxml.exceptions import XmlchemyError
from openpyxl.utils.exceptions import CellCoordinatesException, InvalidFileException

from gateway.guard.misread import find_misread_numbers
from gateway.reading import pdf, pictures, plain, sheets, slides, word
from gateway.reading.archive import open_archive
from gateway.reading.problems import (
    CardSeen,
    CorruptFile,
    EmptyFile,
    FileTooLarge,
    OldFormat,
    ProtectedFile,
    UnsupportedFormat,
    WrongExtension,
)
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark
from gateway.reading.speech import is_recording

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_READ_PICTURES = (b"\x89PNG\r\n", b"\xff\xd8\xff")
_PICTURES = (b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"BM")
_TEXT_NAMES = {".txt": Kind.TEXT, ".text": Kind.TEXT, ".md": Kind.TEXT, ".csv": Kind.CSV, ".tsv": Kind.CSV}
_NAMES = {**_TEXT_NAMES, ".pdf": Kind.PDF, ".docx": Kind.DOCX, ".xlsx": Kind.XLSX, ".pptx": Kind.PPTX}
_NAMES |= dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), Kind.PICTURE)
_NAMES |= dict.fromkeys((".wav", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".flac", ".wma", ".webm"), Kind.RECORDING)
READABLE = "PDF、Word（docx）、Excel（xlsx）、PowerPoint（pptx）、CSV、テキスト（txt）"
# What the libraries raise on damaged files; none of them promises one family of errors.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    PythonDocxError,
    OpcError,
    XmlchemyError,
    InvalidFileException,
    CellCoordinatesException,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    SyntaxError,  # the base of the XML libraries' parse errors
    ArithmeticError,
    AssertionError,
    EOFError,
    NotImplementedError,
    OSError,
    RecursionError,
)


def read_file(name: str, data: bytes, *, limits: Limits | None = None, reads_pictures: bool = False) -> Reading:
    """Reads a PDF, docx, xlsx, pptx, csv or txt file.

    reads_pictures: also the letters in pictures and on scanned pages, where the reader of pictures is installed.

    `name` is only used for its extension, which must agree with the content. Raises a `CannotReadFile` problem, and
    nothing else, for whatever cannot be read.
    """
    limits = limits or Limits()
    if len(data) > limits.max_bytes:
        raise FileTooLarge(
            f"{limits.max_bytes // 1024 // 1024}MBまでのファイルを添付してください。", limit_bytes=limits.max_bytes
        )
    if not data.strip(b"\x00\r\n\t \xef\xbb\xbf"):
        raise EmptyFile("中身を入れて保存してから、もう一度添付してください。")
    extension = PurePath(name).suffix.lower()
    try:
        kind = kind_of(extension, data, limits)
        if extension and _NAMES.get(extension) is not kind:
            raise WrongExtension(
                f"名前の終わりは「{extension}」ですが、中身は{kind.words}です。"
                f"元のアプリで開いて、名前を「.{kind.value}」にして保存し直してください。",
                extension=extension,
                kind=kind.value,
            )
        reading = _read(kind, data, limits, reads_pictures=reads_pictures)
    except MemoryError as error:
        raise FileTooLarge("広げると大きすぎます。分けて添付してください。") from error
    except _DAMAGE as error:
        raise CorruptFile("元のアプリで開けるか確かめて、保存し直してください。") from error
    if any(any(find_misread_numbers(part.text)) for part in reading.parts if part.is_seen):
        raise CardSeen(
            "マイナンバーの写ったものは、AIに送ることも、ここに置くこともできません（保存していません）。"
            "カードの写っていない画像にするか、必要なことだけを文字で書いてください。"
        )
    return reading


def _read(kind: Kind, data: bytes, limits: Limits, *, reads_pictures: bool) -> Reading:
    match kind:
        case Kind.PDF:
            return pdf.read_pdf(data, limits, reads_pictures=reads_pictures)
        case Kind.DOCX:
            return word.read_docx(data, limits)
        case Kind.XLSX:
            return sheets.read_xlsx(data, limits)
        case Kind.PPTX:
            return slides.read_pptx(data, limits)
        case Kind.CSV:
            return plain.read_csv(data, limits)
        case Kind.TEXT:
            return plain.read_text(data, limits)
        case Kind.PICTURE:
            return _picture(data, reads_pictures=reads_pictures)
        case Kind.RECORDING:
            raise UnsupportedFormat("録音は、チャットに付けると文字になります。ここでは読み取れません。")


def _picture(data: bytes, *, reads_pictures: bool) -> Reading:
    """A photograph or a screen as the letters in it. What else is on it stays unread."""
    if not reads_pictures:
        raise UnsupportedFormat("画像の中の文字は読み取れません。文字の入ったPDFやWordの文書を添付してください。")
    try:
        lines, told = pictures.letters_in(data)
        picture = pictures.rewritten(data)
    except pictures.NotRead as why:
        raise CorruptFile(why.words) from why
    text = "\n".join(lines)
    findings = tuple(
        Remark("property", f"画像の情報に「{value[:80]}」が残っています。", "画像の情報") for value in told
    )
    if not text.strip():
        part = Part("画像", "", PartState.EMPTY, "文字が見つかりません")
        return Reading(
            Kind.PICTURE, "", (part,), (Remark("no-text", "画像に文字が見つかりません。"),), (), findings,
            "文字が見つかりません", has_unread=True, picture=picture,
        )  # fmt: skip
    doubt = "読み誤りがないか、元の画像と見比べてください。"
    return Reading(
        Kind.PICTURE,
        text,
        (Part("画像から読み取った文字", text, is_seen=True),),
        (Remark("picture", doubt),),
        (),
        findings,
        f"画像から{len(''.join(text.split())):,}文字を読み取りました",
        has_unread=True,
        picture=picture,
    )


def kind_of(extension: str, data: bytes, limits: Limits) -> Kind:
    """What the content is. Raises the problem that says what to do for a content nobody here reads."""
    head = data[:1024]
    if b"%PDF-" in head:
        return Kind.PDF
    if data.startswith(_OLE):
        raise _inside_ole(extension, data)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _inside_zip(data, limits)
    if data.startswith(_READ_PICTURES) or (data.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return Kind.PICTURE
    if data.startswith(_PICTURES) or head[4:12] in (b"ftypheic", b"ftypmif1", b"ftypavif"):
        raise UnsupportedFormat("この形の画像は読み取れません。PNGかJPEGで保存し直してください。")
    if is_recording(data):
        return Kind.RECORDING
    if data.startswith(b"{\\rtf"):
        raise OldFormat("リッチテキストの文書です。Wordで開き、docx形式で保存し直してください。")
    if extension in (".jtd", ".jtdc"):
        raise OldFormat("一太郎の文書です。Word（docx）形式かPDFで保存し直してください。")
    if extension in (".xdw", ".xbd"):
        raise OldFormat("DocuWorksの文書です。PDFで保存し直してください。")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"mime-version:")) and extension not in (".txt", ".md"):
        raise OldFormat(
            f"Webページの形で保存されたファイルです。アプリで開き、{_save_as(extension)}形式で保存し直してください。"
        )
    if plain.looks_like_text(data):
        if extension in _TEXT_NAMES:
            return _TEXT_NAMES[extension]
        if extension in _NAMES:
            return Kind.TEXT
        if not extension:
            return Kind.TEXT
    if extension in _NAMES:
        raise CorruptFile("元のアプリで開けるか確かめて、保存し直してください。")
    raise UnsupportedFormat(f"読み取れるのは{READABLE}です。この形式で保存し直してください。")


def _save_as(extension: str) -> str:
    return "docx" if extension.startswith(".doc") else "xlsx" if extension.startswith(".xls") else "PDF・docx・xlsx"


def _inside_ole(extension: str, data: bytes) -> OldFormat | ProtectedFile:
    """The old compound format holds both Office's old files and its encrypted new ones; stream names tell which."""

    def holds(stream: str) -> bool:
        return stream.encode("utf-16-le") in data

    if holds("EncryptedPackage"):
        return ProtectedFile("パスワードを外して保存し直してから、もう一度添付してください。")
    if extension in (".jtd", ".jtdc") or holds("JSRV_SegmentInformation"):
        return OldFormat("一太郎の文書です。Word（docx）形式かPDFで保存し直してください。")
    if holds("WordDocument"):
        return OldFormat("古いWordの形式（doc）です。Wordで開き、docx形式で保存し直してください。")
    if holds("Workbook") or holds("Book"):
        return OldFormat("古いExcelの形式（xls）です。Excelで開き、xlsx形式で保存し直してください。")
    if holds("PowerPoint Document"):
        return OldFormat("古いPowerPointの形式（ppt）です。PowerPointで開き、pptx形式で保存し直してください。")
    return OldFormat(f"古い形式の文書です。アプリで開き、{_save_as(extension)}形式で保存し直してください。")


def _inside_zip(data: bytes, limits: Limits) -> Kind:
    with open_archive(data, limits) as archive:
        names = set(archive.namelist())
        if any(name.lower().endswith("vbaproject.bin") for name in names):
            kinds = (("xl/", "xlsx"), ("ppt/", "pptx"))
            kind = next((k for folder, k in kinds if any(n.startswith(folder) for n in names)), "docx")
            raise OldFormat(f"マクロが入っているため読み取れません。マクロなしの{kind}形式で保存し直してください。")
        if any(name.startswith("word/") for name in names):
            return Kind.DOCX
        if any(name.endswith(".bin") and name.startswith("xl/workbook") for name in names):
            raise OldFormat("Excelのバイナリブック（xlsb）です。xlsx形式で保存し直してください。")
        if any(name.startswith("xl/") for name in names):
            return Kind.XLSX
        if any(name.startswith("ppt/") for name in names):
            return Kind.PPTX
        if "mimetype" in names:
            raise OldFormat("OpenDocumentの文書です。docx形式かxlsx形式で保存し直してください。")
    raise UnsupportedFormat(f"圧縮ファイルです。展開して、{READABLE}を1つずつ添付してください。")
