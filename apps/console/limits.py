"""Limits below the town's, set by its administrator: of a section or a person (a field each for month, day and fiscal
year), of an app or a model."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import Depends, Form

from apps.console.figures import UYEN, parse_yen
from apps.sdk.office import Office
from observability.problems import Conflict, InvalidInput
from tenants import audit
from tenants.quota.tree import BudgetRow, Node, budget_rows, set_budget
from tenants.quota.windows import WINDOW_WORDS, WINDOWS, Window

# In the order of the page: the month is the one that most people think in.
PER_WORDS: Final[Mapping[Window, str]] = {"month": "1か月", "day": "1日", "fiscal_year": "1年度"}
Below = Literal["section", "person"]


async def limit_facts(
    office: Office, node: Below, node_id: UUID, typed: Mapping[str, str] | None = None
) -> dict[str, object]:
    """What `console/_limits.html` shows. typed: by field, where something of it was wrong."""
    return {
        "limits": await _read(office, node, node_id),
        "limits_typed": typed or {},
        "per_words": PER_WORDS,
        "now_words": WINDOW_WORDS,
    }


async def _read(office: Office, node: Below, node_id: UUID) -> dict[Window, BudgetRow]:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        rows = await budget_rows(session, tenant_id=office.actor.tenant_id, node=node, windows=WINDOWS, now=office.now)
    found = {r.window: r for r in rows if r.node_id == str(node_id) and r.limit_uyen is not None}
    return {window: found[window] for window in PER_WORDS if window in found}


def _typed(
    month_yen: Annotated[str, Form()] = "",
    day_yen: Annotated[str, Form()] = "",
    fiscal_year_yen: Annotated[str, Form()] = "",
) -> Mapping[str, str]:
    return {"month_yen": month_yen, "day_yen": day_yen, "fiscal_year_yen": fiscal_year_yen}


# The fields of `console/_limits.html` as they were sent; an empty one: no limit.
TypedLimits = Annotated[Mapping[str, str], Depends(_typed)]


async def change_limits(office: Office, node: Below, node_id: UUID, whose: str, typed: Mapping[str, str]) -> str:
    """Sets what the fields say, and returns what was done in words, for the page that comes next.

    The node is the caller's to check. Raises `InvalidInput` and `BudgetTooSmall`, which say what was set before.
    """
    wanted = _parse(typed)
    changed = await _set(office, node, node_id, wanted)
    if not changed:
        return "変わったところはありません"
    told = [f"{PER_WORDS[w]} {'なし' if (yen := wanted[w]) is None else f'{yen:,}円'}" for w in changed]
    return f"{whose}の枠を変えました（{'、'.join(told)}）"


def _parse(typed: Mapping[str, str]) -> dict[Window, int | None]:
    """Yen by window, None for an empty field. Raises `InvalidInput`."""
    fields = {window: f"{window}_yen" for window in PER_WORDS}
    return {w: parse_yen(typed[name], field=name) if typed[name].strip() else None for w, name in fields.items()}


async def _set(office: Office, node: Below, node_id: UUID, wanted: Mapping[Window, int | None]) -> list[Window]:
    """Sets what differs from what stands, each told in the town's audit chain; returns the windows that changed."""
    stand = {
        w: row.limit_uyen // UYEN
        for w, row in (await _read(office, node, node_id)).items()
        if row.limit_uyen is not None
    }
    changed: list[Window] = []
    for window, yen in wanted.items():
        if yen == stand.get(window):
            continue
        try:
            await set_limit(office, node, str(node_id), window, yen)
        except (InvalidInput, Conflict) as problem:
            done = f"{'と'.join(PER_WORDS[w] for w in changed)}の枠は変えました。" if changed else ""
            detail = f"{done}{PER_WORDS[window]}の枠は変えていません。{problem.detail}"
            raise type(problem)(detail, **problem.extensions) from problem
        changed.append(window)
    return changed


async def set_limit(office: Office, node: Node, node_id: str, window: Window, yen: int | None) -> None:
    """Sets one or, with None, lifts it, and tells the town's audit chain. Raises `InvalidInput` and `BudgetTooSmall`.

    A transaction each: the accounts of two windows would be locked in another order than the ledger's.
    """
    tenant = office.actor.tenant_id
    # The ledger's limits are the platform's tables.
    async with office.db.platform_session("town limits") as session:
        await set_budget(
            session, tenant, yen=yen, node=node, node_id=node_id, window=window, by=office.actor.person_id,
            now=office.now,
        )  # fmt: skip
        await audit.record(session, tenant, office.by, "budget.set", about=(node, node_id), window=window, yen=yen)
