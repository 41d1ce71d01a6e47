"""Dates by era as a town hall writes them. Eras are dated data (元号を改める政令)."""

from datetime import date
from typing import Final

_ERAS: Final = (
    (date(2019, 5, 1), "令和"),
    (date(1989, 1, 8), "平成"),
    (date(1926, 12, 25), "昭和"),
    (date(1912, 7, 30), "大正"),
)


def wareki(day: date) -> str:
    """令和8年11月24日; days before the eras we know are written in the western calendar."""
    told = f"{day.year}年"
    for start, name in _ERAS:
        if day >= start:
            year = day.year - start.year + 1
            told = f"{name}{'元' if year == 1 else year}年"
            break
    return f"{told}{day.month}月{day.day}日"
