"""What the home page says by the clock and the calendar."""

from datetime import date, timedelta

import pytest

from apps.chat.cards import all_cards
from apps.host.home import greeting
from apps.host.tips import tip_of


@pytest.mark.parametrize(
    ("hour", "words"),
    [(4, "おはようございます"), (10, "おはようございます"), (11, "こんにちは"), (17, "こんにちは"), (18, "おつかれさまです"), (3, "おつかれさまです")],
)  # fmt: skip
def test_the_greeting_follows_the_hour(hour: int, words: str) -> None:
    assert greeting(hour) == words


def test_tips_turn_on_working_days_and_wait_over_the_weekend() -> None:
    friday = date(2026, 11, 27)
    assert tip_of(friday) == tip_of(friday + timedelta(days=2)) != tip_of(friday + timedelta(days=3))


def test_every_tip_that_can_be_tried_has_its_card() -> None:
    known = {c.id for c in all_cards()}
    tried = {tip_of(date(2026, 1, 1) + timedelta(days=d)).card for d in range(60)} - {""}
    assert tried
    assert tried <= known
