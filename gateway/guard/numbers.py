"""Numbers of people in a folded text: runs of digits, looked at once each, told apart by length, shape and label.

A run is digits with at most a few separators between them; a window is some whole groups of a run. Every window has at
most 19 digits, so the work grows with the length of the text and never with what is in it.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.guard import check_digits
from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.labels import Label, Labels
from gateway.guard.weights import class_of

_RUN: Final = re.compile(r"[0-9](?:[ \-.・_()\n]{0,6}[0-9])*")
_GROUP: Final = re.compile(r"[0-9]+")
_MAX_DIGITS: Final = 19
_MIN_DIGITS: Final = 10
# Directly after a number: then it is an amount, a count or a share.
_COUNTED: Final = re.compile(r" ?(?:円|千円|百万円|億|万|ドル|%|パーセント|個|件|枚|冊|世帯|トン|kg|㎡|平方|票)")
_COMMA_BEFORE: Final = re.compile(r"[0-9],\Z")
_COMMA_AFTER: Final = re.compile(r",[0-9]{3}(?![0-9])")
_DATE_LIKE: Final = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
_TWELVE: Final = frozenset({Label.MY_NUMBER, Label.LICENCE, Label.OFFICE, Label.CORPORATE, Label.BIRTH})
_ELEVEN: Final = frozenset({Label.RESIDENT_CODE, Label.INSURED, Label.OFFICE, Label.PHONE})
_TEN: Final = frozenset({Label.PENSION, Label.INSURED, Label.OFFICE, Label.PHONE})
_CARD: Final = frozenset({Label.CARD, Label.OFFICE, Label.CORPORATE})
_LANDLINE_SHAPES: Final = frozenset({(2, 4, 4), (3, 3, 4), (4, 2, 4), (5, 1, 4), (2, 8), (3, 7), (4, 6), (6, 4)})
_MOBILE_SHAPES: Final = frozenset({(11,), (3, 4, 4), (3, 8), (7, 4)})
# Called by everybody and nobody's own: free and shared-cost lines, and what costs extra.
_PUBLIC_LINES: Final = ("0120", "0800", "0570", "0990", "0180")
# As it is printed. One run of thirteen digits in nine passes its check, however it was put together.
_CORPORATE_SHAPES: Final = frozenset({(13,), (1, 12), (1, 4, 4, 4)})
# 会社法人等番号: twelve digits as a company's register prints them, which nobody does with a person's.
_REGISTER_SHAPE: Final = (4, 2, 6)
# Directly before a number it says what is counted by it. Farther away these words say nothing: 注文した人の番号.
_OF_A_THING: Final = re.compile(
    r"(?:議案第|(?:注文|追跡|統計表)(?:番号|no\.?|id)?|(?:申請|受付)(?:no\.?|id))[ :#(]{0,2}\Z", re.IGNORECASE
)
_LONGEST_OF_A_THING: Final = 12
_CARD_SHAPES: Final = frozenset(
    {(n,) for n in range(14, 20)}
    | {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2), (4, 4, 4, 4, 3), (6, 13)}
)
# 49… and 45… of thirteen digits stand on every article sold in Japan, so a card of so few or of more than sixteen, which
# hardly anybody has, must not look like an order's number, and one that begins with 4 needs its word.
_RARE_CARDS: Final = frozenset({13, 17, 18, 19})
_RARE_FIRST: Final = "346"
_LEAST_OF_MOST: Final = 16


@dataclass(frozen=True, slots=True)
class Run:
    """Digits with at most a few separators between: their groups' places, the digits alone, and what parts the groups.

    offsets: how many digits stand before each group, and how many there are in all.
    """

    text: str
    groups: tuple[tuple[int, int], ...]
    digits: str
    offsets: tuple[int, ...]

    def joint(self, at: int) -> str:
        """What stands between a group and the next."""
        return self.text[self.groups[at][1] : self.groups[at + 1][0]].strip(" ") or " "

    def size(self, at: int) -> int:
        return self.offsets[at + 1] - self.offsets[at]


@dataclass(frozen=True, slots=True)
class Window:
    """Whole neighbouring groups of one run. Most are told by their digits alone, so the rest is worked out when asked for.

    `stands_apart`: what parts it from its neighbours is not what joins it. `beside`: how many digits those have.
    """

    run: Run
    first: int
    last: int
    digits: str

    @property
    def text(self) -> str:
        return self.run.text

    @property
    def start(self) -> int:
        return self.run.groups[self.first][0]

    @property
    def end(self) -> int:
        return self.run.groups[self.last][1]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.run.size(at) for at in range(self.first, self.last + 1))

    @property
    def separators(self) -> frozenset[str]:
        return frozenset(self.run.joint(at) for at in range(self.first, self.last))

    @property
    def outer(self) -> frozenset[str]:
        around = (at for at in (self.first - 1, self.last) if 0 <= at < len(self.run.groups) - 1)
        return frozenset(self.run.joint(at) for at in around)

    @property
    def is_whole_run(self) -> bool:
        return self.first == 0 and self.last == len(self.run.groups) - 1

    @property
    def stands_apart(self) -> bool:
        return not (self.separators & self.outer)

    @property
    def beside(self) -> frozenset[int]:
        around = (at for at in (self.first - 1, self.last + 1) if 0 <= at < len(self.run.groups))
        return frozenset(self.run.size(at) for at in around)

    @property
    def is_one_number(self) -> bool:
        """Whether it looks written as one number: in one piece, in even groups, or all with one sign between."""
        shape = self.shape
        if len(shape) == 1:
            return True
        is_even = len(set(shape)) == 1
        if is_even and shape[0] not in self.beside:
            return True
        if not (self.is_whole_run or self.stands_apart):
            return False
        return is_even or (self.separators == {"-"} and not _DATE_LIKE.match(self.digits))

    @property
    def is_repdigit(self) -> bool:
        return len(set(self.digits)) == 1

    @property
    def is_part_of_a_word(self) -> bool:
        """Letters touch it: a code, an address of a page, a checksum."""
        before, after = self.text[self.start - 1 : self.start], self.text[self.end : self.end + 1]
        return _is_latin(before) or _is_latin(after) or before in ("/", "=", "#") or after == "/"

    @property
    def is_counted(self) -> bool:
        """An amount or a count: a sign of money before it, a unit after it, commas or a point within it."""
        if self.text[self.start - 1 : self.start] in ("¥", "$", "€"):
            return True
        # 健一,060-… is two cells of a list: an amount has no hyphens.
        has_comma = _COMMA_BEFORE.search(self.text, max(0, self.start - 3), self.start) is not None
        if has_comma and self.shape[0] == 3 and "-" not in self.separators:
            return True
        if _COMMA_AFTER.match(self.text, self.end) and self.shape[0] <= 3:
            return True
        return _COUNTED.match(self.text, self.end) is not None


def find_numbers(folded: Folded, labels: Labels) -> Iterator[Finding]:
    """Numbers with enough digits to name a person by themselves, and telephone numbers."""
    text = folded.text
    for run in _RUN.finditer(text):
        start, end = run.span()
        if end - start < _MIN_DIGITS:
            continue
        groups = [m.span() for m in _GROUP.finditer(text, start, end)]
        if is_corporate_run(text, start, groups, labels):
            continue
        for window in _windows(text, groups):
            for judge in _JUDGES[len(window.digits)]:
                found = judge(window, labels)
                if found is not None:
                    kind, reason = found
                    yield Finding(kind, *folded.span(window.start, window.end), class_of(kind), reason)
                    break


def is_corporate_run(text: str, start: int, groups: list[tuple[int, int]], labels: Labels) -> bool:
    """A company's or an office's number of 13 digits: public by law, and its last twelve may look like a person's."""
    digits = "".join(text[s:e] for s, e in groups)
    if len(digits) != 13:
        return False
    label = labels.nearest(start, groups[-1][1], (Label.CORPORATE, Label.MY_NUMBER))
    if label is not None or text[start - 1 : start] in ("T", "t"):
        return label is not Label.MY_NUMBER
    if tuple(e - s for s, e in groups) not in _CORPORATE_SHAPES or not check_digits.is_corporate_number(digits):
        return False
    # "1 1234 5678 9018" may be the first line of a list.
    return len(groups) == 1 or check_digits.my_number(digits[1:12]) != int(digits[12])


