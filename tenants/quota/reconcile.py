"""A provider's usage file against what waits for its true cost (確認待ち) or was charged by its hold.

The gateway sends each attempt's id as `X-Client-Request-Id`; a row of the file is matched by it and by nothing else.
Either all rows can be read, or nothing is done. Formats: docs/howto/operator.md.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import and_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.models import Attempt, Call, FxRate, Price
from tenants.quota.book import Closing
from tenants.quota.pricing import OWN_KEY, UYEN_PER_YEN, cost_uyen
from tenants.quota.suspense import FINAL
from tenants.quota.terms import FrozenPrice

COLUMNS: Final = (
    "request_id", "deployment", "prompt_tokens", "completion_tokens", "cached_tokens", "currency", "cost_micro",
)  # fmt: skip
MAX_BYTES: Final = 200_000_000
_NUMBERS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "cost_micro")
_MAX_TOKENS: Final = 2**31 - 1
_MAX_MICRO: Final = 10**15
_SHOWN_ERRORS: Final = 20
_AT_ONCE: Final = 500
# An attempt's id holds the time it was made at; the call it belongs to began within this time.
_AROUND: Final = timedelta(days=1)
# Its price is of a minute, where others have that of a million tokens.
_BY_THE_MINUTE: Final = "audio/transcriptions"


class BadUsageFile(InvalidInput):
    type = "urn:problem:quota:bad-usage-file"
    title = "利用ファイルを取り込めません"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A call as the provider counted it. `attempt_id` None: sent by somebody else. `cost_micro`: micro-units of
    `currency`, None where the file has only tokens."""

    number: int
    attempt_id: UUID | None
    deployment: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    currency: str
    cost_micro: int | None


@dataclass(frozen=True, slots=True)
class UsageFile:
    """`sha256`: of its bytes, by which the audit chains name it."""

    sha256: str
    rows: tuple[UsageRow, ...]


@dataclass(slots=True)
class Part:
    """What is settled of one town, in micro-yen. `over_uyen`: said by the file above what was held; nobody is billed."""

    calls: int = 0
    held_uyen: int = 0
    cost_uyen: int = 0
    over_uyen: int = 0


