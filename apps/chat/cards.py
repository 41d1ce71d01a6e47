"""Task cards: what a clerk of this section does at this time of the year, instead of an empty box."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final

# In rising order; how heavy a card says its work is.
WEIGHTS: Final = ("1", "2", "3C", "3B", "3A")


class BadCard(ValueError):
    """The file of the cards cannot be used; says which card and what to write."""


@dataclass(frozen=True, slots=True)
class Card:
    """`months` empty: all year; `sections`: words that occur in the section's name, empty: everyone; `data_class`: one of
    `WEIGHTS`."""

    id: str
    icon: str
    title: str
    lead: str
    minutes: int
    months: tuple[int, ...]
    sections: tuple[str, ...]
    data_class: str
    prompt: str

    def in_season(self, today: date) -> bool:
        return bool(self.months) and today.month in self.months

    def is_for(self, section_name: str) -> bool:
        return not self.sections or any(word in section_name for word in self.sections)


@cache
def all_cards() -> tuple[Card, ...]:
    """The shipped cards. Raises `BadCard`."""
    with (Path(__file__).parent / "cards.toml").open("rb") as file:
        return tuple(card_of(entry) for entry in tomllib.load(file)["card"])


def card_of(entry: Mapping[str, Any]) -> Card:
    """An entry of the file. Raises `BadCard`."""
    name = f"cards.toml のカード「{entry.get('id', '')}」"
    if missing := [f.name for f in fields(Card) if f.name not in entry]:
        raise BadCard(f"{name}に {'、'.join(missing)} がありません。書き足してください。")
    if entry["data_class"] not in WEIGHTS:
        raise BadCard(f"{name}の data_class「{entry['data_class']}」は {'・'.join(WEIGHTS)} のどれかにしてください。")
    return Card(**{**entry, "months": tuple(entry["months"]), "sections": tuple(entry["sections"])})


def cards_for(section_name: str, today: date) -> tuple[tuple[Card, ...], tuple[Card, ...]]:
    """(due now, all year) for a section; seasonal cards of the section itself come first."""
    mine = [c for c in all_cards() if c.is_for(section_name)]
    due = sorted((c for c in mine if c.in_season(today)), key=lambda c: not c.sections)
    return tuple(due), tuple(c for c in mine if not c.months)


def card(card_id: str) -> Card | None:
    return next((c for c in all_cards() if c.id == card_id), None)
