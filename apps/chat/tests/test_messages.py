"""What stands under an answer that is not whole, as the page says it."""

import re
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from apps.chat import service
from apps.chat.tests.test_service import conversation, message
from apps.sdk import CallFacts
from apps.sdk.ui.render import create_environment

PAGES = create_environment({"chat": Path(service.__file__).parent})


def shown(answer: service.Message, charge: str | None = None) -> str:
    return PAGES.get_template("chat/_message_only.html").render(
        conversation=conversation(25),
        message=answer,
        models=(),
        csrf="",
        actor=SimpleNamespace(),
        lost_after=lambda *_: "",
        charge_of=lambda _: charge,
    )


@pytest.mark.parametrize(
    ("charge", "words"),
    [
        ("nothing", "枠からは何も引かれていません。"),
        ("counted", "作られた分だけが枠から引かれました"),
        ("held", "上限と見込んだ分が枠から引かれています。AIの提供元の明細で分かったら、実際の分に直します。"),
        (None, "まだ決まっていません。"),
    ],
)
def test_a_stopped_answer_says_how_it_is_charged(charge: str | None, words: str) -> None:
    page = shown(message("assistant", "訓練を", state="stopped", call_id=str(uuid4())), charge)
    assert "途中で止まりました。" in page
    assert "続きを作る" in page
    assert words in page
    assert "使った分だけ" not in page


def test_what_was_stopped_before_anything_came_says_so() -> None:
    page = shown(message("assistant", "", state="stopped"), "held")
    assert "回答が届く前に止まりました。" in page
    assert "届いたところまで" not in page


def test_what_little_budget_made_short_is_told_apart_from_the_models_limit() -> None:
    capped = service._processed(CallFacts(output_capped=300))["capped"]
    page = shown(message("assistant", "訓練を", finish_reason="length", capped=capped))
    assert "残りの利用枠が少ないため短くしました。" in page
    assert 'href="/quota"' in page
    assert "長さの上限" not in page
    uncapped = service._processed(CallFacts())["capped"]
    page = shown(message("assistant", "訓練を", finish_reason="length", capped=uncapped))
    assert "1回に書ける長さの上限で終わりました。" in page
    assert "利用枠" not in page
    # It might have become shorter and did not have to.
    assert "短くしました" not in shown(message("assistant", "訓練を", finish_reason="stop", capped=True))


def test_what_broke_off_is_kept_and_says_so() -> None:
    page = shown(message("assistant", "訓練を", state="failed", problem_title="AIのサービスにつながりません"))
    assert "途中まで届いた分は、保存しました。" in page
    assert "続きを作る" in page
    assert "届いた分" not in shown(
        message("assistant", "", state="failed", problem_title="AIのサービスにつながりません")
    )


@pytest.mark.parametrize("facts", [{"state": "failed"}, {"state": "stopped"}, {"finish_reason": "length"}])
def test_no_form_stands_in_a_paragraph(facts: dict[str, str]) -> None:
    """A browser would end the paragraph before it, and nothing would stand where it was laid out."""
    page = shown(message("assistant", "訓練を", **facts))
    assert "<form" in page
    assert not re.search(r"<p\b[^>]*>(?:(?!</p>).)*<form", page, re.DOTALL)
