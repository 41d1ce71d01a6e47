"""What the detectors find, and what they leave alone; shapes first, then tricks, then time."""

import time
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.guard.check_digits import is_corporate_number, my_number
from gateway.guard.columns import find_in_columns
from gateway.guard.findings import Kind
from gateway.guard.fold import FOLDING, SHOWING, STRANGE, Folded, fold
from gateway.guard.inspection import _all, inspect, inspect_long, is_dense, is_plain
from gateway.guard.ng_words import clean_words
from tenants.context import DataClass


def found(text: str, **options: object) -> list[tuple[str, str]]:
    return [(f.kind.value, text[f.start : f.end]) for f in inspect(text, **options)]  # type: ignore[arg-type]  # a test's own


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("番号は123456789018です", "my_number", "123456789018"),
        ("マイナンバー：1234 5678 9018", "my_number", "1234 5678 9018"),
        ("マイナンバー 123456789012", "my_number", "123456789012"),
        ("123456789012（個人番号）", "my_number", "123456789012"),
        ("個人番号\n1234\n5678\n9018", "my_number", "1234\n5678\n9018"),
        ("住民票コード 12345678903", "resident_code", "12345678903"),
        ("基礎年金番号は1234-567890", "pension_number", "1234-567890"),
        ("免許証の番号 309012345620", "driving_licence", "309012345620"),
        ("保険者番号 138016 記号 12-34 番号 567", "insurance_number", "12-34 番号 567"),
        ("介護保険 被保険者番号 0001234567", "insurance_number", "0001234567"),
        ("見本銀行 本店 普通 1234567", "bank_account", "1234567"),
        ("ゆうちょ 記号10120 番号12345671", "bank_account", "10120 番号12345671"),
        ("4111-1111-1111-1111で支払い", "card_number", "4111-1111-1111-1111"),
        ("378282246310005", "card_number", "378282246310005"),
        ("30569309025904", "card_number", "30569309025904"),
        ("6011-1111-1111-1117で払う", "card_number", "6011-1111-1111-1117"),
        ("銀聯 6200123456789010　", "card_number", "6200123456789010"),
        ("6228 4800 1234 5678 903", "card_number", "6228 4800 1234 5678 903"),
        ("3530111333300001116", "card_number", "3530111333300001116"),
        ("カード番号 4222222222222", "card_number", "4222222222222"),
        ("クレジットカード 4111111111111111110", "card_number", "4111111111111111110"),
        ("旅券番号TK1234567です", "passport", "TK1234567"),
        ("パスポートの番号はＴＫ１２３４５６７。", "passport", "ＴＫ１２３４５６７"),
        ("TK12345671JPN7003024M3001017", "passport", "TK12345671JPN7003024M3001017"),
        ("AB12345678CD", "residence_card", "AB12345678CD"),
        ("090-1234-5678へ", "phone", "090-1234-5678"),
        ("060-1234-5678へ", "phone", "060-1234-5678"),
        ("電話 0468224000", "phone", "0468224000"),
        ("+81-90-1234-5678", "phone", "81-90-1234-5678"),
        ("taro@example.comへ", "email", "taro@example.com"),
        ("ｔａｒｏ＠ｅｘａｍｐｌｅ．ｃｏｍ", "email", "ｔａｒｏ＠ｅｘａｍｐｌｅ．ｃｏｍ"),
        ("〒238-8550 神奈川県横須賀市小川町11番地", "address", "〒238-8550 神奈川県横須賀市小川町11番地"),
        ("新宿区西新宿二丁目八番一号の", "address", "新宿区西新宿二丁目八番一号"),
        ("横須賀市小川町11-3", "address", "横須賀市小川町11-3"),
        ("生年月日 昭和四十五年三月二日", "birthday", "昭和四十五年三月二日"),
        ("平成元年1月8日生まれ", "birthday", "平成元年1月8日"),
        ("申請者は山田太郎です", "name", "山田太郎"),
        ("鈴木さんが来た", "name", "鈴木"),
        ("松本様からのご意見", "name", "松本"),
        ("林　愛の件", "name", "林　愛"),
        ("氏　名　　山　田　太　郎　様", "name", "山　田　太　郎"),
        ("申請者　鈴 木 一 郎さん", "name", "鈴 木 一 郎"),
        ("髙橋さんと話した", "name", "髙橋"),
        ("𠮷田様のご意見", "name", "𠮷田"),
        ("児童 山田花子（令和２年５月３日）", "birthday", "令和２年５月３日"),
        ("世帯主 山田太郎様（S55.9.19、妻）", "birthday", "S55.9.19"),
        ("氏名,生年月日\n山田,昭和五十一年十月十五日", "birthday", "昭和五十一年十月十五日"),
        ("【極秘】", "class_mark", "【極秘】"),
        ("㊙\n計画", "class_mark", "㊙"),
    ],
)  # fmt: skip
def test_found(text: str, kind: str, part: str) -> None:
    assert (kind, part) in found(text)


