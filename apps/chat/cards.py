"""Task cards: what a clerk of this section does at this time of the year, instead of an empty box."""

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Card:
    """`months` empty: all year; `sections`: words that occur in the section's name, empty: everyone."""

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
    """The shipped cards. Raises `KeyError` or `TypeError` on a card that lacks a field."""
    with (Path(__file__).parent / "cards.toml").open("rb") as file:
        entries = tomllib.load(file)["card"]
    return tuple(
        Card(**(entry | {"months": tuple(entry["months"]), "sections": tuple(entry["sections"])})) for entry in entries
    )


def cards_for(section_name: str, today: date) -> tuple[tuple[Card, ...], tuple[Card, ...]]:
    """(due now, all year) for a section; seasonal cards of the section itself come first."""
    mine = [c for c in all_cards() if c.is_for(section_name)]
    due = sorted((c for c in mine if c.in_season(today)), key=lambda c: not c.sections)
    return tuple(due), tuple(c for c in mine if not c.months)


def card(card_id: str) -> Card | None:
    return next((c for c in all_cards() if c.id == card_id), None)
