"""An invoice as people and programs take it: words, CSV, JSON, and the data of the printed sheet."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final

from tenants.eras import wareki
from tenants.quota.agreements import KIND_WORDS
from tenants.quota.invoice import Invoice, Line
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.text_cells import text_cell

OPEN_WORDS: Final = "途中（まだ締まっていません）"
SYSTEMS: Final = "業務システム（課なし）"
# What the totals are made of, said on every invoice.
ROUNDING_WORDS: Final = "金額は税抜きです。1円未満は行ごとに、消費税額は税率ごとに1回、切り捨てています。"
SECTIONS_WORDS: Final = "請求額を利用の割合で分けた額です。消費税額ではありません。"
UNSPLIT_WORDS: Final = "利用がないため、課には分けていません。"
ELSEWHERE_WORDS: Final = "課ごとの内訳は、町の管理者が「請求」の画面で受け取れます。"
_HEADINGS: Final = (
    "請求番号", "対象月", "状態", "発行者", "登録番号", "団体コード", "団体", "種類",
    "区分", "内容", "税率（%）", "金額（円）", "消費税額（円）",
)  # fmt: skip


def percent(rate: int) -> str:
    """1000 basis points are `10`."""
    return f"{Decimal(rate) / 100:f}"


def month_words(month: date) -> str:
    """令和8年10月."""
    return wareki(month).removesuffix("1日")


def period_words(month: date) -> str:
    """令和8年10月1日から令和8年10月31日まで."""
    return f"{wareki(month)}から{wareki(last_day(month))}まで"


def last_day(month: date) -> date:
    return date.fromordinal(date(month.year + month.month // 12, month.month % 12 + 1, 1).toordinal() - 1)


def yen_words(uyen: int) -> str:
    return f"{uyen // UYEN_PER_YEN:,}円"


def suspense_words(invoice: Invoice) -> str:
    """Empty when there are none."""
    waiting = invoice.suspense
    if not waiting.calls:
        return ""
    amount = yen_words(waiting.cost_uyen)
    if invoice.usage_included:
        return f"確認待ちの利用が{waiting.calls:,}件（{amount}）あります。利用は同時利用枠の料金に含むので、請求額は変わりません。"
    return f"確認待ちの利用が{waiting.calls:,}件（{amount}）入っています。本当の額がわかったら後の月に訂正し、35日たってもわからなければこの額で確定します。"


def final_words(invoice: Invoice) -> str:
    """Empty when nothing became final."""
    if not any(line.kind == "final" for line in invoice.lines):
        return ""
    return "確認待ちのまま35日が過ぎた利用は、その月に請求した額で確定しました。"


def qualification_words(invoice: Invoice) -> str:
    """Why a paper with tax on it is none that the tax can be deducted by; empty when it is one."""
    if not invoice.taxes or invoice.issuer.number:
        return ""
    return "発行者に登録番号がないため、適格請求書ではありません。"


def _rate_words(line: Line) -> str:
    return "課税なし" if line.rate is None else f"{percent(line.rate)}%"


def as_text(invoices: Sequence[Invoice]) -> str:
    """For the screen."""
    return "\n\n".join("\n".join(_text(invoice)) for invoice in invoices) + "\n"


def _text(invoice: Invoice) -> Iterator[str]:
    yield f"請求書 {invoice.number}　{month_words(invoice.month)}分" + (f"　{OPEN_WORDS}" if invoice.is_open else "")
    yield f"  交付先    {invoice.town} 御中（{invoice.code}）"
    yield f"  発行者    {invoice.issuer.name}　{invoice.issuer.address}".rstrip()
    yield f"  登録番号  {invoice.issuer.number or 'なし'}"
    yield f"  取引期間  {period_words(invoice.month)}"
    yield f"  種類      {KIND_WORDS[invoice.kind]}（根拠：{invoice.legal_basis}、{wareki(invoice.legal_basis_on)}）"
    for line in invoice.lines:
        yield f"    {line.amount_yen:>12,}円  {_rate_words(line):<5} {line.label}"
    for tax in invoice.taxes:
        yield f"  {percent(tax.rate)}%の対象 {tax.net_yen:,}円、消費税額 {tax.tax_yen:,}円"
    if any(line.rate is None for line in invoice.lines):
        yield f"  課税しないもの {invoice.untaxed_yen:,}円"
    yield f"  請求額    {invoice.total_yen:,}円"
    for note in notes(invoice):
        yield f"  {note}"


def notes(invoice: Invoice) -> list[str]:
    """What has to be said beside the figures."""
    unsplit = ELSEWHERE_WORDS if invoice.sections is None else UNSPLIT_WORDS if not invoice.sections else ""
    owed = "差し引きで、交付先に返す額です。" if invoice.total_yen < 0 else ""
    told = (ROUNDING_WORDS, suspense_words(invoice), final_words(invoice), owed, qualification_words(invoice), unsplit)
    return [words for words in told if words]


def as_json(invoice: Invoice) -> dict[str, Any]:
    """Amounts in yen, without tax where a line is; `rate_percent` is text, null where no tax is due. No sections.

    `included_yen`: told, not charged: it is in the price of the slots.
    """
    return {
        "number": invoice.number,
        "month": f"{invoice.month:%Y-%m}",
        "is_open": invoice.is_open,
        "issuer": {
            "name": invoice.issuer.name,
            "registration_number": invoice.issuer.number,
            "address": invoice.issuer.address,
        },
        "town": {"code": invoice.code, "name": invoice.town},
        "kind": invoice.kind,
        "legal_basis": invoice.legal_basis,
        "legal_basis_on": invoice.legal_basis_on.isoformat(),
        "calls": invoice.calls,
        "lines": [
            {
                "kind": line.kind,
                "label": line.label,
                "month": f"{line.month:%Y-%m}",
                "amount_yen": line.amount_yen,
                "rate_percent": None if line.rate is None else percent(line.rate),
                "included_yen": line.included_yen,
            }
            for line in invoice.lines
        ],
        "taxes": [{"rate_percent": percent(t.rate), "net_yen": t.net_yen, "tax_yen": t.tax_yen} for t in invoice.taxes],
        "untaxed_yen": invoice.untaxed_yen,
        "total_yen": invoice.total_yen,
        "suspense": {"calls": invoice.suspense.calls, "cost_uyen": invoice.suspense.cost_uyen},
    }


def as_csv(invoices: Sequence[Invoice]) -> str:
    """One row per line, rate, total and section if told, told apart by 区分; with BOM and CRLF, formulas kept as text."""
    out = io.StringIO(newline="")
    out.write("\ufeff")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_HEADINGS)
    for invoice in invoices:
        head = (
            invoice.number,
            f"{invoice.month:%Y-%m}",
            "途中" if invoice.is_open else "締め済み",
            invoice.issuer.name,
            invoice.issuer.number,
            invoice.code,
            invoice.town,
            KIND_WORDS[invoice.kind],
        )
        writer.writerows([text_cell(cell) for cell in (*head, *row)] for row in _csv_rows(invoice))
    return out.getvalue()


def _csv_rows(invoice: Invoice) -> Iterator[tuple[object, ...]]:
    for line in invoice.lines:
        yield "明細", line.label, "" if line.rate is None else percent(line.rate), line.amount_yen, ""
    for tax in invoice.taxes:
        yield "税率別の合計", f"{percent(tax.rate)}%の対象", percent(tax.rate), tax.net_yen, tax.tax_yen
    if any(line.rate is None for line in invoice.lines):
        yield "課税しないものの合計", invoice.legal_basis, "", invoice.untaxed_yen, ""
    yield "請求額", "税込みの合計", "", invoice.total_yen, ""
    for share in invoice.sections or ():
        yield "課ごとの内訳", share.name or SYSTEMS, "", share.amount_yen, ""
    if invoice.suspense.calls:
        amount = invoice.suspense.cost_uyen // UYEN_PER_YEN
        yield "うち確認待ち", f"{invoice.suspense.calls:,}件", "", amount, ""


def sheet_data(invoice: Invoice, *, product_name: str) -> Mapping[str, Any]:
    """What the printed invoice says, word for word."""
    return {
        "product": product_name,
        "number": invoice.number,
        "month": month_words(invoice.month),
        "period": period_words(invoice.month),
        "open": OPEN_WORDS if invoice.is_open else "",
        "town": invoice.town,
        "code": invoice.code,
        "issuer": invoice.issuer.name,
        "address": invoice.issuer.address,
        "registration": invoice.issuer.number,
        "kind": KIND_WORDS[invoice.kind],
        "basis": f"{invoice.legal_basis}（{wareki(invoice.legal_basis_on)}）",
        "lines": [[line.label, _rate_words(line), f"{line.amount_yen:,}円"] for line in invoice.lines],
        "taxes": [[f"{percent(t.rate)}%の対象", f"{t.net_yen:,}円", f"{t.tax_yen:,}円"] for t in invoice.taxes]
        + (
            [["課税しないもの", f"{invoice.untaxed_yen:,}円", "―"]]
            if any(line.rate is None for line in invoice.lines)
            else []
        ),
        "total": f"{invoice.total_yen:,}円",
        "notes": notes(invoice),
        "sections": [[s.name or SYSTEMS, f"{s.amount_yen:,}円"] for s in invoice.sections or ()],
        "sections_words": SECTIONS_WORDS,
    }
