"""Text as detectors read it: one form for every width, hyphen, space and digit, with the way back to the original.

Folding is for detection only. What is stored, sent or exported is the original text.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final

# NFKC leaves most of these as they are: every dash, the minus sign, the long-vowel mark and both wave dashes.
_HYPHENS: Final = frozenset("-‐‑‒–—―⁃⁻−－﹘﹣ーｰ〜～~⎯─━➖﹉")
# Kanji digits as they stand in a number written out; 十, 百 and 千 are words, not digits.
_KANJI_DIGITS: Final = {"〇": "0", "零": "0", **{kanji: str(n) for n, kanji in enumerate("一二三四五六七八九", 1)}}
# Letters and fillers without a shape; format characters are told by their category.
_UNSEEN: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Signs of everyday texts, each of which folds to one, but for … that folds to three. Others may have no width, be digits of
# another script, or unfold to several.
_COMMON: Final = (
    r"\n\t -~、-〃々-〇〈-】〔〕〜ぁ-ゖゝゞァ-ヺ・-ヾ㐀-龥\uff01-\uff20\uff3b-\uff40\uff5b-\uff5e\u3000※…→○●◎□■◇◆△▲▽▼☆★"
)
STRANGE: Final = re.compile(f"[^{_COMMON}]")
# What may fold to none or to several.
_UNEVEN: Final = re.compile(f"[^{_COMMON}]|…")
_MARKS: Final = re.compile("[\u0300-\u036f\u3099\u309a\uff9e\uff9f]")
NOT_COMPARED: Final = re.compile(r"[\s\-()・.]")
_MAX_MARKS: Final = 3
# A text may hold any of a million characters; those of real texts are learnt within the first few.
_MAX_LEARNT: Final = 20_000


def _shown(unit: str) -> str:
    """A character, with the marks that belong to it, as it looks: nothing unseen, no compatibility forms."""
    first = unit[0]
    category = unicodedata.category(first)
    if first in "\r\u2028\u2029\x85":
        return "\n"
    if category in ("Cf", "Cc", "Mn", "Me") and first not in "\n\t":
        return ""
    if first in _UNSEEN:
        return ""
    if category == "Zs" or first == "\t":
        return " "
    folded = unicodedata.normalize("NFKC", unit)
    if category == "No" and folded.isdigit():
        # ① before a number is the number of the line and no part of it.
        return f" {folded} "
    # Whatever mark is still apart (an accent over a digit) joins nothing that a pattern looks for.
    return "".join(" " if c.isspace() and c != "\n" else c for c in folded if unicodedata.category(c)[0] != "M")


def _folded(unit: str) -> str:
    """The same with one hyphen and one kind of digit."""
    if unit[0] in _HYPHENS:
        return "-"
    if unit[0] in _KANJI_DIGITS:
        return _KANJI_DIGITS[unit[0]]
    shown = _shown(unit)
    if shown.isascii():
        return shown.replace("~", "-")
    # Arabic-Indic and other digits that NFKC does not touch.
    return "".join(
        "-" if c in _HYPHENS else str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c for c in shown
    )


class _Table(dict[int, str]):
    """A translation table that learns a character when it first meets it."""

    def __init__(self, fold_unit: Callable[[str], str]) -> None:
        super().__init__()
        self.fold_unit = fold_unit

    def __missing__(self, code: int) -> str:
        folded = self.fold_unit(chr(code))
        if len(self) < _MAX_LEARNT:
            self[code] = folded
        return folded

    def of(self, unit: str) -> str:
        return self[ord(unit)] if len(unit) == 1 else self.fold_unit(unit)


FOLDING: Final = _Table(_folded)
# For readers of names, to whom 一 and ー are letters.
SHOWING: Final = _Table(_shown)


class Folded:
    """A folded text. `text` is what patterns are matched against; `span` leads back to the original."""

    __slots__ = ("_ends", "_starts", "_table", "original", "text")

    def __init__(self, original: str, table: _Table = FOLDING) -> None:
        self.original = original
        self._table = table
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.text = (
            original.translate(table)
            if _MARKS.search(original) is None
            else "".join(table.of(unit) for unit in _units(original))
        )

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The place in the original of `text[start:end]`, which is not empty; what is unseen inside belongs to it."""
        if not self._starts:
            self._measure()
        return self._starts[start], self._ends[end - 1]

    def _measure(self) -> None:
        """Built when the first span is asked for: most texts have nothing to show."""
        original, fold_unit = self.original, self._table.of
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        if _MARKS.search(original) is None:
            for sign in _UNEVEN.finditer(original):
                where, width = sign.start(), len(fold_unit(sign[0]))
                if width != 1:
                    starts += [*range(at, where), *[where] * width]
                    ends += [*range(at + 1, where + 1), *[where + 1] * width]
                    at = where + 1
            starts += range(at, len(original))
            ends += range(at + 1, len(original) + 1)
        else:
            for unit in _units(original):
                width = len(fold_unit(unit))
                starts += [at] * width
                at += len(unit)
                ends += [at] * width
        self._starts, self._ends = starts, ends


def fold(text: str) -> str:
    """The folded form alone, for words that are looked for in folded texts."""
    return Folded(text).text


def comparable(text: str) -> str:
    """A telephone number or an address in the form in which two of them are compared."""
    return compared(fold(text))


def compared(folded: str) -> str:
    """The same of what is folded already."""
    return NOT_COMPARED.sub("", folded).lower()


def _units(text: str) -> Iterator[str]:
    """Characters with their marks: ｶﾞ is one letter, and so is a decomposed が."""
    start = 0
    for at in range(1, len(text)):
        if at - start > _MAX_MARKS or _MARKS.match(text[at]) is None:
            yield text[start:at]
            start = at
    if start < len(text):
        yield text[start:]
