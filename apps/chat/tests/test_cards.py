"""The task cards: something to do for everybody in every month, and nothing broken in the file."""

import re
from datetime import date

import pytest

from apps.chat.cards import WEIGHTS, BadCard, all_cards, card, card_of, cards_for
from apps.sdk.ui.render import STATIC

SECTIONS = ("総務課", "福祉課", "税務課", "こども課", "建設課", "住民課", "産業課", "教育委員会事務局", "会計課", "")


@pytest.mark.parametrize("month", range(1, 13))
@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_has_work_of_the_season(section: str, month: int) -> None:
    due, all_year = cards_for(section, date(2026, month, 1))
    assert len(due) >= 2
    assert len(all_year) >= 6


def test_cards_of_ones_own_section_come_first() -> None:
    due, _ = cards_for("税務課", date(2026, 1, 5))
    assert due[0].sections
    assert not due[-1].sections


def test_cards_of_another_section_are_not_shown() -> None:
    november = date(2026, 11, 24)
    assert "nursery-guide" in {c.id for c in cards_for("こども課", november)[0]}
    assert "nursery-guide" not in {c.id for c in cards_for("税務課", november)[0]}


def test_ids_are_unique_and_found() -> None:
    ids = [c.id for c in all_cards()]
    assert len(ids) == len(set(ids))
    assert all(card(i) is not None for i in ids)
    assert card("no-such-card") is None


def test_every_icon_is_drawn() -> None:
    drawn = set(re.findall(r'id="i-([a-z]+)"', (STATIC / "icons.svg").read_text()))
    assert drawn
    assert {c.icon for c in all_cards()} <= drawn


def test_every_prompt_has_a_gap_to_fill_or_takes_a_file() -> None:
    assert all("［" in c.prompt or "付けた" in c.prompt for c in all_cards())


ENTRY = {
    "id": "sample", "icon": "edit", "title": "題", "lead": "説明", "minutes": 3, "months": [], "sections": [],
    "data_class": "3A", "prompt": "次の文",
}  # fmt: skip


def test_a_card_may_say_any_weight() -> None:
    assert [card_of(ENTRY | {"data_class": w}).data_class for w in WEIGHTS] == list(WEIGHTS)


@pytest.mark.parametrize("wrong", ["3a", "4", "", 2])
def test_a_weight_that_is_none_is_named_with_its_card(wrong: object) -> None:
    with pytest.raises(BadCard, match=f"カード「sample」の data_class「{wrong}」は 1・2・3C・3B・3A のどれか"):
        card_of(ENTRY | {"data_class": wrong})


def test_what_a_card_lacks_is_named() -> None:
    with pytest.raises(BadCard, match="カード「sample」に prompt がありません"):
        card_of({name: value for name, value in ENTRY.items() if name != "prompt"})
