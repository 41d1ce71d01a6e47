"""What a text may be read for by a model, which undoes escapes and base64 as it reads: each writing undone, two deep.

Every step is one pass over what it reads, a text has a bounded number of readings, and nothing is tried that does not
stand there, so the work grows with the length of the text and never with what is in it.
"""

import base64
import binascii
import html
import re
from collections.abc import Iterator
from typing import Final

_DEPTH: Final = 2
# Japanese as bytes. Half of UTF-16 begins at the second byte where something stands before it.
_CHARSETS: Final = ("utf-8", "cp932", "euc_jp")
_WIDE: Final = ("utf-16-le", "utf-16-be")
_SHIFTED: Final = b"\x1b$"

_UNIT: Final = r"(?:\\{1,4}|%)u[0-9a-fA-F]{4}|[uU]\+[0-9a-fA-F]{4,6}(?: (?=[uU]\+))?"
_BYTE: Final = r"%[0-9a-fA-F]{2}|\\{1,4}x[0-9a-fA-F]{2}|\\{1,4}[0-3][0-7]{2}"
# The second byte of a letter, and most of what ISO-2022-JP has between its switches, may be written as it is.
_AS_IT_IS: Final = r"[!-$'-\[\]-~]*"
# One step for all, because people mix them; runs, because a letter is made of several.
_ESCAPED: Final = re.compile(
    rf"(?P<bytes>(?:(?:{_BYTE}){_AS_IT_IS})+)|(?P<units>(?:{_UNIT})+)|\\{{1,4}}u\{{(?P<braced>[0-9a-fA-F]{{1,8}})\}}"
    r"|\\{1,4}U(?P<long>[0-9a-fA-F]{8})|(?P<entity>&#[xX]?[0-9a-fA-F]{1,8};?|&[0-9A-Za-z]{2,31};)"
)
_BYTES: Final = re.compile(r"%([0-9a-fA-F]{2})|\\{1,4}x([0-9a-fA-F]{2})|\\{1,4}([0-3][0-7]{2})")
_UNITS: Final = re.compile(r"u\+?([0-9a-fA-F]{4,6})", re.IGNORECASE)
_MARKS_OF_ESCAPES: Final = re.compile(r"[\\%&]|[uU]\+")
_QUOTED: Final = re.compile(r"(?:=[0-9a-fA-F]{2}[ -<>-~]*)+")
_QUOTED_BYTE: Final = re.compile(r"=([0-9a-fA-F]{2})")
_SOFT_BREAK: Final = re.compile(r"=[ \t]*\r?\n")
_UTF7: Final = re.compile(r"\+(?:([A-Za-z0-9/]{3,})-?|-)")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\-]{6,}(?:\r?\n[A-Za-z0-9+/_\-]+)*")
_URL_SAFE: Final = str.maketrans("-_", "+/", "\r\n")
# Whatever word or path stands before it without a space: one of these begins where the first letter begins.
_BASE64_UNIT: Final = 4
_BASE32: Final = re.compile(r"[A-Za-z2-7]{7,}(?:\r?\n[A-Za-z2-7]+)*")
_BASE32_UNIT: Final = 8
# What is left of a last unit that is whole.
_BASE32_REST: Final = frozenset({0, 2, 4, 5, 7})
_HEX: Final = re.compile(r"(?:0x|\\x)?[0-9a-fA-F]{2}(?:[ ,:;\-\n]{0,3}(?:0x)?[0-9a-fA-F]{2}){3,}")
_NOT_HEX: Final = re.compile(r"0x|\\x|[^0-9a-fA-F]")
_PLAIN: Final = re.compile(r"[ -~\r\n]{6,}")
# What two bytes of anything make a letter of, and nobody's name or address.
_FOREIGN: Final = re.compile("[\u0100-\u1fff\ua000-\uf8ff]+")
_HIGHEST: Final = 0x10FFFF


def readings_of(text: str) -> Iterator[tuple[str, bool]]:
    """What a text may stand for, the text itself first; with whether it was made of anything but letters.

    The latter is true of what was decoded from base64, base32 and hexadecimal digits, where many a word decodes to
    nonsense in which a short word may stand by chance.
    """
    yield text, False
    yield from _deeper(text, _DEPTH, {_mark(text, _DEPTH)}, is_decoded=False)


def _deeper(text: str, depth: int, seen: set[int], *, is_decoded: bool) -> Iterator[tuple[str, bool]]:
    for reading, is_nonsense in _undone(text):
        # Only their hashes are kept: a body of some megabytes has readings of many times its size.
        if (mark := _mark(reading, depth)) in seen:
            continue
        seen.add(mark)
        yield reading, is_decoded or is_nonsense
        if depth > 1:
            # What was written anew before it was encoded is plain letters; random bytes have few that stand together.
            under = "\n".join(_PLAIN.findall(reading)) if is_nonsense else reading
            if under is not reading and (mark := _mark(under, depth)) in seen:
                continue
            seen.add(mark)
            yield from _deeper(under, depth - 1, seen, is_decoded=is_decoded or is_nonsense)


