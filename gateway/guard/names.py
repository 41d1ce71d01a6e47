"""People's names, by a morphological analyser with a dictionary of names; loaded when it is first needed.

It costs a few milliseconds for a page: callers on an event loop run it in a thread.
"""

import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from sudachipy import Dictionary, Morpheme, SplitMode, Tokenizer

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import SHOWING, Folded
from tenants.context import DataClass

# The analyser takes at most 49,149 bytes at once.
_PIECE: Final = 4_000
_PIECES: Final = re.compile(rf"[^\n]{{1,{_PIECE}}}")
_HAS_LETTERS: Final = re.compile(r"[\u3400-\u9fff\u30a1-\u30fa\U00020000-\U0002ffff]")
_HONORIFICS: Final = ("様", "さん", "さま", "氏", "殿", "君", "くん", "ちゃん", "先生", "夫妻")
_HONORIFIC: Final = re.compile("|".join(_HONORIFICS))
_LABEL: Final = re.compile(
    r"(?:氏 ?名|名前|申請者|申込者|届出人|世帯主|保護者|児童名|本人|続柄|患者|担当者?|代理人|契約者|相談者|被相談者|対象者)[(（]?[^\s:：⟦⟧]{0,4}[)）]?\s?[:：]?\s{0,3}\Z"
)

_LONGEST: Final = 12
# Registers keep how a family writes itself; the dictionary knows these by their common form alone.
_VARIANTS: Final = str.maketrans("髙﨑𠮷濵栁德瀨靑黑綠淸增橫寬關𣘺", "高崎吉浜柳徳瀬青黒緑清増横寛関橋")
# 山　田　太　郎, as forms have it.
_LETTER: Final = r"[\u3005\u3041-\u3096\u30a1-\u30fc\u3400-\u9fff\U00020000-\U0002ffff]"
_SPREAD: Final = re.compile(rf"(?<!{_LETTER}){_LETTER}(?: {{1,4}}{_LETTER}){{2,{_PIECE - 1}}}")
# A timetable's heading: 水木金 is somebody by chance.
_WEEK: Final = frozenset("月火水木金土日祝")

_local = threading.local()
_lock = threading.Lock()
_dictionary: list[Dictionary] = []


# What the analyser calls its parts of speech, by their number: 姓, 名 or 一般 for names of people, else nothing.
_roles: dict[int, str] = {}


class _Words:
    """The words of a text. Few are names, so of the others no more than their part of speech is asked for."""

    __slots__ = ("_found", "_offset", "roles")

    def __init__(self, text: str, offset: int) -> None:
        tokenizer: Tokenizer | None = getattr(_local, "tokenizer", None)
        if tokenizer is None:
            with _lock:
                if not _dictionary:
                    _dictionary.append(Dictionary(dict="small"))
            tokenizer = _local.tokenizer = _dictionary[0].tokenizer(mode=SplitMode.C)
        self._found = tokenizer.tokenize(text)
        self._offset = offset
        self.roles = [_roles[number] if (number := m.part_of_speech_id()) in _roles else _role(m) for m in self._found]

    def __len__(self) -> int:
        return len(self.roles)

    def surface(self, at: int) -> str:
        return self._found[at].surface() if at < len(self.roles) else ""

    def start(self, at: int) -> int:
        begin: int = self._found[at].begin()
        return self._offset + begin

    def end(self, at: int) -> int:
        end: int = self._found[at].end()
        return self._offset + end

    def starts(self) -> dict[int, int]:
        """Where each word starts → which it is."""
        return {self._offset + m.begin(): at for at, m in enumerate(self._found)}


def _role(morpheme: Morpheme) -> str:
    part = morpheme.part_of_speech()
    role = _roles[morpheme.part_of_speech_id()] = part[3] if part[2] == "人名" else ""
    return role


def find_names(original: str) -> Iterator[Finding]:
    """Full names; surnames with 様, さん and the like, or beside a form's label. A surname alone may be a place."""
    if not _HAS_LETTERS.search(original):
        return
    shown = Folded(original, SHOWING)
    text = shown.text.translate(_VARIANTS)
    for piece in _PIECES.finditer(text):
        if _HAS_LETTERS.search(piece.group()):
            words = _Words(piece.group(), piece.start())
            for start, end, reason in _people(words, text, *piece.span()):
                yield Finding(Kind.NAME, *shown.span(start, end), DataClass.C3C, reason)
    for spread in _SPREAD.finditer(text):
        places = [at for at in range(*spread.span()) if text[at] != " "]
        close = "".join(text[at] for at in places)
        if _WEEK.issuperset(close):
            continue
        for start, end, reason in _people(_Words(close, 0), close, 0, len(close)):
            yield Finding(Kind.NAME, *shown.span(places[start], places[end - 1] + 1), DataClass.C3C, reason)


def _people(words: _Words, text: str, since: int, until: int) -> Iterator[tuple[int, int, str]]:
    last = -1
    for at in _candidates(words, text, since, until):
        if at <= last:
            continue
        role, surface = words.roles[at], words.surface(at)
        last = _given_name_at(words, at) if role and role != "名" and len(surface) <= _LONGEST else at
        following = words.surface(last + 1)
        if following == " ":
            following = words.surface(last + 2) or following
        if last > at:
            yield words.start(at), words.end(last), "姓と名が並んでいます。"
        elif following in _HONORIFICS and (role or _is_surname(surface)):
            yield words.start(at), words.end(at), f"名前の後に「{following}」が付いています。"
        elif role and _LABEL.search(text[max(0, words.start(at) - 16) : words.start(at)]):
            yield words.start(at), words.end(at), "氏名の欄に、人の名前があります。"


def _candidates(words: _Words, text: str, since: int, until: int) -> list[int]:
    """Names of people by their part of speech, and whatever stands before 様, さん and the like, in order."""
    found = {at for at, role in enumerate(words.roles) if role}
    starts: dict[int, int] = {}
    for honorific in _HONORIFIC.finditer(text, since, until):
        starts = starts or words.starts()
        at = starts.get(honorific.start())
        if at:
            found.add(at - 1)
            if at > 1 and words.surface(at - 1) == " ":
                found.add(at - 2)
    return sorted(found)


def _given_name_at(words: _Words, at: int) -> int:
    """The index of the given name after the surname at `at`, or `at`."""
    after = at + 1
    has_space = words.surface(after) in (" ", "・")
    if has_space:
        after += 1
    if after >= len(words):
        return at
    # 葵 and 愛 are things, too; after a surname and a space they are somebody.
    given = words.surface(after)
    is_one_sign = has_space and len(given) == 1 and bool(_HAS_LETTERS.match(given))
    if not (words.roles[after] or is_one_sign):
        return at
    # 内　容 and 住　所 are headings spread out, 林　愛 is somebody.
    surname = words.surface(at)
    is_heading = has_space and len(surname) == len(given) == 1
    return at if is_heading and _is_word(surname + given) else after


@lru_cache(maxsize=8_192)
def _is_word(surface: str) -> bool:
    words = _Words(surface, 0)
    return len(words) == 1 and not words.roles[0]


@lru_cache(maxsize=8_192)
def _is_surname(surface: str) -> bool:
    """Whether a word that the analyser took for a place or a thing is a surname as well: 松本様, 林様."""
    if len(surface) > _LONGEST or not _HAS_LETTERS.match(surface):
        return False
    words = _Words(f"{surface}太郎", 0)
    return words.roles[0] == "姓" and words.surface(0) == surface