@pytest.mark.parametrize(
    "text",
    [
        "法人番号 7000012050002、8000020131016",
        "法人番号 7 0000 1205 0002",
        "登録番号T7000012050002",
        "T1234567890123（登録番号）",
        "団体コード142018",
        "JAN 4901234567894",
        "4111111111111111110",
        "注文番号 622848001234567894",
        "追跡番号：6228-4800-1234-5678-903",
        "9228480012345678903",
        "20260401123045123",
        "総第123号、第3条第2項第1号",
        "123,456,789,018円",
        "￥123456789018",
        "受付 202604011230、2026-04-01 12:30:00.000",
        "令和8年4月1日から令和9年3月31日まで",
        "0120-95-0178、0570-783-578、0800-123-4567、119番",
        "〒100-0001",
        "000000000000 111111111111",
        "0000-0000-0000-0000",
        "管理番号 123456789018",
        "商号 見本商店 1234-56-789018",
        "会社法人等番号 1234－56－789018",
        "会社法人等番号 123456789018",
        "統計表123456789018の第2列",
        "統計表ID：123456789018",
        "議案第123456789018号",
        "注文 123456789018 の品が届かない",
        "ご注文No.1234-5678-9018",
        "追跡：1234 5678 9018",
        "申請ＩＤ　123456789018",
        "受付№ 123456789018",
        "サーバーのアドレスは192.168.100.200です",
        "本町一丁目の公園、小川町の自治会",
        "市民課1-2、横須賀市条例1-2",
        "soumu@town.example.lg.jp",
        "秘密文書の管理規程を要約してください。",
        "中川の堤防と森林と原野",
        "渡辺橋の架け替え工事",
        "お客様、皆様、神様",
        "内　容　届いた米の袋が破れていた。\n対　応　代わりの品を送った。\n住　所　別紙",
        "山田町（令和8年4月1日）",
    ],
)
def test_left_alone(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "個人番号 1234-56-789018",
        "マイナンバー（受付No 1234-5678-9018）",
        "注文した人の番号は1234-5678-9018",
        "受付 1234-5678-9018 山田",
        "申請 123456789018",
        "追跡 5555、123456789018",
        "1234 56 789018 マイナンバー",
        "12-1234-5678-9018",
    ],
)
def test_a_word_farther_off_or_another_shape_hides_no_my_number(text: str) -> None:
    assert "my_number" in [kind for kind, _ in found(text)]


def test_a_card_is_not_taken_for_a_my_number_inside_it() -> None:
    assert found("1234 5678 9018 と 4111 1111 1111 1111") == [
        ("my_number", "1234 5678 9018"),
        ("card_number", "4111 1111 1111 1111"),
    ]


def test_the_label_decides_between_numbers_of_the_same_length() -> None:
    """By their check digits alone, this one could be either."""
    number = next(f"30{n:010d}" for n in range(10**6) if my_number(f"30{n:010d}"[:11]) == int(f"30{n:010d}"[11]))
    assert found(f"運転免許証番号 {number}") == [("driving_licence", number)]
    assert found(f"個人番号 {number}") == [("my_number", number)]
    assert found(number) == [("my_number", number)]


