"""What this process has learnt about each deployment: whether to ask it now, and how long its first word may take.

Everything is counted in this process, without a lock and without waiting. See docs/adr/0014-breakers-of-our-own.md.
"""

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.server.providers.base import UpstreamProblem, UpstreamRateLimited, UpstreamRefused
from observability import metrics

log = structlog.get_logger("gateway")

# Of so many last calls are the shares below taken.
WINDOW: Final = 20
# The deadline is reckoned anew after so many first words; before, the longest one holds.
MIN_OBSERVED: Final = 16
OBSERVED: Final = 64
# A first word may take so many times what 95 of 100 took; half of that is slow already.
TIMES_USUAL: Final = 4
MAX_OPEN_S: Final = 60.0
# Where a probe finds out, a real call does it only when nobody has been there to probe for so long.
UNPROBED_S: Final = 30.0
# Calls that may be tried again before any share has been earned.
RETRIES_AT_FIRST: Final = 10.0

_CLOSED: Final = 0
_HALF_OPEN: Final = 1
_OPEN: Final = 2


@dataclass(frozen=True, slots=True)
class FailoverTerms:
    """breaker_failures: bad ones among the last `WINDOW` calls that open a breaker. breaker_open_s: for how long at
    first; it doubles while probes fail. retry_share: attempts beyond the first, per call. first_byte_*: seconds."""

    breaker_failures: int = 10
    breaker_open_s: float = 5.0
    retry_share: float = 0.1
    first_byte_min_s: float = 10.0
    first_byte_max_s: float = 60.0


