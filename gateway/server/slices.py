"""A short wait for money: a call that finds its town's grant used up stays while the worker borrows a slice for it."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tenants.context import TenantContext, TenantId
from tenants.db import Database
from tenants.quota.grants import read_share
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import Hold, QuotaExceeded, Reservation
from tenants.quota.windows import Window

log = structlog.get_logger("gateway.slices")

# The worker looks every fifth of a second.
FIRST_LOOK_S: Final = 0.1
LAST_LOOK_S: Final = 0.4
# A town for which nothing came, or for which nothing can come, is not waited for again so soon.
IN_VAIN_S: Final = 5.0


class Slices:
    """Of this process; a call that is not refused never comes here."""

    def __init__(self, db: Database, ledger: LedgerWriter, *, wait_s: float) -> None:
        self._db = db
        self._ledger = ledger
        self._wait_s = wait_s
        self._in_vain_until: dict[TenantId, float] = {}

    async def reserve(self, hold: Hold, refusal: QuotaExceeded) -> Reservation:
        """What `ledger.reserve` refused, once the town has borrowed; for `wait_s` at most.

        Raises the refusal at once where no slice can come: another limit than the town's grant, no pool, nothing that
        may be borrowed.
        """
        if time.monotonic() < self._in_vain_until.get(hold.tenant_id, 0.0) or not await self._may_come(hold, refusal):
            raise refusal
        deadline, pause = time.monotonic() + self._wait_s, FIRST_LOOK_S
        while (left_s := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(pause, left_s))
            try:
                return await self._ledger.reserve(hold)
            except QuotaExceeded as again:
                refusal = again
            pause = min(pause * 2, LAST_LOOK_S)
        self._in_vain_until[hold.tenant_id] = time.monotonic() + IN_VAIN_S
        raise refusal

    async def _may_come(self, hold: Hold, refusal: QuotaExceeded) -> bool:
        windows: dict[str, Window] = {"month": "month", "fiscal_year": "fiscal_year"}
        window = windows.get(str(refusal.extensions.get("window")))
        if refusal.extensions.get("node") != "town" or window is None:
            return False
        try:
            async with self._db.tenant_session(TenantContext(hold.tenant_id), read_only=True) as session:
                share = await read_share(session, hold.tenant_id, window, datetime.now(UTC))
        except SQLAlchemyError as error:
            log.warning("slices_not_read", kind=type(error).__name__)
            return False
        if share is None or not (share.lent_uyen or share.borrowed_uyen < share.borrow_limit_uyen):
            self._in_vain_until[hold.tenant_id] = time.monotonic() + IN_VAIN_S
            return False
        # A slice may have come meanwhile. A town that is not low is lent nothing, however much this call wants.
        return share.is_low or share.left_uyen >= hold.floor_uyen
