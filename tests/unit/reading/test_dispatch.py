"""What a file is, is decided by its content; refusals say what to do."""

import io
import zipfile

import pytest

from gateway.reading import CannotReadFile, Limits, read_file
from gateway.reading.problems import (
    CorruptFile,
    EmptyFile,
    FileTooLarge,
    OldFormat,
    ProtectedFile,
    SuspiciousFile,
    UnsupportedFormat,
    WrongExtension,
)
from tests.unit.reading.files import png

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, body in members.items():
            new.writestr(name.replace("__", "/").replace("_xml", ".xml").replace("_bin", ".bin"), body)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("空.txt", b"", EmptyFile),
        ("空白.csv", b" \r\n\r\n", EmptyFile),
        ("写真.png", png(4, 4), UnsupportedFormat),
        ("写真.pdf", png(4, 4), WrongExtension),
        ("古い.doc", OLE + "WordDocument".encode("utf-16-le"), OldFormat),
        ("古い.xls", OLE + "Workbook".encode("utf-16-le"), OldFormat),
        ("鍵付き.xlsx", OLE + "EncryptedPackage".encode("utf-16-le"), ProtectedFile),
        ("一太郎.jtd", OLE + "JSRV_SegmentInformation".encode("utf-16-le"), OldFormat),
        ("図面.xdw", b"\x60\x0e\x00\x00", OldFormat),
        ("表.xls", "<html><table><tr><td>表</td></tr></table></html>".encode(), OldFormat),
        ("本文.pdf", "ただの文章です。".encode(), WrongExtension),
        ("本文.docx", b"\x00\x01\x02\x03binary", CorruptFile),
        ("圧縮.zip", archive(a_txt=b"a"), UnsupportedFormat),
        ("資料.pptx", archive(ppt__presentation_xml=b"<p/>"), CorruptFile),
        ("表.xlsm", archive(xl__vbaProject_bin=b"x", xl__workbook_xml=b"<w/>"), OldFormat),
        ("資料.odt", archive(mimetype=b"application/vnd.oasis.opendocument.text"), OldFormat),
        ("文書.pdf", archive(word__document_xml=b"<w/>"), WrongExtension),
        ("不明.dat", b"\x00\x01\x02\x03", UnsupportedFormat),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, data: bytes, problem: type[CannotReadFile]) -> None:
    with pytest.raises(problem) as refused:
        read_file(name, data)
    assert refused.value.detail.endswith("。")


def test_a_wrong_name_says_what_the_content_is() -> None:
    with pytest.raises(WrongExtension) as refused:
        read_file("本文.pdf", "ただの文章です。".encode())
    assert refused.value.detail == (
        "名前の終わりは「.pdf」ですが、中身はテキストです。元のアプリで開いて、名前を「.txt」にして保存し直してください。"
    )


def test_a_file_over_the_limit_is_refused() -> None:
    data = "あ".encode() * 10
    assert read_file("文.txt", data, limits=Limits(max_bytes=30)).text == "あ" * 10
    with pytest.raises(FileTooLarge):
        read_file("文.txt", data, limits=Limits(max_bytes=29))


def test_a_zip_bomb_is_refused_unopened() -> None:
    with pytest.raises(SuspiciousFile):
        read_file("爆弾.xlsx", archive(xl__workbook_xml=b"<a>" + b" " * 30_000_000 + b"</a>"))


def test_an_xml_bomb_is_refused() -> None:
    bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    with pytest.raises(SuspiciousFile):
        read_file("爆弾.docx", archive(word__document_xml=bomb))


def test_two_parts_of_one_name_are_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new, pytest.warns(UserWarning):
        new.writestr("xl/workbook.xml", "<a/>")
        new.writestr("xl/workbook.xml", "<b/>")
    with pytest.raises(SuspiciousFile):
        read_file("二重.xlsx", out.getvalue())


@pytest.mark.parametrize("cut", [10, 300, 900])
def test_damage_is_always_a_problem_a_clerk_can_read(cut: int) -> None:
    data = archive(xl__workbook_xml=b"<workbook><sheets/></workbook>" * 40, xl__other_xml=b"<x/>")
    with pytest.raises(CannotReadFile):
        read_file("表.xlsx", data[:cut] + b"\xff" * 40 + data[cut + 40 :])


def test_a_part_in_an_unknown_encoding_is_corrupt() -> None:
    with pytest.raises(CorruptFile):
        read_file("文書.docx", archive(word__document_xml=b'<?xml version="1.0" encoding="UXX"?><a/>'))
