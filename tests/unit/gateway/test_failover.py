"""Breakers, first-word deadlines and the share of retries, on a clock of the test's own."""

from dataclasses import dataclass

import pytest

from gateway.server.failover import MAX_OPEN_S, MIN_OBSERVED, RETRIES_AT_FIRST, WINDOW, FailoverTerms, Fleet, Standing
from gateway.server.providers.base import InputRefused, UpstreamProblem, UpstreamRateLimited, UpstreamUnavailable

DOWN = UpstreamUnavailable(dispatched=True, upstream_status=500)
TERMS = FailoverTerms()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standing(clock: Clock) -> Standing:
    return Fleet(TERMS, clock).standing("trial/one")


def fail(standing: Standing, times: int = 1, problem: UpstreamProblem = DOWN) -> None:
    for _ in range(times):
        assert standing.may_be_asked()
        standing.failed(problem)


def test_breaker_opens_at_the_share_of_failures_and_not_before(standing: Standing) -> None:
    fail(standing, TERMS.breaker_failures - 1)
    assert standing.may_be_asked()
    standing.failed(DOWN)
    assert not standing.may_be_asked()
    assert standing.opens_in_s == TERMS.breaker_open_s


def test_failures_long_ago_are_forgotten(standing: Standing) -> None:
    for _ in range(3):
        fail(standing, TERMS.breaker_failures - 1)
        for _ in range(WINDOW):
            standing.answered(None)
    assert standing.may_be_asked()


@pytest.mark.parametrize("problem", [InputRefused(dispatched=True), UpstreamRateLimited(dispatched=True)])
def test_a_no_and_a_busy_server_are_no_failures(standing: Standing, problem: UpstreamProblem) -> None:
    fail(standing, 5 * WINDOW, problem)
    assert standing.may_be_asked()


def test_one_call_finds_out_for_all(standing: Standing, clock: Clock) -> None:
    fail(standing, TERMS.breaker_failures)
    clock.now += TERMS.breaker_open_s
    assert standing.may_be_asked()
    assert not standing.may_be_asked()
    standing.answered(0.1)
    assert standing.may_be_asked()
    assert standing.may_be_asked()
    fail(standing, TERMS.breaker_failures - 1)
    assert standing.may_be_asked()


def test_failed_probe_opens_for_twice_as_long_up_to_a_limit(standing: Standing, clock: Clock) -> None:
    fail(standing, TERMS.breaker_failures)
    open_s = TERMS.breaker_open_s
    for _ in range(8):
        clock.now += open_s - 0.01
        assert not standing.may_be_asked()
        clock.now += 0.02
        fail(standing)
        open_s = min(2 * open_s, MAX_OPEN_S)
    assert open_s == MAX_OPEN_S


def test_probe_that_left_or_never_came_back_makes_room(standing: Standing, clock: Clock) -> None:
    fail(standing, TERMS.breaker_failures)
    clock.now += TERMS.breaker_open_s
    assert standing.may_be_asked()
    standing.left()
    assert standing.may_be_asked()
    clock.now += TERMS.first_byte_max_s - 1
    assert not standing.may_be_asked()
    clock.now += 1
    assert standing.may_be_asked()


def test_late_word_from_before_does_not_close_an_open_breaker(standing: Standing) -> None:
    fail(standing, TERMS.breaker_failures)
    standing.answered(0.1)
    assert not standing.may_be_asked()


def test_first_word_s_deadline_follows_what_is_usual_within_bounds(standing: Standing) -> None:
    assert standing.first_byte_s == TERMS.first_byte_max_s
    for _ in range(MIN_OBSERVED):
        standing.answered(4.0)
    assert standing.first_byte_s == 16.0
    for _ in range(4 * MIN_OBSERVED):
        standing.answered(0.1)
    assert standing.first_byte_s == TERMS.first_byte_min_s
    for _ in range(4 * MIN_OBSERVED):
        standing.answered(30.0)
    assert standing.first_byte_s == TERMS.first_byte_max_s


def test_server_that_became_slower_for_good_is_given_more_time(standing: Standing) -> None:
    for _ in range(4 * MIN_OBSERVED):
        standing.answered(0.1)
    for _ in range(MIN_OBSERVED):
        standing.too_late()
    assert standing.first_byte_s > TERMS.first_byte_min_s


def test_slow_first_words_open_the_breaker(standing: Standing) -> None:
    for _ in range(4 * MIN_OBSERVED):
        standing.answered(0.5)
    for _ in range(TERMS.breaker_failures):
        assert standing.may_be_asked()
        standing.answered(TERMS.first_byte_min_s - 1)
    assert not standing.may_be_asked()


def test_retries_are_a_tenth_of_the_calls(clock: Clock) -> None:
    fleet = Fleet(TERMS, clock)
    made = 0
    for _ in range(1000):
        fleet.called()
        made += fleet.may_retry()
    assert made == pytest.approx(1000 * TERMS.retry_share + RETRIES_AT_FIRST, abs=1)
