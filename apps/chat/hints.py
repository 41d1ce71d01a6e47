"""Says when chat is the wrong tool: looking up facts it cannot know, or personal numbers it must not see."""

import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hint:
    """`title` says what is odd about the question, `detail` where to look instead."""

    title: str
    detail: str


_TODAY = re.compile(r"(今日|明日|現在|いま|最新|今年)の?.{0,12}(天気|気温|株価|為替|ニュース|首相|大臣|順位|開いて)")
_LOOK_UP = re.compile(
    r"(電話番号|住所|郵便番号|営業時間|開館時間|料金|人口|条例|規則|要綱|第[0-9]+条|統計).{0,16}(教えて|何番|いくつ|いくら|どこ|何人|何時|調べて|検索)"
)


def hint_for(question: str, *, has_attachments: bool) -> Hint | None:
    """A hint to show beside the answer, or None. With material attached, looking things up in it is the right use."""
    if has_attachments:
        return None
    text = unicodedata.normalize("NFKC", question)
    if _TODAY.search(text):
        return Hint(
            "新しい出来事は、AIには分かりません",
            "AIはインターネットを見ていません。公式のホームページで確かめてください。",
        )
    if _LOOK_UP.search(text):
        return Hint(
            "事実を調べる使い方には向きません",
            "AIはもっともらしい誤りを書くことがあります。例規集や担当課の資料を付けて、その中から探させてください。",
        )
    return None
