"""町の管理・請求: the town's own bill of a month. Small sections are told together, as everywhere in its office."""

from datetime import date

import anyio
from fastapi import APIRouter
from starlette.responses import Response

from apps.console.figures import months_until
from apps.console.invoices import invoice_csv, invoice_pdf, invoice_words, month_asked
from apps.sdk.office import Office, OfficeContext
from observability.problems import InvalidInput
from tenants.quota.invoice import Invoice, NotAgreed, make_invoices

routes = APIRouter()


@routes.get("/invoice")
async def invoice_page(office: OfficeContext, month: str = "") -> Response:
    """What the town pays for a month and why, by section; or that there is no bill yet."""
    start = month_asked(office, month)
    found = await _invoice(office, start)
    return await office.page(
        "console/town_invoice.html",
        months=months_until(office.now),
        month=f"{start:%Y-%m}",
        start=start,
        invoice=found,
        told=invoice_words(found) if found else None,
    )


@routes.get("/invoice.pdf")
async def invoice_sheet(office: OfficeContext, month: str = "") -> Response:
    found = await _invoice(office, month_asked(office, month))
    if found is None:
        return await invoice_page(office, month)
    await office.tell_download("invoice", number=found.number, form="pdf")
    return await anyio.to_thread.run_sync(invoice_pdf, found, office.settings.product_name)


@routes.get("/invoice.csv")
async def invoice_table(office: OfficeContext, month: str = "") -> Response:
    found = await _invoice(office, month_asked(office, month))
    if found is None:
        return await invoice_page(office, month)
    await office.tell_download("invoice", number=found.number, form="csv")
    return invoice_csv(f"請求-{found.number}.csv", [found])


async def _invoice(office: Office, start: date) -> Invoice | None:
    """None while there is nothing agreed, or for a month before the town was there.

    The region's base is shared between all towns, so it takes a platform session; of it only this town's bill is kept.
    """
    tenant = office.actor.tenant_id
    try:
        async with office.db.platform_session("town invoice", read_only=True) as session:
            [found] = await make_invoices(session, start, now=office.now, tenant_id=tenant, by_section=True)
    except NotAgreed:
        return None
    except InvalidInput as problem:
        if problem.extensions.get("field") == "town":
            return None
        raise
    return found
