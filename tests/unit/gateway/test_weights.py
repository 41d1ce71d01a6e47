"""What makes more of a text than personal data, and what is said beside nobody and weighs nothing."""

import pytest

from gateway.guard.decision import decide
from gateway.guard.findings import Kind
from gateway.guard.inspection import inspect, inspect_long
from gateway.guard.masking import mask
from gateway.guard.sensitive import MATTERS, may_be_sensitive
from gateway.guard.weights import PERSONS, WEIGHTS, class_of
from tenants.context import DataClass
from tenants.policy import GuardAction, GuardPolicy
from tests.evaluation.guard.samples import GIVEN, SURNAMES


def weight(text: str, **options: bool) -> DataClass:
    return decide(GuardPolicy(), DataClass.C1, inspect(text, **options)).data_class


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("山田太郎さんは統合失調症で、月に2回みています。", "統合失調症"),
        ("氏名：鈴木花子\n病名：胃がん（ステージ2）", "がん"),
        ("佐藤健太（平成2年3月4日生）　生活保護の開始を決定", "生活保護"),
        ("田中洋子さんの療育手帳の判定はB2でした。", "療育手帳"),
        ("執行猶予中の加藤浩さんから、就労の相談がありました。", "執行猶予"),
        ("被相談者：三浦典子。夫から暴力を受けたとの訴え。", "暴力を受け"),
        ("横須賀市小川町11番地に住む世帯主はうつ病で休職中", "うつ病"),
        ("木村隆さんのＨＩＶ検査の件", "ＨＩＶ"),
    ],
)  # fmt: skip
def test_illness_and_the_like_beside_somebody_weighs_more(text: str, part: str) -> None:
    words = [text[f.start : f.end] for f in inspect(text) if f.kind is Kind.SENSITIVE]
    assert part in words
    assert weight(text) is DataClass.C3B
    assert may_be_sensitive(text)


@pytest.mark.parametrize(
    "text",
    [
        "統合失調症の人の暮らしを支える制度を、やさしい言葉で説明してください。",
        "認知症サポーター養成講座の講師は鈴木花子先生です。",
        "山田太郎様\n生活保護の申請手続の案内をお送りします。",
        "福祉課の山田太郎です。発達障害者支援センターの開所式の案内を作ってください。",
        "佐藤花子さんもがんばっています。",
        "山田太郎議員から、身体障害者の駐車場について質問がありました。",
        "うつ病の相談は 046-822-4000 へ。",
        "山田太郎様" + "　" * 120 + "別紙 入院の手引",
    ],
)
def test_a_service_an_office_or_nobody_near_weighs_no_more(text: str) -> None:
    assert Kind.SENSITIVE not in {f.kind for f in inspect(text)}


def test_no_word_of_the_list_passes_the_quick_look() -> None:
    assert sum(len(m.words) for m in MATTERS) > 80
    for matter in MATTERS:
        for word in matter.words:
            assert may_be_sensitive(f"その人の{word}を"), word
            assert may_be_sensitive(f"その人の{word.upper()}を"), word
    assert not may_be_sensitive("会議は午前10時から第2会議室で行います。")


def test_a_resident_code_weighs_as_much() -> None:
    assert weight("住民票コード 12345678903") is DataClass.C3B
    assert weight("電話 090-1234-5678") is DataClass.C3C


def rows(count: int) -> str:
    return "\n".join(["| 氏名 | 地区 |", "|---|---|", *(f"| 山田{n}子 | 川西 |" for n in range(count))])


@pytest.mark.parametrize("names", [True, False])
def test_a_list_of_more_than_a_hundred_people_weighs_more(names: bool) -> None:
    assert weight(rows(PERSONS), names=names) is not DataClass.C3B
    [found] = [f for f in inspect(rows(PERSONS + 1), names=names) if f.kind is Kind.PEOPLE_LIST]
    assert rows(0).startswith(rows(PERSONS + 1)[found.start : found.end])
    assert weight(rows(PERSONS + 1), names=names) is DataClass.C3B


