"""Printed sheets: what a person reads on the paper, taken back out of the PDF."""

from datetime import date

import pypdfium2
import pytest

from tenants.printing import Handover, Slip, handover_sheet, initial_password_slips, render_pdf

TODAY = date(2026, 11, 24)
URL = "https://kumiai.example.lg.jp/towns/011011"


def pages(pdf: bytes) -> list[str]:
    document = pypdfium2.PdfDocument(pdf)
    texts = []
    for page in document:
        text = page.get_textpage()
        texts.append(text.get_text_bounded().replace("\r\n", "\n"))
        text.close()
        page.close()
    document.close()
    return texts


def slip(number: int = 1001, *, name: str = "職員 甲", section: str = "総務課", full_login: str = "") -> Slip:
    return Slip("みどり町", section, name, str(number), "abcd-2345-wxyz", URL, full_login)


def slips(*given: Slip) -> list[str]:
    return pages(initial_password_slips(given, made_on=TODAY, contact="内線 123"))


def handover(
    *, sections: tuple[str, ...] = ("総務課", "税務課"), contact: str = "", admin_name: str = "情報 担当"
) -> list[str]:
    sheet = Handover(
        product_name="共同AI",
        town="みどり町",
        code="011011",
        admin_login="9001",
        password="abcd-2345-wxyz",
        entry_url=URL,
        sections=sections,
        month_yen=300_000,
        made_on=TODAY,
        admin_name=admin_name,
        contact=contact,
    )
    return pages(handover_sheet(sheet))


def test_a_slip_says_who_where_and_how() -> None:
    [page] = slips(slip())
    for told in ("みどり町", "職員 甲", "総務課", "1001", "abcd-2345-wxyz", URL, "内線 123", "令和8年11月24日"):
        assert told in page
    assert "有効なのは最初の1回だけ" in page


def test_four_slips_share_a_sheet() -> None:
    found = slips(*(slip(1000 + n) for n in range(9)))
    assert [p.count("abcd-2345-wxyz") for p in found] == [4, 4, 1]
    assert "3 / 3 ページ" in found[2]


def test_the_full_login_is_printed_only_when_it_is_needed() -> None:
    assert "t011011.1001" in slips(slip(full_login="t011011.1001"))[0]
    assert "ユーザー名" not in slips(slip())[0]


def test_the_longest_names_stay_on_their_slip() -> None:
    longest = slip(name="長" * 60, section="課" * 60, full_login="t011011." + "x" * 32)
    found = slips(longest, longest, longest, longest)
    assert len(found) == 1
    assert found[0].count("x" * 32) == 4


@pytest.mark.parametrize(
    "name", ['#import "secret.typ"', "*strong* _emph_ $x^2$", '"], data: [', "#sys.inputs.data", "// note \\ /* */"]
)
def test_what_people_wrote_is_never_markup(name: str) -> None:
    [page] = slips(slip(name=name))
    assert name in page.replace("\n", " ")


def test_the_same_input_prints_the_same_bytes() -> None:
    one, two = (initial_password_slips([slip()], made_on=TODAY) for _ in range(2))
    assert one == two


def test_no_slips_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no slips"):
        initial_password_slips([], made_on=TODAY)


def test_the_handover_sheet_has_all_a_successor_needs() -> None:
    [page] = handover(contact="事務局 000-000-0000")
    for told in (
        "011011",
        "9001",
        "情報 担当",
        "abcd-2345-wxyz",
        URL,
        "300,000円",
        "総務課、税務課",
        "事務局 000-000-0000",
    ):
        assert told in page
    assert "1 / 1 ページ" in page
    assert "令和8年11月24日 発行" in page


def test_without_a_contact_the_sheet_names_the_office() -> None:
    assert "共同利用の事務局に問い合わせてください" in handover()[0]


def test_what_is_not_known_has_no_line() -> None:
    [page] = handover(sections=(), admin_name="")
    assert "課）" not in page
    assert "9001" in page


def test_many_sections_run_on_to_a_numbered_second_page() -> None:
    found = handover(sections=tuple(f"第{n}地域振興担当課" for n in range(150)))
    assert len(found) > 1
    assert f"2 / {len(found)} ページ" in found[1]
    assert "第149地域振興担当課" in "".join(found).replace("\n", "")


def test_the_fonts_travel_in_the_file() -> None:
    pdf = initial_password_slips([slip()], made_on=TODAY)
    assert b"NotoSansCJKjp" in pdf
    assert b"FontFile" in pdf


def test_a_template_of_ours_may_print_anything_else() -> None:
    assert "令和" in pages(render_pdf("#data.text", {"text": "令和"}, today=TODAY))[0]