def _windows(text: str, groups: list[tuple[int, int]]) -> Iterator[Window]:
    offsets = [0, *itertools.accumulate(end - start for start, end in groups)]
    run = Run(text, tuple(groups), "".join(text[start:end] for start, end in groups), tuple(offsets))
    for first in range(len(groups)):
        for last in range(first, len(groups)):
            size = offsets[last + 1] - offsets[first]
            if size > _MAX_DIGITS:
                break
            if size in _RARE_CARDS and run.digits[offsets[first]] not in _RARE_FIRST:
                continue
            if size in _JUDGES:
                yield Window(run, first, last, run.digits[offsets[first] : offsets[last + 1]])


_Found = tuple[Kind, str] | None


def _my_number(window: Window, labels: Labels) -> _Found:
    if window.is_repdigit:
        return None
    label = labels.nearest(window.start, window.end, _TWELVE) if labels else None
    if label is None and not window.is_one_number:
        return None
    fits = check_digits.my_number(window.digits[:11]) == int(window.digits[11])
    if label is Label.LICENCE and window.is_one_number:
        is_checked = check_digits.driving_licence(window.digits[:10]) == int(window.digits[10])
        return Kind.LICENCE, _with_check("「免許」という言葉のそばに、12桁の番号があります", is_checked)
    if label is Label.MY_NUMBER and (fits or window.is_one_number):
        return Kind.MY_NUMBER, _with_check("「マイナンバー」という言葉のそばに、12桁の番号があります", fits)
    if label is None and fits and not _is_something_else(window) and not _is_of_a_thing(window):
        return Kind.MY_NUMBER, "12桁で、最後の数字がマイナンバーの計算に合います。"
    return None