def test_a_house_and_a_telephone_number_are_no_corporate_number() -> None:
    """Together they have thirteen digits that pass its check."""
    text = "横須賀市小川町1丁目2-20 03-3256-6149"
    assert is_corporate_number("2200332566149")
    assert ("phone", "03-3256-6149") in found(text)


def test_a_name_that_ends_in_a_digit_does_not_make_an_amount_of_a_number() -> None:
    assert ("phone", "060-4291-8578") in found("遠藤健一,060-4291-8578,見本町")


@pytest.mark.parametrize(
    "text", ["① 1234 5678 9018", "1. 1234-5678-9018", "個人番号 3 1234 5678 9018", "2　1234 5678 9018　3"]
)
def test_the_number_of_a_line_hides_no_number_of_a_person(text: str) -> None:
    assert [kind for kind, _ in found(text)] == ["my_number"]


def test_two_numbers_after_one_another_are_two_findings() -> None:
    text = "電話 090-1234-5678 マイナンバー 1234-5678-9018 カード 4111111111111111"
    assert [kind for kind, _ in found(text)] == ["phone", "my_number", "card_number"]


def test_classes_and_reasons() -> None:
    by_kind = {f.kind: f for f in inspect("マイナンバー 123456789012、電話 090-1234-5678、\n【機密性3B】\n【極秘】")}
    assert by_kind[Kind.MY_NUMBER].data_class is DataClass.C3B
    assert "計算には合いません" in by_kind[Kind.MY_NUMBER].reason
    assert by_kind[Kind.PHONE].data_class is DataClass.C3C
    assert [f.data_class for f in inspect("【機密性3B】\n【極秘】\n【機密性3C】")] == [
        DataClass.C3B,
        DataClass.C3A,
        DataClass.C3C,
    ]
    assert all(kind.words for kind in Kind)


def test_the_towns_own_number_is_public() -> None:
    public = {"046-822-4000", "横須賀市小川町11番地"}
    assert found("代表 ０４６（８２２）４０００、横須賀市小川町１１番地", public=public) == []
    assert found("代表 046-822-4001", public=public) == [("phone", "046-822-4001")]


def test_ng_words_in_any_width_and_latin_ones_as_whole_words() -> None:
    words = clean_words(["ＳＭ", "コード名アサガオ", "アサガオ", "", "ｱｻｶﾞｵ"])
    assert words == ("ＳＭ", "コード名アサガオ", "アサガオ")
    assert found("ｺｰﾄﾞ名ｱｻｶﾞｵの件", ng_words=words) == [("ng_word", "ｺｰﾄﾞ名ｱｻｶﾞｵ"), ("ng_word", "ｱｻｶﾞｵ")]
    assert found("SMTPとsm", ng_words=words) == [("ng_word", "sm")]
    assert found("plain", ng_words=words) == []


# ── tricks ───────────────────────────────────────────────────────────────────────────────────────────────────────

UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e\u200e\ufe0f\u034f"
HYPHENS = "-‐‑‒–—―−－ー〜"
WIDTHS: tuple[Callable[[str], str], ...] = (
    str,
    lambda d: chr(ord(d) + 0xFEE0),
    lambda d: "〇一二三四五六七八九"[int(d)],
    lambda d: chr(0x1D7D8 + int(d)),
)
letters = st.text(alphabet="あいうえおのはですと、。\n ", max_size=12)


@given(
    body=st.integers(0, 10**11 - 1).map(lambda n: f"{n:011d}").filter(lambda d: len(set(d)) > 1),
    width=st.sampled_from(WIDTHS),
    joint=st.sampled_from([*HYPHENS, "", " ", "\u3000", "\n", " - ", "－\u200b"]),
    unseen=st.lists(st.tuples(st.integers(0, 11), st.sampled_from(UNSEEN)), max_size=6),
    before=letters,
    after=letters,
)
def test_no_writing_hides_a_my_number(
    body: str, width: Callable[[str], str], joint: str, unseen: list[tuple[int, str]], before: str, after: str
) -> None:
    digits = [width(d) for d in f"{body}{my_number(body)}"]
    for at, sign in unseen:
        digits[at] += sign if at < 11 else ""
    written = joint.join("".join(digits[i : i + 4]) for i in (0, 4, 8))
    text = f"{before}番{written}と{after}"
    if joint == "" and fold(written).startswith(("19", "20")):
        # In one piece it may be a date with a time, which is left alone unless its label is near.
        text = f"個人番号{text}"
    [finding] = [f for f in inspect(text, names=False) if f.kind is Kind.MY_NUMBER]
    assert fold(text[finding.start : finding.end]) == fold(written)


