"""What may be said of nobody without care: illness, disability, crime and the like, where a person stands beside it.

A word of these alone is in every leaflet of a welfare section. It weighs (3B) when somebody is told apart near it, and
not when it names a service, a rule or a campaign. Dated data, from the law's list of 要配慮個人情報.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.ng_words import WordIndex, lowered
from gateway.guard.weights import class_of

AS_OF: Final = date(2026, 11, 28)


@dataclass(frozen=True, slots=True)
class Matter:
    """`basis`: which words of the law name it. is_confirmed: the words were read, and such examples stand beside them."""

    about: str
    basis: str
    words: tuple[str, ...]
    is_confirmed: bool = True


_ACT: Final = "個人情報保護法2条3項"
_ORDER: Final = "同施行令2条"
MATTERS: Final = (
    Matter("病歴", _ACT, (
        "病歴", "既往歴", "持病", "病名", "診断名", "がん", "癌", "白血病", "腫瘍", "糖尿病", "脳梗塞", "心筋梗塞", "肝炎", "結核",
        "hiv", "エイズ", "梅毒", "ハンセン病", "うつ病", "鬱病", "うつ状態", "適応障害", "双極性障害", "統合失調症", "パニック障害",
        "認知症", "てんかん", "依存症", "摂食障害", "難病", "パーキンソン病", "精神疾患", "不妊治療", "流産", "人工妊娠中絶",
    )),
    Matter("心身の障害", f"{_ORDER}1号", (
        "身体障害", "知的障害", "精神障害", "発達障害", "高次脳機能障害", "視覚障害", "聴覚障害", "肢体不自由", "自閉症",
        "自閉スペクトラム", "adhd", "アスペルガー", "ダウン症", "障害者手帳", "療育手帳", "愛の手帳", "障害支援区分", "障害等級",
    )),
    Matter("健診や診療", f"{_ORDER}2号・3号", (
        "健診結果", "健康診断の結果", "診断書", "診療録", "カルテ", "精神科", "心療内科", "通院", "入院", "投薬", "服薬",
        "処方", "人工透析", "手術", "カウンセリング", "ストレスチェックの結果",
    )),
    Matter("犯罪の経歴", f"{_ACT}、{_ORDER}4号・5号", (
        "前科", "犯罪歴", "服役", "懲役", "禁錮", "禁固", "拘禁刑", "執行猶予", "仮釈放", "保護観察", "少年院", "逮捕", "起訴",
        "書類送検", "被疑者", "容疑者", "被告人",
    )),
    Matter("犯罪の被害", _ACT, (
        "犯罪被害", "性被害", "性的被害", "性的暴行", "dv被害", "dvを受け", "暴力を受け", "配偶者からの暴力", "虐待を受け", "虐待の疑い",
        "被虐待", "ストーカー被害", "詐欺の被害", "詐欺被害",
    )),
    Matter("信条や身分", _ACT, (
        "被差別部落", "同和地区の出身", "同和地区出身", "非嫡出子", "信仰する", "信仰して", "入信", "支持政党", "党員である",
    )),
    # Not in the law's list. A municipality may name it by ordinance (条例要配慮個人情報), and some do: unconfirmed.
    Matter("生活保護", "条例要配慮個人情報（団体による）", (
        "生活保護", "被保護者", "被保護世帯",
    ), is_confirmed=False),
)  # fmt: skip

_ABOUT: Final = {word: matter.about for matter in MATTERS for word in matter.words}
_INDEX: Final = WordIndex({word: word for word in _ABOUT})
# Every word has one of these signs or is one of these words: most texts have neither. What is of half or of full width
# may be any of them.
_SIGN: Final = re.compile(
    "[病癌瘍梗炎核梅鬱症障妊流絶肢閉療愛疾診院薬処透術科罪服懲錮禁拘猶釈察少逮起書疑被暴虐詐仰信党嫡護歴ｦ-ﾟａ-ｚＡ-Ｚ]"
)
_KANA: Final = (
    "がん", "うつ状", "てんかん", "カルテ", "カウンセ", "エイズ", "アスペル", "ストレスチ", "同和地区", "hiv", "adhd", "dvを",
)  # fmt: skip
# Directly after a word: then it is a service, a rule, a campaign or a number of people, and nobody's.
_PUBLIC_MATTER: Final = re.compile(
    r"(?:者|児|患者)?(?:等|など)?(?:の|に関する|に係る|についての|の方への|の人への)?"
    r"(?:制度|手続|申請の?(?:方法|手続|案内)|案内|窓口|相談|研修|講座|講演|講師|予防|対策|検診|施策|事業|計画|基本法|法|条例|規則|要綱|課|係|"
    r"室|班|センタ-|サポ-タ-|カフェ|協会|月間|週間|啓発|統計|人数|件数|者数|予算|決算|割合|率|施設|教室|セミナ-|基準|理解|家族会|スポ-ツ|雇用|"
    r"差別|とは|(?:支援|福祉)(?:法|課|係|室|班|計画|センタ-|事業|団体|制度|員|策))"
)
_CANCER: Final = "がん"
_NO_CANCER_AFTER: Final = tuple("ばこじきたす")
# All but what may stand between two words: のがん, はがん.
_KANA_BEFORE: Final = re.compile(
    r"[ぁあぃいぅうぇえぉおかきくけこさしすせそたちつてなぬねひふへほまみむめよらりるれろん]\Z"
)
# In characters of the original.
_REACH: Final = 100
# Who is told apart. A telephone number or an e-mail address near such a word is most often an office's.
_PERSONS: Final = frozenset(
    {
        Kind.NAME, Kind.BIRTHDAY, Kind.ADDRESS, Kind.RESIDENT_CODE, Kind.PENSION, Kind.LICENCE, Kind.INSURANCE, Kind.PASSPORT,
        Kind.RESIDENCE_CARD, Kind.MY_NUMBER,
    }
)  # fmt: skip
# Somebody named for the work they do is not whom the text is about.
_OFFICE_BEFORE: Final = re.compile(
    r"(?:担当者?|[課部係室局次所園校町市村区会]長|主査|主任|主事|主幹|知事|議員|講師|医師|記者|作成者|文責|起案者?|[課係室班局])(?:は|の|[:：(（])?\s?\Z"
)
_OFFICE_AFTER: Final = re.compile(
    r"\s?(?:[課部係室局次所園校町市村区会]長|主査|主任|主事|主幹|参事|知事|議員|委員|講師|医師|先生|記者|弁護士|保健師|看護師|ケ[アー]マネ)"
)


def may_be_sensitive(text: str) -> bool:
    """Whether names matter in this text, by a quick look that misses no word of the list."""
    if _SIGN.search(text) is None:
        lower = text.lower()
        if not any(word in lower for word in _KANA):
            return False
    return next(_words_in(Folded(text)), None) is not None


def find_sensitive(folded: Folded, found: Iterable[Finding]) -> Iterator[Finding]:
    """Words of illness and the like within reach of somebody; `found` is what the other detectors said."""
    original = folded.original
    people = sorted((f.start, f.end) for f in found if f.kind in _PERSONS and not _is_at_work(f, original))
    if not people:
        return
    starts = [start for start, _ in people]
    for start, end, word in _words_in(folded):
        at = bisect_left(starts, start)
        is_near = (at < len(people) and people[at][0] - end <= _REACH) or (
            at > 0 and start - people[at - 1][1] <= _REACH
        )
        if is_near:
            reason = f"{_ABOUT[word]}を示す言葉が、人を特定できるもののそばにあります。"
            yield Finding(Kind.SENSITIVE, start, end, class_of(Kind.SENSITIVE), reason)


def _words_in(folded: Folded) -> Iterator[tuple[int, int, str]]:
    """Places in the original, each word once where several share a place."""
    text = folded.text
    last = 0
    for start, end, word in _INDEX.find(lowered(text)):
        if start < last or _PUBLIC_MATTER.match(text, end):
            continue
        if word == _CANCER and (text.startswith(_NO_CANCER_AFTER, end) or _KANA_BEFORE.search(text[start - 1 : start])):
            continue
        last = end
        yield *folded.span(start, end), word


def _is_at_work(finding: Finding, text: str) -> bool:
    return finding.kind is Kind.NAME and (
        _OFFICE_BEFORE.search(text[max(0, finding.start - 8) : finding.start]) is not None
        or _OFFICE_AFTER.match(text[finding.end : finding.end + 8]) is not None
    )
