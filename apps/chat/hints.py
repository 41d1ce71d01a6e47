"""Says when chat is the wrong tool: looking up facts it cannot know, or happenings it has not heard of."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Hint:
    """`title` says what is odd about the question, `detail` where to look instead."""

    title: str
    detail: str


_ASKED: Final = (
    r"(?:教えて|知りたい|何番|いくつ|いくら|どこ|何人|何時|何歳|いつ|だれ|誰|どれくらい|調べて|検索|ですか|ありますか)"
)
_TODAY: Final = re.compile(
    r"(?:今日|明日|昨日|今週|現在|いま|最新|最近|今年)の?.{0,12}(?:天気|気温|株価|為替|ニュース|首相|大臣|順位|相場|開いて|災害|警報|改正)"
)
_FACTS: Final = re.compile(
    r"(?:電話番号|住所|郵便番号|営業時間|開館時間|開庁時間|休館日|料金|手数料|税率|人口|世帯数|面積|締切|期限|条例|規則|要綱|通知|第[0-9]+条|判例|統計|担当課|連絡先|ホームページ)"
    r".{0,20}" + _ASKED
)
# Somebody who hands over the text, or wants one written, asks for no fact.
_WRITES: Final = re.compile(
    r"書いて|作って|作成|直して|書き直|言い換え|要約|まとめ|整理|考えて|案を|例を|下書き|翻訳|次の(?:文|通知|条例|資料)"
)


def hint_for(question: str, *, has_attachments: bool) -> Hint | None:
    """A hint to show beside the answer, or None. With material attached, looking things up in it is the right use."""
    if has_attachments:
        return None
    text = unicodedata.normalize("NFKC", question)
    if _WRITES.search(text) or len(text) > 400:
        return None
    if _TODAY.search(text):
        return Hint(
            "新しい出来事は、AIには分かりません",
            "AIはインターネットを見ていません。公式のホームページで確かめてください。",
        )
    if _FACTS.search(text):
        return Hint(
            "事実を調べる使い方には向きません",
            "AIはもっともらしい誤りを書くことがあります。例規集や担当課の資料を付けて、その中から探させてください。",
        )
    return None
