"""One tip a day for the home page. They turn by date, so that a section talks about the same one."""

from dataclasses import dataclass
from datetime import date
from typing import Final


@dataclass(frozen=True, slots=True)
class Tip:
    """`card`: the task card on which it can be tried, if there is one."""

    text: str
    card: str = ""


_TIPS: Final = (
    Tip("「誰に・何をしてほしいか」を最初の1行に書くと、直しが少なくなります。", "notice"),
    Tip("「A4で1枚」「300字以内」のように、長さを数で書くと、そのとおりになります。", "summary"),
    Tip("前に作った文書を付けて「この書き方に合わせて」と書くと、町の書きぶりになります。", "rewrite"),
    Tip("答えが合わないときは、質問を直して送り直すほうが、足して聞くより早く済みます。"),
    Tip("件数や合計は、表を付けて聞いてください。計算は式で行い、使った行も示します。", "table"),
    Tip("「根拠になる条文は例規集で確かめる」と決めておくと、まちがった条番号を防げます。"),
    Tip("反対の立場からの質問を三つ作らせると、議会や説明会の準備になります。", "council-answer"),
    Tip("住民向けの文は「中学生にも分かる言葉で」と書き足してください。", "notice"),
    Tip("会議のメモは、話した順のままで構いません。決定と宿題に分けて返ってきます。", "minutes"),
    Tip("名前や住所は、書かなくても文は作れます。A さん、○○地区と置いて聞いてください。"),
    Tip("よく使う頼み方は「この頼み方を保存」で残せます。次からは選ぶだけです。"),
    Tip("書き出す前の確認は、日付・金額・固有名詞・条番号の順に見ると、もれが減ります。"),
)


def tip_of(today: date) -> Tip:
    """The tip of a working day; the weekend keeps Friday's."""
    return _TIPS[(today.toordinal() - max(0, today.weekday() - 4)) % len(_TIPS)]
