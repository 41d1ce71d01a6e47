"""事実確認 names what it asks to check."""

import pytest

from apps.chat.checklist import checklist

NOTICE = """# 防災訓練について

1. 日時　令和８年11月22日（日）午前9時30分
2. 場所　中央公民館

| 地区 | 回答数 |
|---|---|
| 本町 | 42件 |
| 緑町 | 31 |

災害対策基本法第５条の２により行います。費用は1,200千円、前年より△3.5％です。電話0123-45-6789。［担当課］
"""


def test_every_fact_is_named_once_in_its_own_point() -> None:
    assert checklist(NOTICE) == [
        "元の資料や質問と、内容が合っている",
        "［　］のまま残っているところ（1か所）を、書き出したあとで埋める",
        "日付・曜日・時刻（令和8年11月22日(日)、午前9時30分）を確かめた",
        "数字（42件、31、1,200千円、△3.5%）を元の資料で確かめた",
        "法令や条番号（災害対策基本法第5条の2）を例規集で確かめた",
        "連絡先（0123-45-6789）を確かめた",
        "個人が分かる情報が含まれていない",
    ]


def test_a_plain_text_still_has_points() -> None:
    assert checklist("おはようございます。") == [
        "元の資料や質問と、内容が合っている",
        "個人が分かる情報が含まれていない",
    ]


def test_many_figures_are_counted_not_listed() -> None:
    (figures,) = [p for p in checklist("、".join(f"{n}人" for n in range(10, 20))) if p.startswith("数字")]
    assert figures == "数字（10人、11人、12人、13人 ほか6つ）を元の資料で確かめた"


@pytest.mark.parametrize("text", ["申請の方法を変えます。", "作法のとおりに行います。", "違法ではありません。"])
def test_words_that_end_like_a_law_are_none(text: str) -> None:
    assert not any(p.startswith("法令") for p in checklist(text))


def test_the_numbers_of_a_list_are_no_figures() -> None:
    assert len(checklist("1. 目的\n2. 内容\n（３）その他\n")) == 2