@dataclass(slots=True)
class Plan:
    """What a file does. over, foreign: the numbers of rows above what was held, and of those that are not ours.

    above: of calls that were settled at all that was held, and cost more; above_uyen: by how much, which no town pays.
    """

    closings: list[Closing] = field(default_factory=list)
    towns: dict[TenantId, Part] = field(default_factory=dict)
    over: list[int] = field(default_factory=list)
    above: list[int] = field(default_factory=list)
    above_uyen: int = 0
    settled: int = 0
    running: int = 0
    final: int = 0
    foreign: list[int] = field(default_factory=list)


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_usage_file(data: bytes) -> UsageFile:
    """CSV with our columns, or JSON as an array, under `data`, or one object a line. Row numbers are as an editor
    shows them in CSV, and count from 1 in JSON. Raises `BadUsageFile` naming every row that is wrong."""
    if len(data) > MAX_BYTES:
        raise BadUsageFile("200MBまでのファイルに分けてください。", field="file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadUsageFile("文字コードをUTF-8にして保存してください。", field="file") from None
    wrong: list[str] = []
    rows: list[UsageRow] = []
    seen: dict[UUID, int] = {}
    is_json = text.lstrip()[:1] in ("[", "{")
    for number, given in _json(text) if is_json else _csv(text):
        try:
            row = _of_json(number, given) if is_json else _of_csv(number, given)
        except ValueError as error:
            wrong.append(f"{number}行目：{error}")
            continue
        if row.attempt_id is not None and row.attempt_id in seen:
            wrong.append(f"{number}行目：{seen[row.attempt_id]}行目と同じIDです")
        elif row.attempt_id is not None:
            seen[row.attempt_id] = number
        rows.append(row)
    _refuse(wrong)
    if not rows:
        raise BadUsageFile("利用の行がありません。", field="file")
    return UsageFile(hashlib.sha256(data).hexdigest(), tuple(rows))


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        more = f" ほか{len(wrong) - _SHOWN_ERRORS:,}行。" if len(wrong) > _SHOWN_ERRORS else ""
        told = "。".join(wrong[:_SHOWN_ERRORS])
        raise BadUsageFile(f"{told}。{more}1行も取り込んでいません。直して、もう一度試してください。", field="file")


def _csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise BadUsageFile(
                f"1行目に列「{'・'.join(missing)}」がありません。要る列：{'、'.join(COLUMNS)}", field="file"
            )
        for row in reader:
            yield reader.line_num, row
    except csv.Error:
        raise BadUsageFile(f"{reader.line_num}行目を読めません。引用符を確かめてください。", field="file") from None


def _of_csv(number: int, row: Mapping[str, Any]) -> UsageRow:
    if None in row or None in row.values():
        raise ValueError("列の数が1行目と違います")
    found = {name: _whole(name, row[name].strip()) for name in _NUMBERS}
    if not row["request_id"].strip():
        raise ValueError("request_id がありません")
    return _row(number, row["request_id"], row["deployment"].strip(), found, row["currency"].strip())


def _whole(name: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} の「{text[:40]}」は0以上の整数ではありません")
    return int(text)


def _json(text: str) -> Iterator[tuple[int, Any]]:
    try:
        try:
            whole = orjson.loads(text)
        except orjson.JSONDecodeError:
            lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
            if len(lines) < 2:
                raise
            for number, line in lines:
                try:
                    parsed = orjson.loads(line)
                except orjson.JSONDecodeError:
                    raise BadUsageFile(f"{number}行目はJSONではありません。", field="file") from None
                yield number, parsed
            return
    except orjson.JSONDecodeError:
        raise BadUsageFile("JSONとして読めません。途中で切れていないか確かめてください。", field="file") from None
    if isinstance(whole, dict):
        whole = whole.get("data", [whole])
    if not isinstance(whole, list):
        raise BadUsageFile("JSONの data は配列にしてください。", field="file")
    yield from enumerate(whole, 1)


def _of_json(number: int, row: Any) -> UsageRow:
    if not isinstance(row, dict):
        raise ValueError("オブジェクトではありません")
    usage = row.get("usage") or {}
    if not isinstance(usage, dict):
        raise ValueError("usage がオブジェクトではありません")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cost = row.get("cost") or {}
    if not isinstance(details, dict) or not isinstance(cost, dict):
        raise ValueError("usage か cost の形が違います")
    found = {
        "prompt_tokens": _count(usage, "prompt_tokens", "input_tokens"),
        "completion_tokens": _count(usage, "completion_tokens", "output_tokens"),
        "cached_tokens": _count(details, "cached_tokens"),
        "cost_micro": _micro(cost.get("value")),
    }
    currency = cost.get("currency") or ""
    asked = row.get("client_request_id") or ""
    if not isinstance(currency, str) or not isinstance(asked, str):
        raise ValueError("client_request_id か currency が文字列ではありません")
    return _row(number, asked, "", found, currency)


def _count(of: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        if (value := of.get(name)) is not None:
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} が0以上の整数ではありません")
            return value
    return None


def _micro(value: object) -> int | None:
    """A decimal amount in micro-units, rounded up as every cost is."""
    if value is None:
        return None
    try:
        # What JSON writes as a number is the shortest decimal of it.
        amount = Decimal(str(value)) * 1_000_000
    except ArithmeticError:
        amount = Decimal("NaN")
    if isinstance(value, bool) or not amount.is_finite() or not 0 <= amount <= _MAX_MICRO:
        raise ValueError("cost.value が0以上の金額ではありません")
    return math.ceil(amount)


def _row(number: int, asked: str, deployment: str, found: Mapping[str, int | None], currency: str) -> UsageRow:
    prompt, completion, cost = found["prompt_tokens"], found["completion_tokens"], found["cost_micro"]
    cached = found["cached_tokens"] or 0
    if cost is None and prompt is None:
        raise ValueError("金額も入力の数もありません")
    if cost is not None and not currency:
        raise ValueError("金額の通貨（JPY、USD など）がありません")
    if max(prompt or 0, completion or 0) > _MAX_TOKENS or (cost or 0) > _MAX_MICRO:
        raise ValueError("数が大きすぎます")
    if cached > (prompt or 0):
        raise ValueError("cached_tokens が入力の数より大きいです")
    try:
        attempt_id = UUID(asked.strip())
    except ValueError:
        attempt_id = None
    return UsageRow(number, attempt_id, deployment, prompt or 0, completion or 0, cached, currency.upper(), cost)


# ── against the ledger ───────────────────────────────────────────────────────────────────────────────────────────


async def plan_reconcile(session: AsyncSession, file: UsageFile, *, provider: str) -> Plan:
    """What the file would settle; nothing is changed. In a platform session.

    provider: as deployments begin (`openai` of `openai/…`). A row's cost is its own amount at the exchange rate frozen
    in the hold, else its tokens at the frozen price, and never more than the hold; a recording without an amount costs what
    was held, which is by its length. Raises `BadUsageFile`.
    """
    plan, wrong = Plan(), []
    found = await _attempts(session, [r.attempt_id for r in file.rows if r.attempt_id is not None])
    prices = {p.version: p for p in (await session.exec(select(Price))).all()}
    rates = {r.version: r for r in (await session.exec(select(FxRate))).all()}
    for row in file.rows:
        if row.attempt_id is None or row.attempt_id not in found:
            plan.foreign.append(row.number)
            continue
        attempt, source, operation = found[row.attempt_id]
        if attempt.deployment.partition("/")[0] != provider or row.deployment not in ("", attempt.deployment):
            wrong.append(f"{row.number}行目：帳簿では {attempt.deployment} への呼び出しです")
            continue
        is_at_hold = attempt.state == "settled" and source == "hold" and attempt.cost_uyen > 0
        if attempt.state != "suspense" and not is_at_hold:
            plan.running += attempt.state == "held"
            plan.final += attempt.state == FINAL
            plan.settled += attempt.state not in ("held", FINAL)
            if more_uyen := _above(row, attempt, operation, prices, rates):
                plan.above.append(row.number)
                plan.above_uyen += more_uyen
            continue
        try:
            said = _cost(row, attempt, operation, prices, rates)
        except ValueError as error:
            wrong.append(f"{row.number}行目：{error}")
            continue
        cost = min(said, attempt.cost_uyen)
        if said > cost:
            plan.over.append(row.number)
        plan.closings.append(
            Closing(
                attempt.tenant_id, attempt.created_at, attempt.call_id, attempt.id, "settled", cost,
                row.prompt_tokens, row.completion_tokens, "provider", "", attempt.problem, None, None,
            )
        )  # fmt: skip
        part = plan.towns.setdefault(TenantId(attempt.tenant_id), Part())
        part.calls += 1
        part.held_uyen += attempt.cost_uyen
        part.cost_uyen += cost
        part.over_uyen += said - cost
    _refuse(wrong)
    return plan


def _above(
    row: UsageRow, attempt: Attempt, operation: str, prices: Mapping[str, Price], rates: Mapping[str, FxRate]
) -> int:
    """By how much a call that cost its town all that was held came to more, in micro-yen."""
    if attempt.state != "settled" or attempt.cost_uyen < attempt.hold_uyen:
        return 0
    try:
        return max(_cost(row, attempt, operation, prices, rates) - attempt.hold_uyen, 0)
    except ValueError:
        # A row that cannot be read as money says nothing about a call that is settled.
        return 0


def _cost(
    row: UsageRow, attempt: Attempt, operation: str, prices: Mapping[str, Price], rates: Mapping[str, FxRate]
) -> int:
    """In micro-yen, rounded up once. Raises `ValueError` in words."""
    if attempt.price_version == OWN_KEY.version:
        return 0
    rate = rates.get(attempt.fx_version)
    price = prices.get(attempt.price_version)
    if price is None or (attempt.fx_version and rate is None):
        raise ValueError("押さえたときの料金か為替の登録が見つかりません")
    if row.cost_micro is not None:
        if row.currency == "JPY":
            return row.cost_micro
        if rate is None or rate.currency != row.currency:
            raise ValueError(f"通貨 {row.currency} は、押さえたときの通貨 {price.currency} と違います")
        return -(-row.cost_micro * rate.uyen_per_unit // UYEN_PER_YEN)
    if operation == _BY_THE_MINUTE:
        return attempt.hold_uyen
    frozen = FrozenPrice(
        price.version, attempt.fx_version, rate.uyen_per_unit if rate else UYEN_PER_YEN, price.input_u_per_mtok,
        price.output_u_per_mtok, price.cached_input_u_per_mtok,
    )  # fmt: skip
    return cost_uyen(
        frozen,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        cached_tokens=row.cached_tokens,
    )


async def _attempts(session: AsyncSession, ids: Sequence[UUID]) -> dict[UUID, tuple[Attempt, str, str]]:
    """Those that are ours, with where their call's figures come from and what was asked for. The time in an id says in
    which months' partitions it can be."""
    ours = sorted(i for i in ids if i.version == 7)
    found: dict[UUID, tuple[Attempt, str, str]] = {}
    for first in range(0, len(ours), _AT_ONCE):
        some = ours[first : first + _AT_ONCE]
        made = [datetime.fromtimestamp((i.int >> 80) / 1000, UTC) for i in (some[0], some[-1])]
        query = (
            select(Attempt, col(Call.usage_source), col(Call.operation))
            .join(
                Call,
                and_(
                    col(Call.tenant_id) == col(Attempt.tenant_id),
                    col(Call.created_at) == col(Attempt.created_at),
                    col(Call.id) == col(Attempt.call_id),
                ),
            )
            .where(
                col(Attempt.id).in_(some),
                col(Attempt.created_at) >= made[0] - _AROUND,
                col(Attempt.created_at) <= made[1] + _AROUND,
            )
        )
        found |= {a.id: (a, source, operation) for a, source, operation in (await session.exec(query)).all()}
    return found


async def record_reconcile(session: AsyncSession, plan: Plan, file: UsageFile, *, provider: str, by: By) -> None:
    """In the chain of every town concerned, before money moves: whatever happens then, it was ordered by somebody."""
    for tenant_id, part in sorted(plan.towns.items(), key=lambda each: str(each[0])):
        await audit.record(
            session, tenant_id, by, "usage.reconcile", about=("tenant", tenant_id), provider=provider,
            file_sha256=file.sha256, calls=part.calls, held_uyen=part.held_uyen, cost_uyen=part.cost_uyen,
            over_uyen=part.over_uyen,
        )  # fmt: skip
