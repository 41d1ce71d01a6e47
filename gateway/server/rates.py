"""How many requests and tokens a minute: GCRA, in this process or, for several gateways, in Valkey.

Rates protect a shared model from one caller; they are hints, and no money hangs on them. Where Valkey is away each
process counts by itself. A caller may use a minute's worth at once; from then on it comes back evenly.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog
from valkey.asyncio import Valkey
from valkey.exceptions import ValkeyError

from gateway.server.authentication import Caller
from observability.problems import TooManyRequests
from tenants.policy import Policy, Rate

log = structlog.get_logger("gateway")

WINDOW_US: Final = 60_000_000
# A call does not wait longer for a hint.
VALKEY_S: Final = 0.2
# For how long a server that did not answer is left alone.
AWAY_S: Final = 5.0
# In-process buckets beyond which those that are full again are forgotten.
MAX_KEPT: Final = 10_000

Unit = Literal["requests", "tokens"]
_WORDS: Final = {"requests": "回数", "tokens": "量"}
_WHOSE: Final = {"town": "団体", "person": "あなた", "key": "このAPIキー", "app": "このアプリ", "model": "このモデル"}

# One trip for all of a call's buckets: taken together or not at all. A bucket is the instant (µs) at which it is full
# again; `cost` is in µs of that instant. Answers (index of the refusing bucket or 0, then each bucket's instant, then
# the server's own clock): all processes count by one clock.
_TAKE: Final = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local full, refused = {}, 0
for i, key in ipairs(KEYS) do
  local at = tonumber(redis.call('GET', key) or 0)
  full[i] = math.max(at, now) + tonumber(ARGV[i])
  if full[i] - now > 60000000 and refused == 0 then refused = i end
end
if refused == 0 then
  for i, key in ipairs(KEYS) do
    redis.call('SET', key, string.format('%.0f', full[i]), 'PX', math.ceil((full[i] - now) / 1000) + 1)
  end
end
for i, at in ipairs(full) do full[i] = string.format('%.0f', at) end
return {refused, string.format('%.0f', now), unpack(full)}
"""
_GIVE_BACK: Final = """
for i, key in ipairs(KEYS) do
  local at = redis.call('GET', key)
  if at then redis.call('SET', key, string.format('%.0f', tonumber(at) - tonumber(ARGV[i])), 'KEEPTTL') end
end
return 0
"""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit that a call falls under, and what the call takes of it."""

    key: str
    node: str
    unit: Unit
    per_minute: int
    cost: int

    def us(self, amount: int) -> int:
        """How long it takes for `amount` to come back. No single call takes more than a minute's worth."""
        return min(amount, self.per_minute) * WINDOW_US // self.per_minute


