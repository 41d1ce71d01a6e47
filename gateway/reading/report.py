"""What reading a file gives: its text by part, its tables, and every doubt said in words."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a file is by its content; `words` is how a clerk calls it."""

    PDF = "pdf"
    DOCX = "docx"
    XLSX = "xlsx"
    PPTX = "pptx"
    PICTURE = "png"
    CSV = "csv"
    TEXT = "txt"
    RECORDING = "wav"

    @property
    def words(self) -> str:
        return _KIND_WORDS[self]


# The label of what stands in a file where no page shows it.
LEFT_OVER: Final = "目に見えないところの文字"
_KIND_WORDS = {
    Kind.PDF: "PDF",
    Kind.DOCX: "Wordの文書",
    Kind.XLSX: "Excelのブック",
    Kind.PPTX: "PowerPointの資料",
    Kind.PICTURE: "画像",
    Kind.CSV: "CSVの表",
    Kind.TEXT: "テキスト",
    Kind.RECORDING: "録音",
}


class PartState(StrEnum):
    OK = "ok"
    EMPTY = "empty"
    GARBLED = "garbled"
    HIDDEN = "hidden"

    @property
    def words(self) -> str:
        return {"ok": "読めました", "empty": "文字なし", "garbled": "文字化け", "hidden": "非表示"}[self.value]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may cost before it is refused; the defaults fit one attachment of a clerk.

    `max_unpacked_ratio` looks at archive members above one megabyte only: small XML shrinks a lot and harms nobody.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_unpacked_bytes: int = 200 * 1024 * 1024
    max_unpacked_ratio: int = 200
    max_entries: int = 5_000
    max_pages: int = 500
    max_cells: int = 1_000_000
    max_characters: int = 2_000_000


@dataclass(frozen=True, slots=True)
class Remark:
    """One doubt or one hidden thing. `code` is stable, `words` is what a clerk reads, `place` where to look."""

    code: str
    words: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A page, a sheet or a block of a document. `note` says what is wrong with it, in Japanese.

    `in_text` is false for what an author took back or hid (deleted text, hidden characters): it is shown, not sent.
    `is_seen` is true for letters that were read in a picture: one of them may be another.
    """

    label: str
    text: str
    state: PartState = PartState.OK
    note: str = ""
    in_text: bool = True
    is_seen: bool = False

    @property
    def characters(self) -> int:
        """How many characters a reader would count: white space is none."""
        return len("".join(self.text.split()))


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row. `number` is the row number Excel shows, counted from 1.

    `repeated` are columns (from 0) that only show the value of a merged cell further up or left.
    """

    number: int
    cells: tuple[str, ...]
    is_hidden: bool = False
    repeated: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its column names found. `rows` are the data rows, all as wide as `columns`.

    `header_rows` are the row numbers the names came from; empty if there were none and the names are A列, B列, ….
    `hidden_columns` counts from 0.
    """

    label: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    header_rows: tuple[int, ...] = ()
    hidden_columns: tuple[int, ...] = ()
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The text of a file and all that is doubtful about it.

    `warnings` are what makes the text incomplete or doubtful, `findings` what a file carries unseen (names in its
    properties, comments, hidden sheets). `has_unread` is true when something in it was not read at all: by the rules
    unread content counts as personal data. `picture` is a picture as it may go on itself.
    """

    kind: Kind
    text: str
    parts: tuple[Part, ...]
    warnings: tuple[Remark, ...]
    tables: tuple[Table, ...]
    findings: tuple[Remark, ...]
    summary: str
    has_unread: bool = False
    picture: bytes = field(default=b"", repr=False)

    @property
    def all_text(self) -> str:
        """Every word that was found in it, whether it is sent or not."""
        return "\n".join(
            [*(f"{p.label}\n{p.text}" for p in self.parts), *(f"{r.place} {r.words}" for r in self.findings)]
        )

    @property
    def is_doubtful(self) -> bool:
        return bool(self.warnings)


def joined(parts: tuple[Part, ...]) -> str:
    """One text of all readable parts, each under its label; a lone part needs no label.

    Between readable parts an unreadable one is said in its place, so that nobody takes the text for the whole file.
    Empty when no part is readable.
    """
    counted = [part for part in parts if part.in_text]
    if not any(_is_readable(part) for part in counted):
        return ""
    if len([part for part in parts if part.in_text or part.label != LEFT_OVER]) == 1:
        return counted[0].text
    return "\n\n".join(f"【{part.label}】\n{_told(part)}" for part in counted)


def _told(part: Part) -> str:
    if _is_readable(part):
        return part.text
    note = f"（{part.note or part.state.words}）"
    return f"{part.text}\n{note}" if part.text.strip() and part.state is not PartState.GARBLED else note


def _is_readable(part: Part) -> bool:
    return part.state not in (PartState.EMPTY, PartState.GARBLED) and bool(part.text.strip())


def listed(values: list[int], unit: str, *, most: int = 10) -> str:
    """Row or page numbers in words: 「3行目、5〜9行目ほか12件」."""
    runs: list[tuple[int, int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    words = [f"{low}〜{high}{unit}" if high > low else f"{low}{unit}" for low, high in runs[:most]]
    rest = sum(high - low + 1 for low, high in runs[most:])
    return "、".join(words) + (f"、ほか{rest}件" if rest else "")
