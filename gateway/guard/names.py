"""People's names, by a morphological analyser with a dictionary of names; loaded when it is first needed.

It costs a few milliseconds for a page: callers on an event loop run it in a thread.
"""

import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from sudachipy import Dictionary, SplitMode, Tokenizer

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import SHOWING, Folded
from tenants.context import DataClass

# The analyser takes at most 49,149 bytes at once.
_PIECE: Final = 4_000
_PIECES: Final = re.compile(rf"[^\n]{{1,{_PIECE}}}")
_HAS_LETTERS: Final = re.compile(r"[\u3400-\u9fff\u30a1-\u30fa\U00020000-\U0002ffff]")
_HONORIFICS: Final = frozenset(("様", "さん", "さま", "氏", "殿", "君", "くん", "ちゃん", "先生", "夫妻"))
_LABEL: Final = re.compile(
    r"(?:氏 ?名|名前|申請者|申込者|届出人|世帯主|保護者|児童名|本人|続柄|患者|担当者?|代理人|契約者|相談者|被相談者|対象者)[(（]?[^\s:：⟦⟧]{0,4}[)）]?\s?[:：]?\s{0,3}\Z"
)

_LONGEST: Final = 12

_local = threading.local()
_lock = threading.Lock()
_dictionary: list[Dictionary] = []


class _Word(NamedTuple):
    surface: str
    start: int
    end: int
    role: str


def find_names(original: str) -> Iterator[Finding]:
    """Full names; surnames with 様, さん and the like, or beside a form's label. A surname alone may be a place."""
    if not _HAS_LETTERS.search(original):
        return
    shown = Folded(original, SHOWING)
    for piece in _PIECES.finditer(shown.text):
        if _HAS_LETTERS.search(piece.group()):
            words = _words(piece.group(), piece.start())
            for start, end, reason in _people(words, shown.text):
                yield Finding(Kind.NAME, *shown.span(start, end), DataClass.C3C, reason)


def _words(text: str, offset: int) -> list[_Word]:
    tokenizer: Tokenizer | None = getattr(_local, "tokenizer", None)
    if tokenizer is None:
        with _lock:
            if not _dictionary:
                _dictionary.append(Dictionary(dict="small"))
        tokenizer = _local.tokenizer = _dictionary[0].tokenizer(mode=SplitMode.C)
    words = []
    for morpheme in tokenizer.tokenize(text):
        part = morpheme.part_of_speech()
        role = part[3] if part[2] == "人名" else ""
        words.append(_Word(morpheme.surface(), offset + morpheme.begin(), offset + morpheme.end(), role))
    return words


def _people(words: list[_Word], text: str) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at < len(words):
        word = words[at]
        last = _given_name_at(words, at) if word.role and word.role != "名" and len(word.surface) <= _LONGEST else at
        following = words[last + 1].surface if last + 1 < len(words) else ""
        if following == " " and last + 2 < len(words):
            following = words[last + 2].surface
        if last > at:
            yield word.start, words[last].end, "姓と名が並んでいます。"
        elif following in _HONORIFICS and (word.role or _is_surname(word.surface)):
            yield word.start, word.end, f"名前の後に「{following}」が付いています。"
        elif word.role and _LABEL.search(text[max(0, word.start - 16) : word.start]):
            yield word.start, word.end, "氏名の欄に、人の名前があります。"
        at = last + 1


def _given_name_at(words: list[_Word], at: int) -> int:
    """The index of the given name after the surname at `at`, or `at`."""
    after = at + 1
    has_space = after < len(words) and words[after].surface in (" ", "・")
    if has_space:
        after += 1
    if after >= len(words):
        return at
    # 葵 and 愛 are things, too; after a surname and a space they are somebody.
    is_one_sign = has_space and len(words[after].surface) == 1 and bool(_HAS_LETTERS.match(words[after].surface))
    if not (words[after].role or is_one_sign):
        return at
    # 内　容 and 住　所 are headings spread out, 林　愛 is somebody.
    is_heading = has_space and len(words[at].surface) == len(words[after].surface) == 1
    return at if is_heading and _is_word(words[at].surface + words[after].surface) else after


@lru_cache(maxsize=8_192)
def _is_word(surface: str) -> bool:
    words = _words(surface, 0)
    return len(words) == 1 and not words[0].role


@lru_cache(maxsize=8_192)
def _is_surname(surface: str) -> bool:
    """Whether a word that the analyser took for a place or a thing is a surname as well: 松本様, 林様."""
    if len(surface) > _LONGEST or not _HAS_LETTERS.match(surface):
        return False
    first = _words(f"{surface}太郎", 0)[0]
    return first.role == "姓" and first.surface == surface
