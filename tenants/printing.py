"""The one PDF engine (typst, with its own font): slips with initial passwords and a town's hand-over sheet.

What people typed travels as JSON into the template and is never read as markup.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import typst
from noto_cjk_sans_jp_regular import FONT_PATH

from observability.problems import InvalidInput

_SHEETS: Final = Path(__file__).parent / "sheets"
_REIWA: Final = date(2019, 5, 1)


@dataclass(frozen=True, slots=True)
class Slip:
    """One person's slip. `full_login` is the name the issuer knows, should the number alone not be taken."""

    town: str
    section: str
    display_name: str
    login: str
    full_login: str
    password: str = field(repr=False)
    entry_url: str


@dataclass(frozen=True, slots=True)
class Handover:
    """A new town's sheet for its first administrator."""

    product_name: str
    town: str
    code: str
    admin_login: str
    full_login: str
    password: str = field(repr=False)
    entry_url: str
    sections: tuple[str, ...]
    month_yen: int
    made_on: date


def initial_password_slips(slips: Sequence[Slip], *, product_name: str, made_on: date) -> bytes:
    """A PDF with four slips on an A4 page, to be cut. Raises `InvalidInput` for none at all."""
    if not slips:
        raise InvalidInput("印刷する人がいません。")
    return _pdf(
        "slips.typ",
        {"product_name": product_name, "made_on": _wareki(made_on), "slips": [asdict(s) for s in slips]},
    )


def handover_sheet(sheet: Handover) -> bytes:
    """A PDF of one A4 page."""
    facts = asdict(sheet) | {
        "sections": "、".join(sheet.sections) or "（「課と枠」で確かめてください）",
        "month_yen": f"{sheet.month_yen:,}円（税抜き）",
        "made_on": _wareki(sheet.made_on),
    }
    return _pdf("handover.typ", facts)


def _pdf(template: str, facts: Mapping[str, Any]) -> bytes:
    pdf: bytes = typst.compile(
        str(_SHEETS / template),
        font_paths=[str(Path(FONT_PATH).parent)],
        ignore_system_fonts=True,
        sys_inputs={"data": json.dumps(facts, ensure_ascii=False)},
    )
    return pdf


def _wareki(day: date) -> str:
    """Sheets are made today, so the present era is enough here."""
    year = day.year - _REIWA.year + 1
    return f"令和{'元' if year == 1 else year}年{day.month}月{day.day}日"
