"""Works out Word's automatic numbers (第1条, (1), ア): they are shown on the page and stored nowhere in the text."""

import re
from dataclasses import dataclass, field
from typing import Protocol

_AIUEO = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
_IROHA = "イロハニホヘトチリヌルヲワカヨタレソツネナラムウヰノオクヤマケフコエテアサキユメミシヱヒモセス"
_KANJI = "〇一二三四五六七八九"
_LEVELS = 9


class XmlElement(Protocol):
    """The little of lxml that is used here; it comes without types."""

    tag: str

    def get(self, key: str, default: str | None = None, /) -> str | None: ...
    def find(self, path: str, /) -> "XmlElement | None": ...
    def findall(self, path: str, /) -> "list[XmlElement]": ...


W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


@dataclass(frozen=True, slots=True)
class _Level:
    form: str
    pattern: str
    start: int


@dataclass(slots=True)
class Numbering:
    """Counts the numbered paragraphs of one document, in reading order."""

    _levels: dict[str, dict[int, _Level]] = field(default_factory=dict)
    _abstract_of: dict[str, str] = field(default_factory=dict)
    _starts: dict[str, dict[int, int]] = field(default_factory=dict)
    _counts: dict[str, list[int | None]] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, root: XmlElement | None) -> "Numbering":
        """From the root of numbering.xml; None for a document without numbers."""
        numbering = cls()
        if root is None:
            return numbering
        for abstract in root.findall(f"{W}abstractNum"):
            numbering._levels[abstract.get(f"{W}abstractNumId") or ""] = {
                int(level.get(f"{W}ilvl") or 0): _level(level) for level in abstract.findall(f"{W}lvl")
            }
        for number in root.findall(f"{W}num"):
            number_id = number.get(f"{W}numId") or ""
            numbering._abstract_of[number_id] = _value(number.find(f"{W}abstractNumId")) or ""
            numbering._starts[number_id] = {
                int(override.get(f"{W}ilvl") or 0): int(start)
                for override in number.findall(f"{W}lvlOverride")
                if (start := _value(override.find(f"{W}startOverride")))
            }
        return numbering

    def next(self, number_id: str, level: int) -> str:
        """The number shown before the next paragraph of this list and level; empty if there is none."""
        abstract = self._abstract_of.get(number_id)
        levels = self._levels.get(abstract or "", {})
        if abstract is None or level not in levels or not 0 <= level < _LEVELS:
            return ""
        counts = self._counts.setdefault(abstract, [None] * _LEVELS)
        if number_id not in self._begun:
            self._begun.add(number_id)
            for at in self._starts[number_id]:
                counts[at] = None
        start = self._starts[number_id].get(level, levels[level].start)
        current = counts[level]
        counts[level] = start if current is None else current + 1
        for deeper in range(level + 1, _LEVELS):
            counts[deeper] = None

        def shown(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            of_level = levels.get(at)
            if of_level is None:
                return ""
            value = counts[at]
            return _written(of_level.start if value is None else value, of_level.form)

        chosen = levels[level]
        if chosen.form == "bullet":
            return "・"
        return "" if chosen.form == "none" else re.sub(r"%(\d)", shown, chosen.pattern)


def _level(level: XmlElement) -> _Level:
    return _Level(
        form=_value(level.find(f"{W}numFmt")) or "decimal",
        pattern=_value(level.find(f"{W}lvlText")) or "",
        start=int(_value(level.find(f"{W}start")) or 1),
    )


def _value(element: XmlElement | None) -> str | None:
    return None if element is None else element.get(f"{W}val")


def _written(value: int, form: str) -> str:
    match form:
        case "decimalFullWidth" | "decimalFullWidth2":
            return str(value).translate(str.maketrans("0123456789", "０１２３４５６７８９"))
        case "aiueo" | "aiueoFullWidth":
            return _AIUEO[(value - 1) % len(_AIUEO)]
        case "iroha" | "irohaFullWidth":
            return _IROHA[(value - 1) % len(_IROHA)]
        case "lowerLetter":
            return chr(ord("a") + (value - 1) % 26)
        case "upperLetter":
            return chr(ord("A") + (value - 1) % 26)
        case "lowerRoman":
            return _roman(value).lower()
        case "upperRoman":
            return _roman(value)
        case "decimalEnclosedCircle" if 1 <= value <= 20:
            return chr(0x2460 + value - 1)
        case "decimalEnclosedParen" if 1 <= value <= 20:
            return chr(0x2474 + value - 1)
        case "japaneseCounting" | "japaneseDigitalTenThousand" | "ideographDigital" | "chineseCounting":
            return _kanji(value)
        case "decimalZero":
            return f"{value:02d}"
        case _:
            return str(value)


def _roman(value: int) -> str:
    text = ""
    for worth, letters in ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L")):
        while value >= worth:
            text, value = text + letters, value - worth
    for worth, letters in ((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        while value >= worth:
            text, value = text + letters, value - worth
    return text


def _kanji(value: int) -> str:
    if not 0 < value < 1000:
        return str(value)
    text = ""
    for worth, name in ((100, "百"), (10, "十")):
        digit, value = divmod(value, worth)
        if digit:
            text += ("" if digit == 1 else _KANJI[digit]) + name
    return text + (_KANJI[value] if value else "")
