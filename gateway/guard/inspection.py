"""What is found in a text: every detector over one folding, overlaps resolved, the town's own public data left out."""

import re
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from typing import Final

from gateway.guard.columns import find_in_columns, find_names_in_columns, find_people_lists
from gateway.guard.findings import Finding, Kind, without_overlaps
from gateway.guard.fold import STRANGE, Folded, comparable
from gateway.guard.labels import Labels
from gateway.guard.names import find_names
from gateway.guard.ng_words import find_ng_words
from gateway.guard.numbers import find_numbers
from gateway.guard.patterns import (
    find_addresses,
    find_birthdays,
    find_birthdays_beside,
    find_emails,
    find_insurance_and_accounts,
    find_marks,
    find_papers,
)
from gateway.guard.sensitive import find_sensitive
from gateway.guard.texts import PIECE, pieces_of
from gateway.guard.weights import PERSONS

# Without an @ (or a word for it) and without six digits close together, nothing is ever found in plain ASCII.
_SIX_DIGITS: Final = re.compile(r"[0-9](?:[ \-._()\n]{0,6}[0-9]){5}")
# Everything but a name, a word of the town's and a mark (秘, 機密性3A) has a digit or an @, in whatever form.
_DIGIT: Final = (
    r"\d〇零一二三四五六七八九\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089\u2460-\u24ff\u2776-\u2793\u3192-\u3195"
    r"\u3220-\u3229\u3280-\u3289"
)
_DIGITS: Final = re.compile(f"[{_DIGIT}]")
# A house, a birthday and a mark need no more than one to three digits, but always something of this beside.
_FEW_DIGITS: Final = 3
_BESIDE_FEW: Final = re.compile(
    f"[番丁生秘㊙機厳@＠﹫]|[{_DIGIT}][^あ-んァ-ヺ亜-龥]{{0,4}}[\\-‐-―−ーｰ－〜～~のノﾉ]|at[)\\]）］]|アット|ｱｯﾄ|birth|dob",
    re.IGNORECASE,
)
_COMMON_DIGIT: Final = "0-9０-９〇零一二三四五六七八九"
_HYPHEN: Final = r"\-~ー〜－～"
# What may stand within a number, see `numbers`; … unfolds to three points.
_WITHIN: Final = rf"[ \t\u3000\n.・_(){_HYPHEN}．＿（）…]"
# A telephone number has ten, an account and a passport seven, and so has a birthday in one piece.
_MANY_DIGITS: Final = re.compile(f"[{_COMMON_DIGIT}](?:{_WITHIN}*[{_COMMON_DIGIT}]){{6}}")
_HOUSE: Final = re.compile(f"[{_COMMON_DIGIT}十百千](?:[ \\t\u3000]?[番丁]|[{_HYPHEN}のノ][{_COMMON_DIGIT}])")
_BORN: Final = re.compile(f"生(?:年|まれ)|誕生|出生|[日{_COMMON_DIGIT}十)）][ \\t\u3000]?日?生")
# Digits with a space between each take some 20 µs a digit, because any ten to sixteen of them may be a number.
_DENSE: Final = 60
_AT_WORD: Final = re.compile(r"[(\[（［][ \u3000]?(?:[aA][tT]|アット)")
_MAY_BE_PUBLIC: Final = frozenset({Kind.PHONE, Kind.EMAIL, Kind.ADDRESS, Kind.NAME, Kind.BANK})


def inspect(
    text: str, *, ng_words: tuple[str, ...] = (), public: Collection[str] = (), names: bool = True
) -> tuple[Finding, ...]:
    """All findings in the order of the text.

    ng_words: as `clean_words` made them. public: telephone numbers, addresses and names that the town itself
    publishes, as it writes them. names: also look for people's names, which takes ten times as long.
    """
    has_nothing_else = is_plain(text)
    if has_nothing_else and not ng_words and not names:
        return ()
    folded = Folded(text)
    found = [] if has_nothing_else else [*_all(folded), *find_in_columns(text)]
    if ng_words:
        found += find_ng_words(folded, ng_words)
    if names:
        found += find_names(text)
        found += find_names_in_columns(text)
        found += list(find_birthdays_beside(text, found))
    found = _not_public(found, text, public)
    return without_overlaps([*found, *find_sensitive(folded, found), *find_people_lists(text, found)])


def _not_public(found: list[Finding], text: str, public: Collection[str]) -> list[Finding]:
    if not public:
        return found
    known = _comparables(frozenset(public))
    return [f for f in found if f.kind not in _MAY_BE_PUBLIC or comparable(text[f.start : f.end]) not in known]


def _all(folded: Folded) -> list[Finding]:
    """What every detector says of which a quick look can show that it has nothing to say."""
    labels = Labels(folded.text)
    return [
        *find_numbers(folded, labels),
        *find_papers(folded, labels),
        *find_insurance_and_accounts(folded, labels),
        *find_emails(folded),
        *find_birthdays(folded, labels),
        *find_addresses(folded),
        *find_marks(folded),
    ]


@lru_cache(maxsize=2_048)
def _comparables(public: frozenset[str]) -> frozenset[str]:
    return frozenset(map(comparable, public))


def inspect_long(
    text: str, *, ng_words: tuple[str, ...] = (), public: Collection[str] = (), names: bool = True
) -> tuple[Finding, ...]:
    """The same, a piece at a time: between two pieces other threads get their turn. For a thread of its own."""
    found: dict[tuple[Kind, int, int], Finding] = {}
    for start, piece in pieces_of(text):
        for f in inspect(piece, ng_words=ng_words, public=public, names=names):
            there = replace(f, start=start + f.start, end=start + f.end)
            found.setdefault((f.kind, there.start, there.end), there)
    if len(text) > PIECE:
        # A heading stands in one piece and its rows in others.
        in_columns = [*find_in_columns(text), *(find_names_in_columns(text) if names else ())]
        for f in _not_public(in_columns, text, public):
            found.setdefault((f.kind, f.start, f.end), f)
        if all(kind is not Kind.PEOPLE_LIST for kind, _, _ in found):
            for f in find_people_lists(text, tuple(found.values())):
                found.setdefault((f.kind, f.start, f.end), f)
    return without_overlaps(found.values())


def is_plain(text: str) -> bool:
    """Whether one quick look shows that nothing but a name or a word of the town's can be in it."""
    if text.count("\n") >= PERSONS:
        return False
    if text.isascii():
        return "@" not in text and "at)" not in text and "at]" not in text and _SIX_DIGITS.search(text) is None
    if STRANGE.search(text) is None:
        return _is_plainly_harmless(text)
    return len(_DIGITS.findall(text)) <= _FEW_DIGITS and _BESIDE_FEW.search(text) is None


def is_dense(text: str) -> bool:
    """Whether a text that is not plain has so many digits that a look at it takes more than some milliseconds."""
    return len(text) > _DENSE and len(_DIGITS.findall(text)) > _DENSE


def _is_plainly_harmless(text: str) -> bool:
    """The same for texts of common signs, where every number stands as it looks: dates and counts are let through."""
    if "@" in text or "＠" in text or "秘" in text or "機密性" in text or "厳重" in text or "記号" in text:
        return False
    if _MANY_DIGITS.search(text) is not None or "被保険者" in text or "受給者番号" in text or _AT_WORD.search(text):
        return False
    if _HOUSE.search(text) is not None:
        return False
    if "生" in text and _BORN.search(text) is not None:
        return False
    lower = text.lower()
    return "birth" not in lower and "dob" not in lower
