"""When a clerk is told that chat is the wrong place to ask, and when not."""

import pytest

from apps.chat.hints import hint_for


@pytest.mark.parametrize(
    "question",
    [
        "見本町の人口を教えてください",
        "住民票の手数料はいくらですか",
        "個人情報保護条例の第１２条を教えて",
        "総務省の電話番号は何番ですか",
        "固定資産税の納付の期限はいつですか",
    ],
)
def test_looking_up_a_fact_gets_a_hint(question: str) -> None:
    hint = hint_for(question, has_attachments=False)
    assert hint is not None
    assert hint.title == "事実を調べる使い方には向きません"


@pytest.mark.parametrize("question", ["今日の天気は？", "最新のニュースを教えて", "現在の総務大臣はだれですか"])
def test_asking_for_what_just_happened_gets_a_hint(question: str) -> None:
    hint = hint_for(question, has_attachments=False)
    assert hint is not None
    assert hint.title == "新しい出来事は、AIには分かりません"


@pytest.mark.parametrize(
    "question",
    [
        "手数料の改定のお知らせを書いてください。いつから変わるかが分かるようにしてください",
        "次の条例の文を、分かりやすく言い換えてください。どこが大事ですか",
        "課内会議の議題の案を五つ出してください",
        "人口が減る町の総合計画の考え方を整理してください",
        "あいさつ文を直してください",
    ],
)
def test_writing_gets_none(question: str) -> None:
    assert hint_for(question, has_attachments=False) is None


def test_looking_it_up_in_an_attached_file_is_the_right_use() -> None:
    assert hint_for("手数料はいくらですか", has_attachments=True) is None
