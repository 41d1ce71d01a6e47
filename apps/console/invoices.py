"""An invoice on a page and as a file, for the operator and for the town."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from apps.sdk.office import Office
from tenants.printing import invoice_sheet
from tenants.quota.invoice import Invoice
from tenants.quota.invoice_forms import as_csv, last_day, sheet_data
from tenants.quota.windows import parse_month, window_start


def month_asked(office: Office, text: str) -> date:
    """The month that ended last, when none is named. Raises `InvalidInput`."""
    if text:
        return parse_month(text)
    return (window_start("month", office.now) - timedelta(days=1)).replace(day=1)


def invoice_words(invoice: Invoice) -> Mapping[str, Any]:
    """As on the printed sheet."""
    return sheet_data(invoice, product_name="")


def invoice_pdf(invoice: Invoice, product_name: str) -> Response:
    """A quarter of a second of work: not for the event loop."""
    data = invoice_sheet(sheet_data(invoice, product_name=product_name), last_day=last_day(invoice.month))
    return _file(f"請求書-{invoice.number}.pdf", data, "application/pdf")


def invoice_csv(name: str, invoices: Sequence[Invoice]) -> Response:
    """For a spreadsheet: BOM and CRLF, as the command writes it."""
    return _file(name, as_csv(invoices).encode(), "text/csv; charset=utf-8")


def _file(name: str, data: bytes, media_type: str) -> Response:
    disposition = f"attachment; filename*=UTF-8''{quote(name)}"
    return Response(data, media_type=media_type, headers={"content-disposition": disposition})
