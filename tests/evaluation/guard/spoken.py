"""Numbers as a machine writes down what it heard: each digit by itself, as words, and with what it misheard.

Such a number is found by its check digit or by its form, once it is written together; or it is only doubted, which
keeps the recording in the house; or neither.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from gateway.guard.inspection import inspect
from gateway.reading.speech import joined_numbers, unsure_numbers
from tests.evaluation.guard.samples import MAKERS

# Digit → its readings, and the words that a listener may make of one.
READINGS: Final = (
    ("ゼロ", "れい", "まる"), ("いち",), ("に",), ("さん",), ("よん", "し"), ("ご",), ("ろく",), ("なな", "しち"), ("はち",),
    ("きゅう", "く"),
)  # fmt: skip
MISHEARINGS: Final = (
    ("例", "丸"), ("位置",), ("荷",), ("産",), ("予", "市"), ("後",), ("録",), ("菜々",), ("鉢", "マッチ"), ("急", "区"),
)  # fmt: skip
SPOKEN: Final = ("my_number", "driving_licence", "card_number", "phone")
AROUND: Final = (
    "はい、番号を読みます。{}です。",
    "えー、{}、これでよろしいでしょうか。",
    "それで、お持ちのものを見せていただいて、{}と書いてありました。",
    "{}。もう一度お願いします。",
)
# What is said at a counter and in a meeting and is no such number.
CLEAN_SPEECH: Final = (
    "予算は1億2,345万円で、前の年より3パーセント増えました。",
    "内訳は、1,234,567円と、234,500円と、12,000円です。",
    "令和8年11月28日の午後1時30分から、2階の第3会議室で行います。",
    "対象は65歳以上の1,234人で、去年の1,198人より少し多いです。",
    "佐藤さんに、いちごを、にさんパック、山田さんに、しごパックお願いしました。",
    "問い合わせは、内線の213か214です。",
    "一つ目は道路、二つ目は水道、三つ目は学校の話です。",
    "1、2、3、はい、聞こえますか。",
    "議案第45号から議案第52号までの8件を一括して議題とします。",
    "バスは8時5分、9時20分、10時35分、11時50分に出ます。",
    "投票の結果は、賛成12、反対3、棄権1でした。",
)


def _apart(digits: str, rng: random.Random) -> str:
    return rng.choice(("、", " ")).join(digits)


def _words(digits: str, rng: random.Random, gap: str) -> str:
    return gap.join(rng.choice(READINGS[int(d)]) for d in digits)


def _fours(digits: str, _rng: random.Random) -> str:
    return "、".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def _with_a_word(digits: str, rng: random.Random) -> str:
    said, at = list(digits), rng.randrange(len(digits))
    said[at] = rng.choice(MISHEARINGS[int(said[at])])
    return "、".join(said)


def _with_another(digits: str, rng: random.Random) -> str:
    at = rng.randrange(len(digits))
    other = rng.choice([d for d in "0123456789" if d != digits[at]])
    return _apart(digits[:at] + other + digits[at + 1 :], rng)


def _with_one_lost(digits: str, rng: random.Random) -> str:
    at = rng.randrange(len(digits))
    return _apart(digits[:at] + digits[at + 1 :], rng)


HEARD: Final[dict[str, Callable[[str, random.Random], str]]] = {
    "in figures, together": lambda digits, rng: digits,
    "in figures, each by itself": _apart,
    "in figures, four by four": _fours,
    "in kanji": lambda digits, rng: "".join("〇一二三四五六七八九"[int(d)] for d in digits),
    "in words (いち、に、さん)": lambda digits, rng: _words(digits, rng, "、"),
    "in words, together (いちにさん)": lambda digits, rng: _words(digits, rng, ""),
    "one digit heard as another word": _with_a_word,
    "one digit heard as another digit": _with_another,
    "one digit lost": _with_one_lost,
}


def outcomes(seed: int, rounds: int) -> Iterator[tuple[str, str, Counter[str]]]:
    """(kind, how it was written down, how often it was found, doubted, neither)."""
    rng = random.Random(seed)
    for kind in SPOKEN:
        for heard, write in HEARD.items():
            counted: Counter[str] = Counter()
            for _ in range(rounds):
                digits = "".join(c for c in MAKERS[kind](rng) if c.isdigit())
                text = rng.choice(AROUND).format(write(digits, rng))
                counted[outcome(text, kind)] += 1
            yield kind, heard, counted


def outcome(text: str, kind: str) -> str:
    """As the gateway looks at what was heard: at the words, and at the numbers in them written together."""
    if any(f.kind == kind for part in (text, joined_numbers(text)) for f in inspect(part, names=False)):
        return "found"
    return "doubted" if unsure_numbers(text) else "neither"


def false_alarms() -> list[str]:
    """What of `CLEAN_SPEECH` is reported or doubted."""
    return [
        t for t in CLEAN_SPEECH if unsure_numbers(t) or any(inspect(p, names=False) for p in (t, joined_numbers(t)))
    ]
