"""`python -m tests.evaluation.guard.evidence`: what the guard finds and misses, how long it takes, and cards on photographs.

Markdown on standard output; `make evidence-guard` commits it.
"""

import importlib.util
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from gateway.guard.findings import Kind
from gateway.guard.inspection import inspect
from gateway.guard.misread import find_misread_numbers
from tests.evaluation.guard.documents import CLEAN_DOCUMENTS, DOCUMENTS, NOTATIONS, documents
from tests.evaluation.guard.samples import CLEAN, TEXTS, Sample, my_number, samples
from tests.evaluation.guard.score import Score, score
from tests.evaluation.guard.spoken import CLEAN_SPEECH, false_alarms, outcomes

# What is looked for in numbers that come in every notation.
_NUMBERS = ("my_number", "phone", "card_number", "driving_licence", "resident_code")
PERSONAL = "申請者 山田太郎 住所 神奈川県横須賀市小川町11番地 電話 090-1234-5678 生年月日 昭和45年3月2日、メール taro@example.com。"
PROSE = "防災訓練は、日曜日に行います。雨のときは体育館に集まってください。町民のみなさんのご協力をお願いします。"
ADVERSARIAL = (
    "1", "1 ", "1-", "12345678901 ", "1-2-", "4111 ", "個人番号", "記号1番", "市1-", "丁目1番", "a@", "a.a@", "【秘", "保険者番号 記号 ",
    "生年月日1970年", "山田", "が\u3099", "横須賀市小川町11番地の", "A1", "氏名,", "うつ病", "山田太郎さんはうつ病。", "\u200b1", "ー一",
)  # fmt: skip


def main() -> None:
    for line in report():
        print(line)


def report() -> Iterator[str]:
    yield "## What is found and what is missed"
    yield ""
    yield f"{len(TEXTS)} sentences and {len(DOCUMENTS)} whole papers with invented people, {len(CLEAN)} sentences and {len(CLEAN_DOCUMENTS)} papers with nothing"
    yield "to report. The templates were written apart from the rules, but by the same people: this says that nothing got worse, not how a real"
    yield "town's papers are read. A kind counts as found when all but three characters of it were marked."
    yield ""
    sentences, missed = score(samples(seed=1, rounds=20))
    papers, missed_in_papers = score(sample for _, sample in documents(seed=2, rounds=8))
    yield from _table(sentences, papers)
    yield ""
    yield "What was missed or wrongly marked, one example of each (the numbers are drawn, the names are made of a list):"
    yield ""
    for note in dict(_by_kind([*missed, *missed_in_papers])).values():
        yield f"- {' '.join(note.split(' in ')[0].split())}"
    yield ""
    yield "## Numbers in other notations"
    yield ""
    yield f"The same papers; recall of {', '.join(_NUMBERS)} together."
    yield ""
    yield "| notation | there | found |"
    yield "|---|---|---|"
    for notation in NOTATIONS:
        found = [s for s in score(s for n, s in documents(seed=3, rounds=8) if n == notation)[0] if s.kind in _NUMBERS]
        yield f"| {notation} | {sum(s.found + s.missed for s in found)} | {sum(s.found for s in found)} |"
    yield ""
    yield from _spoken()
    yield ""
    yield from _times()
    yield ""
    yield from _cards()


def _spoken() -> Iterator[str]:
    yield "## Numbers that are spoken"
    yield ""
    yield "One number in a sentence, as a listener may write down what it heard; made of what people read digits as, and not recorded. Found: by its"
    yield "check digit or its form, as in a text. Doubted: so long that a digit of a My Number may have been misheard, so that the recording goes nowhere."
    yield "Each of both keeps it from being sent unseen; a recording counts as personal data (3C) besides."
    yield ""
    yield "| kind | written down | there | found | doubted | neither |"
    yield "|---|---|---|---|---|---|"
    for kind, heard, counted in outcomes(seed=9, rounds=400):
        yield f"| {kind} | {heard} | {counted.total()} | {counted['found']} | {counted['doubted']} | {counted['neither']} |"
    yield ""
    yield f"Of {len(CLEAN_SPEECH)} sentences with dates, amounts and votes, {len(false_alarms())} were reported or doubted."


def _table(sentences: list[Score], papers: list[Score]) -> Iterator[str]:
    yield "| kind | in sentences | recall | precision | in papers | recall | precision |"
    yield "|---|---|---|---|---|---|---|"
    of_papers = {s.kind: s for s in papers}
    for s in sentences:
        p = of_papers[s.kind]
        yield (
            f"| {s.kind} | {s.found + s.missed} | {s.recall:.3f} | {s.precision:.3f} "
            f"| {p.found + p.missed} | {p.recall:.3f} | {p.precision:.3f} |"
        )


