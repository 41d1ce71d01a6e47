"""Tells text from garbage: characters nobody can read, and text decoded or mapped the wrong way."""

import re
import unicodedata
from collections.abc import Iterator

# The scripts a Japanese office writes, and those of the leaflets it translates most. Text drawn from glyph numbers
# instead of characters scatters over many others at once.
_FAMILIAR = (
    (0x0000, 0x036F),
    (0x0370, 0x03FF),
    (0x0400, 0x045F),
    (0x1E00, 0x22FF),
    (0x2300, 0x2BFF),
    (0x2E80, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xF900, 0xFAFF),
    (0xFE00, 0xFE4F),
    (0xFF00, 0xFFEF),
    (0x1F000, 0x1FAFF),
    (0x20000, 0x3FFFF),
)
# UTF-8 taken for CP932 turns kana into these kanji, which no office text uses; taken for Latin-1 into ã and a sign.
_MISREAD = re.compile(r"[縺繧繝]|ã[\u0080-¿€-™]|ï¼")
_EXPECTED_CONTROLS = frozenset("\t\n\r\f")


def unreadable(character: str) -> bool:
    """Private use (a town's own 外字), leftovers of decoding, controls and the replacement character."""
    code = ord(character)
    return (
        0xE000 <= code <= 0xF8FF
        or 0x7F <= code <= 0x9F
        or code >= 0xF0000
        or code in (0xFFFD, 0xFFFE, 0xFFFF)
        or 0xD800 <= code <= 0xDFFF
        or (code < 0x20 and character not in _EXPECTED_CONTROLS)
    )


def unreadable_places(text: str) -> Iterator[int]:
    return (i for i, character in enumerate(text) if unreadable(character))


def garbled(text: str, *, unmapped: int = 0) -> bool:
    """Whether a text as a whole cannot be trusted.

    `unmapped`: characters whose font does not say what they are.
    """
    letters = "".join(text.split())
    if not letters:
        return False
    lost = max(unmapped, sum(map(unreadable, letters)))
    if lost >= 3 and lost / len(letters) > 0.1:
        return True
    return misread(letters) or _scattered(letters)


def misread(text: str) -> bool:
    """Mojibake: the marks of UTF-8 read as something else make up a good part of the text."""
    marks = len(_MISREAD.findall(text))
    return marks >= 3 and marks / max(len(text), 1) > 0.08


def _scattered(letters: str) -> bool:
    strange = [c for c in letters if not any(low <= ord(c) <= high for low, high in _FAMILIAR)]
    if len(strange) < 5 or len(strange) / len(letters) < 0.1:
        return False
    scripts = {unicodedata.name(c, "UNKNOWN").split(" ", 1)[0] for c in strange}
    return len(scripts) >= 4
