"""Opens Office files (zip archives of XML) without being fooled by bombs.

Everything is decided from the archive's directory and each member's prologue before a library unpacks anything.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from xml.etree.ElementTree import Element, ParseError, iterparse

from defusedxml import ElementTree as Guarded
from defusedxml.common import DefusedXmlException

from gateway.reading.problems import CorruptFile, ProtectedFile, SuspiciousFile
from gateway.reading.report import Limits, Remark

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, LookupError, ValueError, OSError)
_RATIO_MATTERS_FROM = 1024 * 1024
_XML_NAMES = (".xml", ".rels", ".vml")


def open_archive(data: bytes, limits: Limits) -> zipfile.ZipFile:
    """Opens a zip archive whose size, ratio, members and XML prologues were checked.

    Python never unpacks more of a member than its declared size, so the declared sizes can be trusted as a bound.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGED as error:
        raise CorruptFile("元のアプリで開けるか確かめて、保存し直してください。") from error
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > limits.max_entries:
        raise SuspiciousFile("中に入っている部品が多すぎます。新しいファイルに写して保存し直してください。")
    if len(set(names)) != len(names):
        raise SuspiciousFile("同じ名前の部品が2つ入っています。元のアプリで開いて保存し直してください。")
    if sum(member.file_size for member in members) > limits.max_unpacked_bytes:
        raise SuspiciousFile(
            f"広げると{limits.max_unpacked_bytes // 1024 // 1024}MBを超えます。分けて保存し直してください。"
        )
    for member in members:
        if member.flag_bits & 1:
            raise ProtectedFile("パスワードを外して保存し直してから、もう一度添付してください。")
        if (
            member.file_size > _RATIO_MATTERS_FROM
            and member.file_size > max(member.compress_size, 1) * limits.max_unpacked_ratio
        ):
            raise SuspiciousFile("極端に縮めた部品が入っています。元のアプリで開いて保存し直してください。")
    for name in names:
        if name.lower().endswith(_XML_NAMES):
            _refuse_declarations(archive, name)
    return archive


def _refuse_declarations(archive: zipfile.ZipFile, name: str) -> None:
    """Office never writes a document type; the one who does is after entities."""
    try:
        with archive.open(name) as member:
            for _ in Guarded.iterparse(member, events=("start",), forbid_dtd=True):
                return
    except DefusedXmlException as error:
        raise SuspiciousFile("XMLの宣言に危険な指定が入っています。このファイルは開かないでください。") from error
    except (ParseError, *_DAMAGED) as error:
        raise CorruptFile("元のアプリで開けるか確かめて、保存し直してください。", place=name) from error


def elements(archive: zipfile.ZipFile, name: str, tags: frozenset[str]) -> Iterator[Element]:
    """Walks one XML member and yields finished elements whose local name is in `tags`, keeping memory flat.

    Declarations were refused when the archive was opened, so the five times faster parser is safe here.
    """
    with archive.open(name) as member:
        for _event, element in iterparse(member, events=("end",)):  # noqa: S314  # no document type can be left
            if local(element.tag) in tags:
                yield element
                element.clear()


def local(tag: str) -> str:
    """The name of an element without its namespace: transitional and strict files differ only there."""
    return tag.rsplit("}", 1)[-1]


def attribute(element: Element, name: str) -> str | None:
    """An attribute by local name, whatever its namespace."""
    for key, value in element.attrib.items():
        if local(key) == name:
            return value
    return None


def relations(archive: zipfile.ZipFile, owner: str) -> dict[str, tuple[str, str]]:
    """Relation id → (last word of its type, absolute member name) for one part; external targets are left out."""
    folder, _, base = owner.rpartition("/")
    name = f"{folder}/_rels/{base}.rels" if folder else f"_rels/{base}.rels"
    found: dict[str, tuple[str, str]] = {}
    if name not in archive.namelist():
        return found
    for element in elements(archive, name, frozenset({"Relationship"})):
        if element.get("TargetMode") == "External":
            continue
        target = element.get("Target", "")
        path = target.lstrip("/") if target.startswith("/") else _resolved(folder, target)
        found[element.get("Id", "")] = (element.get("Type", "").rsplit("/", 1)[-1], path)
    return found


def _resolved(folder: str, target: str) -> str:
    steps = [step for step in folder.split("/") if step]
    for step in re.split(r"[/\\]", target):
        if step == "..":
            steps = steps[:-1]
        elif step not in ("", "."):
            steps.append(step)
    return "/".join(steps)


_VALUES = frozenset({"lpwstr", "lpstr", "bstr", "i4", "r8", "filetime", "date", "bool"})
_PROPERTY_WORDS = {
    "title": "タイトル",
    "subject": "サブタイトル",
    "category": "分類",
    "contentStatus": "状態",
    "HyperlinkBase": "リンクの元",
    "creator": "作成者",
    "lastModifiedBy": "最後に保存した人",
    "keywords": "キーワード",
    "description": "コメント",
    "Company": "会社名",
    "Manager": "管理者",
}


def hidden_baggage(archive: zipfile.ZipFile) -> list[Remark]:
    """What an Office file carries that its pages do not show: names in its properties, embedded files, copies."""
    names = set(archive.namelist())
    findings = []
    for member in ("docProps/core.xml", "docProps/app.xml"):
        if member in names:
            for element in elements(archive, member, frozenset(_PROPERTY_WORDS)):
                if value := (element.text or "").strip():
                    words = f"文書の情報に{_PROPERTY_WORDS[local(element.tag)]}「{value[:80]}」が残っています。"
                    findings.append(Remark("property", words, "文書の情報"))
    if "docProps/custom.xml" in names:
        values = [(e.text or "").strip() for e in elements(archive, "docProps/custom.xml", _VALUES)]
        told = "、".join(value for value in values if value)
        findings.append(Remark("property", f"文書の情報に独自の項目「{told[:400]}」が残っています。", "文書の情報"))
    for code, folders, words in (
        (
            "embedded-file",
            ("xl/embeddings/", "word/embeddings/", "ppt/embeddings/"),
            "別のファイルが埋め込まれています。中は読んでいません。",
        ),
        (
            "pivot-copy",
            ("xl/pivotCache/",),
            "ピボットテーブルが元データの写しを持っています。表に出ない行が残っていることがあります。",
        ),
        ("external-link", ("xl/externalLinks/",), "ほかのブックへのリンクがあります。リンク先は読んでいません。"),
        ("connection", ("xl/connections.xml",), "データベースなどへの接続の設定が残っています。"),
    ):
        if any(name.startswith(folders) for name in names):
            findings.append(Remark(code, words))
    return findings


def holds_unread(findings: Iterable[Remark]) -> bool:
    """Whether `hidden_baggage` came upon what nobody here reads."""
    return any(finding.code in ("embedded-file", "pivot-copy") for finding in findings)


def main_part(archive: zipfile.ZipFile, usual: str) -> str:
    """The member with which an Office file begins; `usual` where it does not say."""
    return next((path for kind, path in relations(archive, "").values() if kind == "officeDocument"), usual)