@given(st.text())
def test_every_folded_character_leads_back_to_where_it_came_from(text: str) -> None:
    folded = Folded(text)
    last = 0
    for at, character in enumerate(folded.text):
        start, end = folded.span(at, at + 1)
        assert last <= start < end <= len(text)
        assert character in fold(text[start:end])
        last = start


@given(st.text(alphabet=st.sampled_from("0123456789-－ー 　.()〇一二三年月日番号地市町@A記保険者口座普通\n【】秘")))
def test_findings_lie_in_the_text_and_do_not_overlap(text: str) -> None:
    end = 0
    for f in inspect(text):
        assert end <= f.start < f.end <= len(text)
        end = f.end


@given(
    st.text(
        alphabet=st.sampled_from(
            "0129０９一二①② \n　-－ー〜のノ号丁目番地町市区生年月日昭和平成元S.@＠秘【】機密性AaBあ会議TK記普通"
        ),
        max_size=24,
    )
)
def test_the_quick_look_passes_nothing_that_the_long_one_would_find(text: str) -> None:
    assert not (is_plain(text) and _all(Folded(text)))


COMMON = [*"0129０９一二〇十百 　\n-ー〜～－のノ号丁番地町市区生年月日元昭出誕SあいAt@(（)）[]・._…、。,記口座普電話秘", "被保険者番号", "アット", "birth"]  # fmt: skip


@given(st.lists(st.sampled_from(COMMON), max_size=24).map("".join))
def test_neither_does_the_quicker_one_at_texts_of_common_signs(text: str) -> None:
    assert not (is_plain(text) and [*_all(Folded(text)), *find_in_columns(text)])


@pytest.mark.parametrize(
    "text",
    [
        "令和8年11月23日の午後1時から3時まで、45人が参加します。",
        "予算は1億2,345万円で、前年より2.5%増えました（第3条第2項）。",
        "学生と先生が、生活の場の衛生について話し合う。",
    ],
)
def test_dates_and_counts_do_not_need_the_long_look(text: str) -> None:
    assert is_plain(text)


@pytest.mark.parametrize("digits", ["1 2 3 4 5 6 ", "１２３４　", "一二三-四五六 ", "123456789018、", "①②③ "])
def test_a_text_full_of_digits_is_dense(digits: str) -> None:
    assert is_dense(digits * 30)


@pytest.mark.parametrize(
    "text", ["090-1234-5678へ。" * 5, "令和8年4月1日の会議の議事録を要点だけにまとめる。" * 9, "1 " * 30, "あ" * 4_000]
)
def test_a_text_with_some_is_not(text: str) -> None:
    assert not is_dense(text)


@pytest.mark.parametrize(
    "text", ["小川町5番地", "平成元年1月8日生", "横須賀市小川町1－2", "【機密性３Ａ】", "S1.1.8生"]
)
def test_few_digits_can_be_enough(text: str) -> None:
    assert inspect(f"横須賀市{text}" if text.startswith("小川") else text, names=False)


def test_every_common_sign_folds_to_one_but_for_one() -> None:
    common = [chr(code) for code in range(0x10000) if STRANGE.match(chr(code)) is None]
    assert len(common) > 20_000
    for table in (FOLDING, SHOWING):
        assert [c for c in common if len(table.of(c)) != 1] == ["…"]