def _mark(reading: str, depth: int) -> int:
    """With the length: the interpreter hashes bytes, and two letters of UTF-16 have those of four of ASCII.

    With the depth: what was met at the bottom and is met again above it has something under it that nobody looked at.
    """
    return hash((len(reading), depth, reading))


def _undone(text: str) -> Iterator[tuple[str, bool]]:
    """One step down; each writing by itself."""
    if _MARKS_OF_ESCAPES.search(text):
        yield from ((reading, False) for reading in _unescaped(text))
    if "=" in text:
        yield from ((reading, False) for reading in _unquoted(text))
    if "+" in text:
        yield _UTF7.sub(_of_utf7, text), False
    for data in _data_in(text):
        yield from ((reading, True) for reading in _letters(data))


def _unescaped(text: str) -> Iterator[str]:
    """%XX, \\xXX, \\uXXXX, \\u{XXXX}, U+XXXX, &#…; and their like; its bytes in each charset."""
    has_letters = False
    for charset in (*_CHARSETS, *_WIDE, "iso2022_jp"):

        def letters(found: re.Match[str], charset: str = charset) -> str:
            nonlocal has_letters
            if found["bytes"]:
                data = _BYTES.sub(_byte, found["bytes"]).encode("latin-1")
                has_letters = has_letters or len(data) > 1
                return data.decode(charset, errors="ignore")
            if found["units"]:
                return _of_units(found["units"])
            if found["entity"]:
                return html.unescape(found["entity"])
            return _letter(int(found["braced"] or found["long"], 16))

        yield _ESCAPED.sub(letters, text)
        if not has_letters:
            break


def _byte(found: re.Match[str]) -> str:
    return chr(int(found[1] or found[2] or found[3], 8 if found[3] else 16))


def _of_units(units: str) -> str:
    """Letters above U+FFFF come in two halves."""
    halves = "".join(chr(min(int(u[1], 16), _HIGHEST)) for u in _UNITS.finditer(units))
    return halves.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="ignore")


def _letter(code: int) -> str:
    is_one = code <= _HIGHEST and not 0xD800 <= code <= 0xDFFF
    return chr(code) if is_one else ""


def _unquoted(text: str) -> Iterator[str]:
    """Quoted-printable, in bodies of mail (lines end in =) and in their headers (_ for a space)."""
    joined = _SOFT_BREAK.sub("", text)
    if _QUOTED.search(joined) is None:
        yield joined
        return
    for charset in (*_CHARSETS, "iso2022_jp"):

        def letters(found: re.Match[str], charset: str = charset) -> str:
            data = _QUOTED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), found[0]).encode("latin-1")
            return data.decode(charset, errors="ignore")

        reading = _QUOTED.sub(letters, joined)
        yield reading.replace("_", " ") if "=?" in text else reading


def _of_utf7(found: re.Match[str]) -> str:
    return _of_base64(found[1]).decode("utf-16-be", errors="ignore") if found[1] else "+"


def _data_in(text: str) -> Iterator[bytes]:
    """Bytes that stand in a text as letters; what stands in several places comes in one piece."""
    runs = [found[0].translate(_URL_SAFE) for found in _BASE64.finditer(text)]
    for at in range(_BASE64_UNIT if runs else 0):
        yield b"\n".join(_of_base64(run[at:]) for run in runs)
    broken = [line for found in _BASE64.finditer(text) if "\n" in found[0] for line in found[0].split("\n")]
    if broken:
        # Words in lines are no base64 in lines.
        yield b"\n".join(_of_base64(line.strip().translate(_URL_SAFE)) for line in broken)
    if runs := _BASE32.findall(text):
        yield b"\n".join(_of_base32(re.sub(r"\s", "", run).upper()) for run in runs)
    if runs := [_NOT_HEX.sub("", found[0]) for found in _HEX.finditer(text)]:
        for at in (0, 1):
            yield b"\n".join(bytes.fromhex(run[at : len(run) - (len(run) - at) % 2]) for run in runs)


def _of_base64(run: str) -> bytes:
    # A single letter more than whole units stands for nothing.
    whole = run[:-1] if len(run) % _BASE64_UNIT == 1 else run
    try:
        return base64.b64decode(whole + "=" * (-len(whole) % _BASE64_UNIT))
    except (binascii.Error, ValueError):
        return b""


def _of_base32(run: str) -> bytes:
    while len(run) % _BASE32_UNIT not in _BASE32_REST:
        run = run[:-1]
    return base64.b32decode(run + "=" * (-len(run) % _BASE32_UNIT))


def _letters(data: bytes) -> Iterator[str]:
    """What bytes say in each charset in which Japanese is written."""
    for charset in _CHARSETS:
        yield data.decode(charset, errors="ignore")
        if data.isascii() and 0 not in data:
            break
    for charset in _WIDE:
        for at in (0, 1):
            yield _FOREIGN.sub("\n", data[at:].decode(charset, errors="ignore"))
    if _SHIFTED in data:
        yield data.decode("iso2022_jp", errors="ignore")
