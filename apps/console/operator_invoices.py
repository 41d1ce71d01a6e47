"""運用・請求: a month's bills of all towns, and one town's with its lines."""

from datetime import date
from uuid import UUID

import anyio
from fastapi import APIRouter
from starlette.responses import Response

from apps.console.figures import months_until, paged
from apps.console.invoices import invoice_csv, invoice_pdf, invoice_words, month_asked
from apps.sdk.office import Office, OfficeContext
from observability.problems import InvalidInput, NotFound
from tenants.context import TenantId
from tenants.quota.invoice import Invoice, NotAgreed, make_invoices
from tenants.quota.slots import slots_gaps

routes = APIRouter()


@routes.get("/invoices")
async def invoices(office: OfficeContext, month: str = "", page: int = 1) -> Response:
    """Each town's sum and state; what is missing, where there can be none."""
    start = month_asked(office, month)
    made: list[Invoice] = []
    problem: NotAgreed | None = None
    async with office.db.platform_session("operator console", read_only=True) as session:
        try:
            made = await make_invoices(session, start, now=office.now)
        except NotAgreed as missing:
            problem = missing
        gaps = await slots_gaps(session, office.now)
    return await office.page(
        "console/invoices.html",
        months=months_until(office.now),
        month=f"{start:%Y-%m}",
        start=start,
        shown=paged(made, page),
        is_open=any(one.is_open for one in made),
        total_yen=sum(one.total_yen for one in made),
        waiting=sum(one.suspense.calls for one in made),
        waiting_uyen=sum(one.suspense.cost_uyen for one in made),
        problem=problem,
        gaps=gaps,
    )


@routes.get("/invoices.csv")
async def invoices_table(office: OfficeContext, month: str = "") -> Response:
    """All towns' bills, line by line; the page that says what is missing, where there can be none."""
    start = month_asked(office, month)
    try:
        async with office.db.platform_session("operator console", read_only=True) as session:
            made = await make_invoices(session, start, now=office.now)
    except NotAgreed:
        return await invoices(office, month)
    return invoice_csv(f"請求-{start:%Y-%m}.csv", made)


@routes.get("/invoices/{town_id}")
async def invoice_page(office: OfficeContext, town_id: UUID, month: str = "") -> Response:
    """One town's bill with its lines."""
    start = month_asked(office, month)
    found = await _invoice(office, town_id, start)
    return await office.page(
        "console/invoice.html",
        month=f"{start:%Y-%m}",
        town_id=town_id,
        invoice=found,
        told=invoice_words(found),
    )


@routes.get("/invoices/{town_id}/invoice.pdf")
async def invoice_sheet(office: OfficeContext, town_id: UUID, month: str = "") -> Response:
    found = await _invoice(office, town_id, month_asked(office, month))
    return await anyio.to_thread.run_sync(invoice_pdf, found, office.settings.product_name)


@routes.get("/invoices/{town_id}/invoice.csv")
async def invoice_table(office: OfficeContext, town_id: UUID, month: str = "") -> Response:
    found = await _invoice(office, town_id, month_asked(office, month))
    return invoice_csv(f"請求-{found.number}.csv", [found])


async def _invoice(office: Office, town_id: UUID, start: date) -> Invoice:
    """Raises `NotAgreed`, `InvalidInput`, and `NotFound` for who is billed nothing in the month."""
    try:
        async with office.db.platform_session("operator console", read_only=True) as session:
            [found] = await make_invoices(session, start, now=office.now, tenant_id=TenantId(town_id))
    except InvalidInput as problem:
        if problem.extensions.get("field") == "town":
            raise NotFound from problem
        raise
    return found