def _by_kind(notes: Iterable[str]) -> Iterator[tuple[str, str]]:
    for note in notes:
        yield note.partition(":")[0], note


def _times() -> Iterator[str]:
    yield "## Time"
    yield ""
    yield "Processor time of one look at 1,000 characters; without names that is what a call waits for."
    yield ""
    yield "| 1,000 characters of | without names, p50 | p99 | with names, p50 | p99 |"
    yield "|---|---|---|---|---|"
    rng = random.Random(5)
    drawn = [s for _, s in documents(seed=5, rounds=1)]
    texts: dict[str, list[str]] = {
        "prose": [(PROSE * 40)[:1_000]],
        "clean papers": [_thousand(rng, [Sample(t, ()) for t in CLEAN_DOCUMENTS]) for _ in range(20)],
        "papers with people in them": [_thousand(rng, drawn) for _ in range(20)],
        "nothing but personal data": [(PERSONAL * 20)[:1_000]],
    }
    worst = 0.0
    for name, some in texts.items():
        bare, named = _percentiles(some, 600, names=False), _percentiles(some, 200, names=True)
        worst = max(worst, bare[1])
        yield f"| {name} | {bare[0]:.0f} µs | {bare[1]:.0f} µs | {named[0]:.0f} µs | {named[1]:.0f} µs |"
    yield ""
    yield f"The highest p99 without names is {worst:.0f} µs; a millisecond is the limit."
    yield ""
    yield "Texts made to take long, without names: microseconds for 1,000 characters, best of five, in a text of so many characters."
    yield ""
    yield "| repeated | 1,000 | 10,000 | 100,000 |"
    yield "|---|---|---|---|"
    for piece in ADVERSARIAL:
        each = [_best((piece * (n // len(piece) + 1))[:n]) / (n / 1_000) for n in (1_000, 10_000, 100_000)]
        shown = piece.strip().encode("unicode_escape").decode() if not piece.isprintable() else piece
        yield f"| `{shown.replace('|', '')}` | " + " | ".join(f"{t:.0f}" for t in each) + " |"


def _thousand(rng: random.Random, some: list[Sample]) -> str:
    text = ""
    while len(text) < 1_000:
        text += rng.choice(some).text
    return text[:1_000]


def _timed(look: Callable[[], object]) -> float:
    began = time.thread_time()
    look()
    return (time.thread_time() - began) * 1e6


def _percentiles(texts: list[str], times: int, *, names: bool) -> tuple[float, float]:
    for text in texts:
        inspect(text, names=names)
    taken = sorted(_timed(partial(inspect, texts[at % len(texts)], names=names)) for at in range(times))
    return taken[times // 2], taken[times * 99 // 100]


def _best(text: str) -> float:
    return min(_timed(partial(inspect, text, names=False)) for _ in range(5))


def _cards() -> Iterator[str]:
    yield "## A card on a photograph"
    yield ""
    if importlib.util.find_spec("rapidocr") is None:
        yield "Not run: the reader of pictures is not installed (`make install-pictures`)."
        return
    from gateway.reading.pictures import read_picture
    from tests.evaluation.guard.cards import HANDLING, photograph

    yield "A drawn card with 氏名, 住所, 生年月日 and a number without a label, five of each, as JPEG of quality 70. Found by its check digit or label, or"
    yield "because twelve digits in fours stand beside the words of a card although one was read wrongly; else the picture is personal data (3C)."
    yield ""
    yield "| handling | by check digit | by the card around it | neither |"
    yield "|---|---|---|---|"
    rng = random.Random(7)
    for handling in HANDLING:
        outcomes: Counter[str] = Counter()
        for seed in range(5):
            digits = "".join(c for c in my_number(rng) if c.isdigit())
            seen = read_picture(photograph(f"{digits[:4]} {digits[4:8]} {digits[8:]}", handling, seed))
            if any(f.kind is Kind.MY_NUMBER for f in inspect(seen, names=False)):
                outcomes["check"] += 1
            else:
                outcomes["card" if any(find_misread_numbers(seen)) else "neither"] += 1
        yield f"| {handling} | {outcomes['check']} | {outcomes['card']} | {outcomes['neither']} |"


if __name__ == "__main__":
    main()