class Standing:
    """One deployment. It is closed (asked), open (not asked) or half open: one call or one probe finds out for all."""

    def __init__(
        self, deployment_id: str, terms: FailoverTerms, clock: Callable[[], float], *, is_probed: bool = False
    ) -> None:
        self._id = deployment_id
        self._is_probed = is_probed
        self._terms = terms
        self._clock = clock
        self._bad: deque[bool] = deque(maxlen=WINDOW)
        self._first_s: deque[float] = deque(maxlen=OBSERVED)
        self._open_s = terms.breaker_open_s
        self._open_until: float | None = None
        self._call_from = 0.0
        self._probe_until = 0.0
        # Within what a stream must have begun, as far as is known now.
        self.first_byte_s = terms.first_byte_max_s
        self._observed = 0
        self._state = metrics.BREAKER_STATE.labels(deployment_id)
        self._state.set(_CLOSED)

    def may_be_asked(self) -> bool:
        """True when a call may go there now. An open breaker lets one through when its time is over.

        Whoever was let through says how it went: `answered`, `failed` or `left`.
        """
        if self._open_until is None:
            return True
        now = self._clock()
        if now < self._call_from or now < self._probe_until:
            return False
        # A probe that never comes back does not stand in the way of the next one for ever.
        self._probing(now)
        return True

    def _probing(self, now: float) -> None:
        self._probe_until = now + self._terms.first_byte_max_s
        self._state.set(_HALF_OPEN)

    @property
    def is_open(self) -> bool:
        """Nobody is asked there, or one call or probe is finding out."""
        return self._open_until is not None

    @property
    def is_due(self) -> bool:
        """Whether it is time for a probe, and none is under way."""
        now = self._clock()
        return self._open_until is not None and now >= self._open_until and now >= self._probe_until

    def is_cared_for(self) -> None:
        """Some process is there that probes."""
        self._call_from = max(self._call_from, self._clock() + UNPROBED_S)

    def is_left_to_calls(self) -> None:
        """No probe may be made: as with any other deployment a real call finds out."""
        self._is_probed = False
        self._call_from = self._open_until or 0.0

    def begin_probe(self) -> None:
        """Whoever probes says how it went: `answered`, `failed` or `left`."""
        self._probing(self._clock())

    def is_well(self) -> None:
        """Another process heard an answer."""
        if self._open_until is not None:
            self._close()

    @property
    def opens_in_s(self) -> int:
        """Whole seconds until it is asked again, at least 1."""
        return max(1, round((self._open_until or 0.0) - self._clock()))

    def answered(self, first_s: float | None) -> None:
        """The first word came; first_s: after how long, None for what is made before it is sent."""
        is_slow = False
        if first_s is not None:
            known = len(self._first_s) >= MIN_OBSERVED
            is_slow = known and first_s > self.first_byte_s / 2
            self._observe(first_s)
        self._count(is_slow)

    def failed(self, problem: UpstreamProblem) -> None:
        """It failed before or in the middle of an answer. That it is busy or says no is no failure."""
        if isinstance(problem, UpstreamRefused | UpstreamRateLimited):
            self.left()
        else:
            self._count(is_bad=True)

    def too_late(self) -> None:
        """The first word did not come within `first_byte_s`: what is usual may have changed."""
        self._observe(2 * self.first_byte_s)

    def left(self) -> None:
        """Nothing was learnt: the caller went away, or nothing was sent."""
        self._probe_until = 0.0

    def _count(self, is_bad: bool) -> None:
        if self._open_until is not None:
            self._probed(is_bad)
            return
        self._bad.append(is_bad)
        if is_bad and sum(self._bad) >= self._terms.breaker_failures:
            self._open()

    def _probed(self, is_bad: bool) -> None:
        if not self._probe_until:
            # A call from before the breaker opened; the probe decides.
            return
        if is_bad:
            self._open_s = min(2 * self._open_s, MAX_OPEN_S)
            self._open()
            return
        self._close()

    def _close(self) -> None:
        log.info("breaker_closed", deployment=self._id)
        self._bad.clear()
        self._open_s = self._terms.breaker_open_s
        self._open_until, self._probe_until = None, 0.0
        self._state.set(_CLOSED)

    def _open(self) -> None:
        log.warning("breaker_opened", deployment=self._id, seconds=self._open_s)
        self._open_until, self._probe_until = self._clock() + self._open_s, 0.0
        self._call_from = self._open_until + (UNPROBED_S if self._is_probed else 0.0)
        self._state.set(_OPEN)

    def _observe(self, first_s: float) -> None:
        self._first_s.append(first_s)
        self._observed += 1
        if self._observed % MIN_OBSERVED == 0:
            usual = sorted(self._first_s)[len(self._first_s) * 95 // 100]
            terms = self._terms
            self.first_byte_s = min(max(TIMES_USUAL * usual, terms.first_byte_min_s), terms.first_byte_max_s)


class Fleet:
    """All deployments as this process sees them, and the share of calls that may be tried a second time."""

    def __init__(
        self, terms: FailoverTerms, clock: Callable[[], float] = time.monotonic, *, probed: Collection[str] = ()
    ) -> None:
        """probed: deployments of which a probe finds out whether they are well again; see `gateway.server.probing`."""
        self._terms = terms
        self._clock = clock
        self._probed = frozenset(probed)
        self._standings: dict[str, Standing] = {}
        self._retries = RETRIES_AT_FIRST

    def standing(self, deployment_id: str) -> Standing:
        standing = self._standings.get(deployment_id)
        if standing is None:
            standing = self._standings[deployment_id] = Standing(
                deployment_id, self._terms, self._clock, is_probed=deployment_id in self._probed
            )
        return standing

    def called(self) -> None:
        """A call came in, which earns its share of a retry."""
        self._retries = min(self._retries + self._terms.retry_share, RETRIES_AT_FIRST)

    def may_retry(self) -> bool:
        """Takes one retry of the share, if there is one: a fleet in trouble must not get twice the load."""
        if self._retries < 1.0:
            metrics.RETRIES.labels("refused").inc()
            return False
        self._retries -= 1.0
        metrics.RETRIES.labels("made").inc()
        return True
