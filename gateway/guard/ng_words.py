"""Words that a town lets nobody send, and the labels beside numbers: all found in one pass (Aho–Corasick)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

import ahocorasick

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded, fold

MAX_WORDS: Final = 5_000
MAX_CHARACTERS: Final = 100
# What somebody may put between the letters of a word. Not a hyphen: folded, ー is one.
_BETWEEN_LETTERS: Final = re.compile("[ ・.,_*/|、。]+")
_TELLING: Final = 3


class WordIndex:
    """Words with a value each. A word of Latin letters counts only as a whole word; Japanese has no such borders."""

    def __init__(self, words: Mapping[str, str], *, whole_words: bool = True) -> None:
        self._automaton = ahocorasick.Automaton()
        for word, value in words.items():
            if folded := lowered(fold(word)).strip():
                self._automaton.add_word(folded, (len(folded), whole_words and _is_latin(folded), value))
        self._is_empty = len(self._automaton) == 0
        if not self._is_empty:
            self._automaton.make_automaton()

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, value) in a folded and lowered text, in the order of their ends; they may overlap."""
        if self._is_empty:
            return
        for last, (length, is_latin, value) in self._automaton.iter(text):
            start, end = last - length + 1, last + 1
            if is_latin and (_is_latin(text[start - 1 : start]) or _is_latin(text[end : end + 1])):
                continue
            yield start, end, value


def lowered(folded: str) -> str:
    """In small letters, of the same length, so that places stay."""
    lower = folded.lower()
    return lower if len(lower) == len(folded) else folded


def _is_latin(text: str) -> bool:
    return bool(text) and text.isascii() and text.replace(" ", "").isalnum()


@lru_cache(maxsize=2_048)
def index_of(words: tuple[str, ...]) -> WordIndex:
    """The index of a town's words; a town's list changes rarely and is asked for with every call."""
    return WordIndex(dict.fromkeys(words, ""))


def clean_words(words: Iterable[str]) -> tuple[str, ...]:
    """A town's list as it is stored: trimmed, without doubles and empty lines, in the order given."""
    seen: dict[str, str] = {}
    for word in words:
        shown = " ".join(word.split())[:MAX_CHARACTERS]
        if shown:
            seen.setdefault(lowered(fold(shown)), shown)
    return tuple(seen.values())[:MAX_WORDS]


@lru_cache(maxsize=2_048)
def _close_index_of(words: tuple[str, ...]) -> WordIndex:
    """The same without what may stand between letters. Latin words need their borders, and two letters meet by chance."""
    close = {_BETWEEN_LETTERS.sub("", lowered(fold(word))) for word in words}
    return WordIndex({w: "" for w in close if len(w) >= _TELLING and not _is_latin(w)})


def _spaced(text: str, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Places of words that are written with something between their letters: ア サ ガ オ."""
    close = _BETWEEN_LETTERS.sub("", text)
    if len(close) == len(text):
        return
    places: list[int] = []
    for start, end, _ in _close_index_of(words).find(close):
        places = places or [i for i, c in enumerate(text) if _BETWEEN_LETTERS.match(c) is None]
        yield places[start], places[end - 1] + 1


def find_ng_words(folded: Folded, words: tuple[str, ...]) -> Iterator[Finding]:
    """Every place of every word, the longest where they start together."""
    text = lowered(folded.text)
    longest: dict[int, int] = {}
    for start, end, _ in index_of(words).find(text):
        longest[start] = max(end, longest.get(start, 0))
    for start, end in _spaced(text, words):
        longest[start] = max(end, longest.get(start, 0))
    for start, end in longest.items():
        yield Finding(Kind.NG_WORD, *folded.span(start, end), None, "町の管理者が、AIに送らないと決めた言葉です。")
