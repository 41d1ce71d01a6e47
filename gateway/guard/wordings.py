"""Expressions that law or government replaced: an answer that uses one is marked, with what stands in its place.

Only what a statute or a ministry is known to have decided is listed, so that no town has to take our taste; a town
adds its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.ng_words import WordIndex, lowered

AS_OF: Final = date(2026, 11, 28)


@dataclass(frozen=True, slots=True)
class Wording:
    """`instead`: what is written today; empty where a town gave none. `source`: who decided it, with its date.

    is_confirmed: the source itself was looked at; what was not is told as such.
    """

    word: str
    instead: str
    source: str
    is_confirmed: bool = False

    @property
    def reason(self) -> str:
        if not self.instead:
            return f"「{self.word}」は、{self.source}。"
        doubt = "" if self.is_confirmed else "、出典は未確認"
        return f"「{self.word}」は「{self.instead}」と書きます（{self.source}{doubt}）。"


_1981: Final = "昭和56年法律第51号"
_1982: Final = "昭和57年法律第66号"
# 保健婦助産婦看護婦法の一部を改正する法律, as published: jahis.law.nagoya-u.ac.jp/lawdb/l/413a0153
_NURSES: Final = "平成13年法律第153号"
_BY_TOWN: Final = "町が決めた言い換え"
WORDINGS: Final = (
    Wording("つんぼ", "耳が聞こえない者", _1981),
    Wording("不具", "身体の障害", _1982),
    Wording("廃疾", "重度の障害", _1982),
    Wording("白痴", "知的障害", _1982),
    Wording("癩", "ハンセン病", "平成8年法律第28号"),
    Wording("精神薄弱", "知的障害", "平成10年法律第110号"),
    Wording("禁治産", "成年後見", "平成11年法律第149号"),
    Wording("看護婦", "看護師", _NURSES, is_confirmed=True),
    Wording("保健婦", "保健師", _NURSES, is_confirmed=True),
    Wording("助産婦", "助産師", _NURSES, is_confirmed=True),
    Wording("痴呆", "認知症", "平成16年12月24日 厚生労働省の検討会報告書"),
    Wording("痴ほう", "認知症", "平成16年12月24日 厚生労働省の検討会報告書"),
    Wording("精神分裂病", "統合失調症", "平成17年法律第123号"),
    Wording("特殊学級", "特別支援学級", "平成18年法律第80号"),
    Wording("婦人相談所", "女性相談支援センター", "令和4年法律第52号"),
    Wording("婦人相談員", "女性相談支援員", "令和4年法律第52号"),
)
# Words that hold one of the above and mean something else.
_INNOCENT: Final = ("不具合",)


def find_wordings(folded: Folded, own: tuple[str, ...] = ()) -> Iterator[Finding]:
    """own: a town's lines, each a word or `word→what is written instead`."""
    index, reasons = _index_of(own)
    innocent_until = 0
    longest: dict[int, tuple[int, str]] = {}
    for start, end, word in index.find(lowered(folded.text)):
        if start not in longest or end > longest[start][0]:
            longest[start] = (end, word)
    for start, (end, word) in sorted(longest.items()):
        if word in _INNOCENT:
            innocent_until = end
        elif end > innocent_until:
            yield Finding(Kind.WORDING, *folded.span(start, end), None, reasons[word])


@lru_cache(maxsize=2_048)
def _index_of(own: tuple[str, ...]) -> tuple[WordIndex, dict[str, str]]:
    reasons = dict.fromkeys(_INNOCENT, "")
    reasons |= {w.word: w.reason for w in WORDINGS}
    for line in own:
        word, _, instead = (part.strip() for part in line.partition("→"))
        if word:
            by_town = _BY_TOWN if instead else "町が使わないと決めた言葉です"
            reasons[word] = Wording(word, instead, by_town, is_confirmed=True).reason
    return WordIndex({word: word for word in reasons}), reasons
