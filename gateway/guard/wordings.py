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


# As published, unless said otherwise: jahis.law.nagoya-u.ac.jp/lawdb/l/356a0051, 357a0066, 413a0153, 418a0080.
_1981: Final = "昭和56年法律第51号"
_1982: Final = "昭和57年法律第66号"
_NURSES: Final = "平成13年法律第153号"
_SCHOOLS: Final = "平成18年法律第80号"
# jnrera.starfree.jp, a copy of the official text.
_1998: Final = "平成10年法律第110号"
# The minutes of the meeting of that day at mhlw.go.jp, which settled the report.
_DEMENTIA: Final = "平成16年12月24日 厚生労働省の検討会報告書"
# jspn.or.jp: the society decided, and the ministry told prefectures in the same month.
_SCHIZOPHRENIA: Final = "平成14年8月 日本精神神経学会の決定と厚生労働省の通知"
# Its 附則 in 民法 as consolidated: who was 禁治産者 is taken for 成年被後見人, who was 準禁治産者 for 被保佐人.
_GUARDIANSHIP: Final = "平成11年法律第149号"
# The House of Councillors' outline and dinf.ne.jp.
_WOMEN: Final = "令和4年法律第52号"
# A secondary report of the act, which replaced the word in five laws.
_HOSPITALS: Final = "平成18年法律第94号"
# 東京都中野区, 57中総総第115号 (the ward's own words for 白痴: 精神の発育の遅れた者).
_BY_WARD: Final = "昭和57年5月12日 中野区の通知"
_BY_TOWN: Final = "町が決めた言い換え"
WORDINGS: Final = (
    Wording("つんぼ", "耳が聞こえない者", _1981, is_confirmed=True),
    Wording("不具", "障害", _1982, is_confirmed=True),
    Wording("廃疾", "重度障害", _1982, is_confirmed=True),
    Wording("白痴", "知的障害", _BY_WARD, is_confirmed=True),
    Wording("癩", "ハンセン病", "平成8年法律第28号", is_confirmed=True),
    Wording("精神薄弱", "知的障害", _1998, is_confirmed=True),
    Wording("準禁治産", "保佐", _GUARDIANSHIP, is_confirmed=True),
    Wording("禁治産", "成年後見", _GUARDIANSHIP, is_confirmed=True),
    Wording("看護婦", "看護師", _NURSES, is_confirmed=True),
    Wording("保健婦", "保健師", _NURSES, is_confirmed=True),
    Wording("助産婦", "助産師", _NURSES, is_confirmed=True),
    # 政令 of 1998 for 1999-04-01, from memory; by then forms of the ministry say 保育士.
    Wording("保母", "保育士", "平成11年4月1日 児童福祉法施行令の改正"),
    Wording("痴呆", "認知症", _DEMENTIA, is_confirmed=True),
    Wording("痴ほう", "認知症", _DEMENTIA, is_confirmed=True),
    Wording("精神分裂病", "統合失調症", _SCHIZOPHRENIA, is_confirmed=True),
    Wording("精神病院", "精神科病院", _HOSPITALS, is_confirmed=True),
    Wording("特殊学級", "特別支援学級", _SCHOOLS, is_confirmed=True),
    Wording("婦人相談所", "女性相談支援センター", _WOMEN, is_confirmed=True),
    Wording("婦人相談員", "女性相談支援員", _WOMEN, is_confirmed=True),
    Wording("婦人保護施設", "女性自立支援施設", _WOMEN, is_confirmed=True),
)
# Words that hold one of the above and mean something else.
_INNOCENT: Final = ("不具合",)


def find_wordings(folded: Folded, own: tuple[str, ...] = ()) -> Iterator[Finding]:
    """own: a town's lines, each a word or `word→what is written instead`."""
    index, reasons = _index_of(own)
    # 準禁治産 holds 禁治産, 不具合 holds 不具: the longer word is meant.
    told_until = 0
    longest: dict[int, tuple[int, str]] = {}
    for start, end, word in index.find(lowered(folded.text)):
        if start not in longest or end > longest[start][0]:
            longest[start] = (end, word)
    for start, (end, word) in sorted(longest.items()):
        if end <= told_until:
            continue
        told_until = end
        if word not in _INNOCENT:
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