@dataclass(frozen=True, slots=True)
class Taken:
    """What a call took; `headers` say what its caller has left."""

    buckets: tuple[Bucket, ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = ()


NOTHING: Final = Taken()


class RateExceeded(TooManyRequests):
    """`node` says whose rate (town, person, key, app or model), `unit` which."""

    type = "urn:problem:gateway:rate-exceeded"
    title = "1分あたりの利用の上限に達しました"

    def __init__(self, detail: str, headers: tuple[tuple[bytes, bytes], ...], **extensions: str | int) -> None:
        super().__init__(detail, **extensions)
        self.headers = headers


class Rates:
    """One per gateway process."""

    def __init__(self, valkey_url: str = "", *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._valkey = (
            Valkey.from_url(valkey_url, socket_connect_timeout=VALKEY_S, socket_timeout=VALKEY_S)
            if valkey_url
            else None
        )
        self._away_until = 0.0
        self._giving_back: set[asyncio.Task[None]] = set()

    async def take(self, policy: Policy, caller: Caller, alias: str, tokens: int) -> Taken:
        """Counts one request of at most `tokens` under every limit it falls under. Raises `RateExceeded`."""
        if not policy.rates:
            return NOTHING
        buckets = _buckets(policy, caller, alias, tokens)
        if not buckets:
            return NOTHING
        refused, now, full_at = await self._count(buckets)
        headers = _headers(buckets, [at - now for at in full_at], is_refused=refused is not None)
        if refused is not None:
            bucket = buckets[refused]
            wait_s = max(-(-(full_at[refused] - now - WINDOW_US) // 1_000_000), 1)
            raise RateExceeded(
                f"{_WHOSE[bucket.node]}が1分に使える{_WORDS[bucket.unit]}を超えました。"
                f"{wait_s}秒ほど待って、もう一度送ってください。",
                headers,
                node=bucket.node,
                unit=bucket.unit,
                retry_after_s=wait_s,
            )
        return Taken(buckets, headers)

    def give_back(self, taken: Taken, tokens: int) -> None:
        """What a call took beyond the `tokens` it really used; nobody waits for it."""
        over = [(b, b.us(b.cost) - b.us(tokens)) for b in taken.buckets if b.unit == "tokens" and tokens < b.cost]
        if not over:
            return
        if self._is_shared():
            task = asyncio.ensure_future(self._give_back_shared(over))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)
        else:
            for bucket, us in over:
                if bucket.key in self._full_at:
                    self._full_at[bucket.key] -= us

    async def aclose(self) -> None:
        for task in list(self._giving_back):
            await task
        if self._valkey is not None:
            await self._valkey.aclose()

    async def _count(self, buckets: Sequence[Bucket]) -> tuple[int | None, int, list[int]]:
        """Index of the bucket that refuses, the clock and when each bucket is full again, in µs."""
        if self._is_shared():
            assert self._valkey is not None
            try:
                refused, now, *full_at = await self._valkey.eval(
                    _TAKE, len(buckets), *(b.key for b in buckets), *(b.us(b.cost) for b in buckets)
                )
                return (refused - 1 if refused else None), int(now), [int(at) for at in full_at]
            except (ValkeyError, OSError) as error:
                self._is_away(error)
        now = int(self._clock() * 1_000_000)
        full_at = [max(self._full_at.get(b.key, 0), now) + b.us(b.cost) for b in buckets]
        for index, at in enumerate(full_at):
            if at - now > WINDOW_US:
                return index, now, full_at
        if len(self._full_at) > MAX_KEPT:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        self._full_at.update(zip((b.key for b in buckets), full_at, strict=True))
        return None, now, full_at

    async def _give_back_shared(self, over: Sequence[tuple[Bucket, int]]) -> None:
        assert self._valkey is not None
        try:
            await self._valkey.eval(_GIVE_BACK, len(over), *(b.key for b, _ in over), *(us for _, us in over))
        except (ValkeyError, OSError) as error:
            self._is_away(error)

    def _is_shared(self) -> bool:
        return self._valkey is not None and time.monotonic() >= self._away_until

    def _is_away(self, error: Exception) -> None:
        self._away_until = time.monotonic() + AWAY_S
        log.warning("rates_counted_alone", kind=type(error).__name__)


def _buckets(policy: Policy, caller: Caller, alias: str, tokens: int) -> tuple[Bucket, ...]:
    nodes = (
        ("town", ""),
        ("person", str(caller.person_id or "")),
        ("key", str(caller.api_key_id or "")),
        ("app", caller.app),
        ("model", alias),
    )
    buckets = []
    for node, node_id in nodes:
        # One person's or key's rate is the same for all of them; an app's or a model's is its own.
        rate: Rate | None = policy.rates.get(f"{node}:{node_id}" if node in ("app", "model") else node)
        if rate is None or (node != "town" and not node_id):
            continue
        key = f"kumiai:rate:{caller.tenant_id}:{node}:{node_id}"
        if rate.requests is not None:
            buckets.append(Bucket(f"{key}:requests", node, "requests", rate.requests, 1))
        if rate.tokens is not None:
            buckets.append(Bucket(f"{key}:tokens", node, "tokens", rate.tokens, tokens))
    return tuple(buckets)


def _headers(
    buckets: Sequence[Bucket], full_in_us: Sequence[int], *, is_refused: bool
) -> tuple[tuple[bytes, bytes], ...]:
    """`RateLimit-Policy` and `RateLimit` of the IETF's draft (httpapi-ratelimit-headers): what is left, in seconds.

    A refused call took nothing, so its own cost is not counted.
    """
    policies, limits = [], []
    for bucket, us in zip(buckets, full_in_us, strict=True):
        name = f"{bucket.node}-{bucket.unit}"
        used_us = us - bucket.us(bucket.cost) if is_refused else us
        left = max((WINDOW_US - used_us) * bucket.per_minute // WINDOW_US, 0)
        policies.append(f'"{name}";q={bucket.per_minute};w=60')
        limits.append(f'"{name}";r={left};t={max(-(-used_us // 1_000_000), 0)}')
    return (
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(limits).encode()),
    )
