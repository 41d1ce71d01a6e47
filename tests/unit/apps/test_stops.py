"""What a page says that still works when a limit stops an answer."""

from pathlib import Path

import pytest

from apps.sdk.ui.render import create_environment
from gateway.server.queueing import Overloaded
from gateway.server.rates import RateExceeded
from observability.problems import Problem, Unavailable
from tenants.quota.terms import NoBudget, QuotaExceeded, SlotsTaken


def still_works(problem: type[Problem]) -> str:
    template = "{% from 'chat/_message.html' import still_works with context %}{{ still_works(why) }}"
    environment = create_environment({"chat": Path(__file__).parents[3] / "apps" / "chat"})
    return environment.from_string(template).render(why=problem.type.rsplit(":", 1)[-1], csrf="").strip()


@pytest.mark.parametrize("problem", [QuotaExceeded, NoBudget])
def test_without_money_reading_goes_on_and_somebody_can_be_asked(problem: type[Problem]) -> None:
    told = still_works(problem)
    assert "会話を読むこと、書き出すこと、資料の読み取りは、このまま使えます。" in told
    assert 'href="/quota"' in told


@pytest.mark.parametrize("problem", [SlotsTaken, Overloaded, RateExceeded])
def test_where_others_are_waited_for_reading_need_not_wait(problem: type[Problem]) -> None:
    told = still_works(problem)
    assert "会話を読むこと、書き出すこと、資料の読み取りは、待たずに使えます。" in told
    assert "/quota" not in told


def test_of_another_failure_nothing_is_claimed() -> None:
    assert still_works(Unavailable) == ""