def test_people_are_counted_by_what_each_has_one_of() -> None:
    lines = [f"090-1234-{n:04d}" for n in range(PERSONS + 1)]
    assert Kind.PEOPLE_LIST in {f.kind for f in inspect("\n".join(lines), names=False)}
    assert Kind.PEOPLE_LIST not in {f.kind for f in inspect("\n".join(lines[:1] * 300), names=False)}
    assert [f.kind for f in inspect_long(rows(4_000), names=False)] == [Kind.PEOPLE_LIST]


def test_names_of_places_are_no_people() -> None:
    places = "\n".join(["施設名,地区", *(f"第{n}集会所,川西" for n in range(PERSONS + 50))])
    assert inspect(places, names=False) == ()


def masked(text: str) -> str:
    [message] = mask({"messages": [{"role": "user", "content": text}]}).body["messages"]  # type: ignore[misc]  # as given
    return str(message["content"])


def test_masked_it_is_nobody_s_any_more() -> None:
    people = [f"{surname}{given}" for surname in SURNAMES[:20] for given in GIVEN[:8]]
    text = "\n".join(["山田太郎さんは統合失調症です。", "氏名,地区", *(f"{name},川西" for name in people)])
    assert weight(text) is DataClass.C3B
    assert weight(masked(text)) is DataClass.C1
    # What looks like no name stays, and so does the weight.
    codes = "\n".join(["氏名,地区", *(f"A{n},川西" for n in range(PERSONS + 1))])
    assert weight(masked(codes)) is DataClass.C3B


TOLD = GuardPolicy(actions={kind.value: GuardAction.WARN for kind in Kind})


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("山田太郎さんは統合失調症です。", "name=1, sensitive=1"),
        ("住民票コード 12345678901", "resident_code=1"),
        ("\n".join(["氏名,地区", *(f"見本{n}太,川西" for n in range(PERSONS + 1))]), "people_list=1"),
    ],
)
def test_to_be_told_only_lets_nothing_heavy_pass(text: str, header: str) -> None:
    verdict = decide(TOLD, DataClass.C1, inspect(text))
    assert (verdict.data_class, verdict.remedy, verdict.header) == (DataClass.C3B, "block", header)


def test_a_town_may_only_be_told_of_what_is_not_heavy() -> None:
    verdict = decide(TOLD, DataClass.C1, inspect("山田太郎さんの電話は090-1234-5678です。"))
    assert (verdict.data_class, verdict.header) == (DataClass.C1, "phone=1, name=1")


@pytest.mark.parametrize(
    ("stamp", "data_class"),
    [
        ("【極秘】", "3A"), ("（秘）", "3A"), ("【秘・取扱注意】", "3A"), ("取扱厳重注意\n計画", "3A"), ("極秘文書\n計画", "3A"),
        ("(秘 令和9年3月31日まで)", "3A"), ("【機密性3】", "3A"), ("【機密性3B】", "3B"), ("自治体機密性３Ｃ情報", "3C"),
        ("【特定秘密】", "3A"), ("【秘密保持契約】", "1"), ("（秘書課）", "1"), ("【機密性2】", "1"), ("厳重に取り扱うこと", "1"),
    ],
)  # fmt: skip
def test_a_stamp_says_what_a_document_weighs(stamp: str, data_class: str) -> None:
    assert weight(stamp, names=False).value == data_class


def test_what_is_not_confirmed_says_so() -> None:
    assert {k for k, w in WEIGHTS.items() if not w.is_confirmed} == {Kind.RESIDENT_CODE}
    assert [m.about for m in MATTERS if not m.is_confirmed] == ["生活保護"]
    assert all(w.source for w in WEIGHTS.values())
    assert class_of(Kind.PHONE) is DataClass.C3C