def _resident_code(window: Window, labels: Labels) -> _Found:
    if not labels or not window.is_one_number:
        return None
    match labels.nearest(window.start, window.end, _ELEVEN):
        case Label.RESIDENT_CODE:
            fits = check_digits.resident_code(window.digits[:10]) == int(window.digits[10])
            return Kind.RESIDENT_CODE, _with_check("「住民票コード」という言葉のそばに、11桁の番号があります", fits)
        case Label.INSURED:
            return Kind.INSURANCE, "「被保険者番号」という言葉のそばに、11桁の番号があります。"
        case _:
            return None


def _ten_labelled(window: Window, labels: Labels) -> _Found:
    if not labels or not window.is_one_number:
        return None
    match labels.nearest(window.start, window.end, _TEN):
        case Label.PENSION:
            return Kind.PENSION, "「年金番号」という言葉のそばに、10桁の番号があります。"
        case Label.INSURED:
            return Kind.INSURANCE, "「被保険者番号」という言葉のそばに、10桁の番号があります。"
        case _:
            return None


def _phone(window: Window, labels: Labels) -> _Found:
    digits = window.digits
    if window.text[window.start - 1 : window.start] == "+" and digits.startswith("81"):
        digits = "0" + digits[2:]
        is_written_so = len(digits) in (10, 11)
    elif digits[0] != "0" or digits[1] == "0" or window.is_counted or window.is_part_of_a_word:
        return None
    elif len(digits) == 11:
        is_written_so = digits[1] in "56789" and digits[2] == "0" and (
            window.shape in _MOBILE_SHAPES or _is_called_phone(window, labels)
        )  # fmt: skip
    elif len(digits) == 10:
        is_written_so = window.shape in _LANDLINE_SHAPES or _is_called_phone(window, labels)
    else:
        return None
    # 080-0123-4567 is somebody's, 0800-123-4567 is everybody's.
    if not is_written_so or (digits.startswith(_PUBLIC_LINES) and window.shape != (3, 4, 4)):
        return None
    return Kind.PHONE, "電話番号の形をした番号です。"


def _is_called_phone(window: Window, labels: Labels) -> bool:
    return bool(labels) and labels.nearest(window.start, window.end, _ELEVEN | _TEN) is Label.PHONE


def _card(window: Window, labels: Labels) -> _Found:
    digits = window.digits
    if not _is_issued(digits) or window.is_repdigit:
        return None
    label = labels.nearest(window.start, window.end, _CARD) if labels else None
    is_shaped = window.shape in _CARD_SHAPES or window.is_one_number
    if (label is not Label.CARD and not is_shaped) or check_digits.luhn(digits[:-1]) != int(digits[-1]):
        return None
    if label is Label.CARD:
        return Kind.CARD, "カードの言葉のそばに、カード番号の計算に合う番号があります。"
    if label is not None or _is_something_else(window):
        return None
    if len(digits) in _RARE_CARDS and (digits[0] == "4" or _is_of_a_thing(window)):
        return None
    if is_shaped:
        return Kind.CARD, f"{len(digits)}桁で、カード番号の計算に合います。"
    return None


def _is_issued(digits: str) -> bool:
    """By the first digits of the brands in use in Japan, each with its lengths (ISO/IEC 7812; as the brands publish them)."""
    head2, head3, head4 = int(digits[:2]), int(digits[:3]), int(digits[:4])
    match len(digits):
        case 16:
            is_in_use = digits[0] == "4" or 51 <= head2 <= 55 or 2221 <= head4 <= 2720
        case 15:
            is_in_use = head2 in (34, 37) or head4 in (1800, 2131)
        case 14:
            is_in_use = head2 in (36, 38, 39) or 3000 <= head4 <= 3059 or head4 == 3095
        case size:
            is_in_use = digits[0] == "4" and size in (13, 19)
    if is_in_use or len(digits) < _LEAST_OF_MOST:
        return is_in_use
    # JCB, 銀聯, Discover: sixteen to nineteen.
    return 3528 <= head4 <= 3589 or head2 == 62 or head4 == 6011 or 644 <= head3 <= 659


def _is_something_else(window: Window) -> bool:
    return window.is_counted or window.is_part_of_a_word or _is_moment(window)


def _is_of_a_thing(window: Window) -> bool:
    """A company's in its register, or the number of what stands directly before it: an order, a bill, a form."""
    if window.is_whole_run and window.shape == _REGISTER_SHAPE and window.separators == {"-"}:
        return True
    return _OF_A_THING.search(window.text, max(0, window.start - _LONGEST_OF_A_THING), window.start) is not None


def _is_moment(window: Window) -> bool:
    """A date with a time behind it, in one piece: 202604011230."""
    return len(window.shape) == 1 and len(window.digits) in (12, 14) and _DATE_LIKE.match(window.digits) is not None


def _with_check(reason: str, fits: bool) -> str:
    return f"{reason}。" if fits else f"{reason}（計算には合いませんが、書き間違いかもしれません）。"


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalpha()


_JUDGES: Final[dict[int, tuple[Callable[[Window, Labels], _Found], ...]]] = {
    10: (_ten_labelled, _phone),
    11: (_resident_code, _phone),
    12: (_my_number, _phone),
    **dict.fromkeys(range(13, 20), (_card,)),
}