def test_what_folds_to_nothing_and_what_folds_to_more() -> None:
    assert fold("㍻㈱①\u200bｶﾞ①") == "平成(株) 1 ガ 1 "
    assert fold("1\u20e32\ufe0f\u20e3") == "12"
    assert fold("٣४") == "34"
    assert unicodedata.normalize("NFD", "が") != "が"
    assert fold(unicodedata.normalize("NFD", "がぎ")) == "がぎ"


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1 ",
        "1-",
        "1-2-",
        "12345678901 ",
        "1 - . (",
        "4111 ",
        "個人番号",
        "記号1番",
        "市1-",
        "丁目1番",
        "a@",
        "a.",
        "【秘",
        "保険者番号 記号 ",
        "生年月日1970年",
        "山田",
        "が\u3099",
        "横須賀市小川町11番地の",
        "午後の会議の議事録を、要点だけにまとめてください。",
    ],
)
def test_time_grows_with_the_length_and_not_with_its_square(piece: str) -> None:
    def seconds(length: int) -> float:
        text = (piece * (length // len(piece) + 1))[:length]
        best = float("inf")
        for _ in range(3):
            started = time.thread_time()
            inspect(text)
            best = min(best, time.thread_time() - started)
        return best

    inspect("山田")
    # Ten times the text; its square would be a hundred times the work.
    assert seconds(10_000) < 30 * max(seconds(1_000), 1e-4)


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────

# No check digit is right: only the heading tells what they are.
PEOPLE = [("遠藤健一", f"{n:012d}") for n in range(420_000_000_001, 420_000_000_001 + 9_000_037 * 40, 9_000_037)]
PEOPLE = [(name, n) for name, n in PEOPLE if my_number(n[:11]) != int(n[11])]


@pytest.mark.parametrize("mark", [",", "\t", " | "])
@pytest.mark.parametrize("heading", ["個人番号", "ﾏｲﾅﾝﾊﾞｰ", '"個人番号（本人）"'])
def test_a_heading_says_what_the_numbers_below_it_are(mark: str, heading: str) -> None:
    rows = [mark.join((name, number, "在住")) for name, number in PEOPLE]
    table = "\n".join([mark.join(("氏名", heading, "備考")), *rows])
    assert len(rows) > 25
    assert found(table, names=False) == [("my_number", number) for _, number in PEOPLE]
    # The same numbers under another heading are an office's own.
    assert found(table.replace(heading, "整理の番号"), names=False) == []


def test_a_heading_reaches_rows_that_are_read_in_another_piece() -> None:
    rows = ["遠藤,420000000002,あ" for _ in range(3_000)]
    table = "\n".join(["氏名,個人番号,備考", *rows])
    assert len(inspect_long(table, names=False)) == len(rows)


def test_headings_of_dates_and_accounts_count_and_end_with_their_table() -> None:
    table = "児童,生年月日,口座番号\nA,2020/4/1,1234567\nB,令和2年5月3日,7654321\n\n以上です。\nA,2020/4/1,1234567"
    kinds = [kind for kind, _ in found(table)]
    assert kinds == ["birthday", "bank_account"] * 2


@pytest.mark.parametrize("mark", [",", "\t", " | "])
def test_what_stands_below_a_heading_of_names_is_a_name_though_nobody_knows_it(mark: str) -> None:
    table = "\n".join(
        mark.join(row) for row in (("番号", "氏名", "地区"), ("1", "渋柿　ゑい", "川西"), ("2", "未定", "川東"))
    )
    assert ("name", "渋柿　ゑい") in found(table)
    assert ("name", "未定") not in found(table)
    assert ("name", "渋柿　ゑい") not in found(table.replace("氏名", "品名"))


# ── words of a town ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["ア サ ガ オ 計 画", "ｱ･ｻ･ｶﾞ･ｵ･計･画", "アサガオ_計画", "ア.サ.ガ.オ.計.画の話"])
def test_a_word_with_something_between_its_letters_is_that_word(text: str) -> None:
    [word] = inspect(text, ng_words=("アサガオ計画",), names=False)
    assert word.kind is Kind.NG_WORD
    assert text[word.start : word.end].strip("の話") == text.strip("の話")


def test_two_letters_that_meet_by_chance_are_no_word() -> None:
    assert inspect("庁内、外出", ng_words=("内外",), names=False) == ()
    assert inspect("a s k", ng_words=("ask",), names=False) == ()
