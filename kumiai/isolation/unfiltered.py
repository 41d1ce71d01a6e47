"""The running product without the conditions that its queries carry, so that row-level security is tried alone.

The product has no switch for it: every process of the trial's own installation starts with a `sitecustomize` that calls
`strike_filters`, and the filters go when all is arranged.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from tenants import db
from tenants.context import TenantId

# Those who see one town. The platform's duties name the towns they are for, and no policy narrows them.
_LOGINS: Final = frozenset({"kumiai_app", "kumiai_content"})
_CONDITION: Final = re.compile(
    r"(?P<before>\bwhere|\band|\bon|\()\s*(?:(?P<table>(?:\w+\.)?\w+)\.)?tenant_id = %\(\w+\)s(?:::uuid)?",
    re.IGNORECASE,
)
ALL_TABLES: Final = ("*",)


def without_conditions(statement: str, tables: Collection[str]) -> str:
    """The same as SQL that asks for no town's rows in particular. tables: whose, by name or by alias, or ALL_TABLES."""

    def struck(found: re.Match[str]) -> str:
        is_meant = tables == ALL_TABLES or found["table"] in tables
        return f"{found['before']} true" if is_meant else found[0]

    return _CONDITION.sub(struck, statement)


def strike_filters(told: Path) -> None:
    """From when the file is there: no criteria of ours, no refusal before a write, and no condition on the tables it names."""
    criteria = db._tenant_criteria
    refuse: Callable[..., None] = db._refuse_other_tenants_rows

    def no_criteria(tenant_id: TenantId) -> tuple[Any, ...]:
        return () if told.exists() else criteria(tenant_id)

    def refuse_no_more(*given: Any) -> None:
        if not told.exists():
            refuse(*given)

    def strike(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        if connection.engine.url.username in _LOGINS and told.exists():
            return without_conditions(statement, tuple(told.read_text().split())), parameters
        return statement, parameters

    db._tenant_criteria = no_criteria  # type: ignore[assignment]  # the very function that is taken out
    event.remove(Session, "before_flush", refuse)
    event.listen(Session, "before_flush", refuse_no_more)
    event.listen(Engine, "before_cursor_execute", strike, retval=True)
