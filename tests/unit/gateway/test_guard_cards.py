"""Cards on photographs: found though a digit was read wrongly, and told from other papers with as many digits."""

import importlib.util

import pytest

from gateway.guard.findings import Kind
from gateway.guard.inspection import inspect
from gateway.guard.misread import find_misread_numbers
from tests.servers import not_available


@pytest.mark.parametrize(
    "seen",
    [
        "氏名 見本花子\n平成元年3月31日生\n2033年3月31日まで有効\n9350 4925 8991",
        "見本 花子\n住所見本県見本市本町\n性别女\n07236081 9168",
        "個人番号カード\n氏名見本花子\nl234 5678 9O18",
        "氏名 見本花子\n生年月日 平成元年\n1234-5678 9011",
    ],
)
def test_a_digit_that_was_read_wrongly_lets_no_card_through(seen: str) -> None:
    assert [f.kind for f in find_misread_numbers(seen)] == [Kind.MY_NUMBER]


@pytest.mark.parametrize(
    "seen",
    [
        "氏名 見本花子\n平成元年3月31日生\n運転免許証\n第309012345620号",
        "お届け先 見本花子\n追跡番号 1234-5678-9011\n住所 見本市 有効期限",
        "ゴミの日 1234 5678 9011",
        "氏名 見本花子\n住所 見本市本町\n2026年 1234 5678 9011 3333",
    ],
)
def test_other_papers_are_left_alone(seen: str) -> None:
    assert not list(find_misread_numbers(seen))


@pytest.mark.real
@pytest.mark.parametrize("handling", ["turned by 5 degrees", "black and white copy", "under a lamp"])
def test_a_photographed_card_is_found(handling: str) -> None:
    if importlib.util.find_spec("rapidocr") is None:
        not_available("rapidocr not installed: requirements/install.sh pictures")
    from gateway.reading.pictures import read_picture
    from tests.evaluation.guard.cards import photograph

    seen = read_picture(photograph("1234 5678 9018", handling, 1))
    assert Kind.MY_NUMBER in {f.kind for f in (*inspect(seen, names=False), *find_misread_numbers(seen))}, seen
