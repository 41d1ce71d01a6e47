"""The worked examples of the published rules."""

import pytest

from gateway.guard import check_digits as check


@pytest.mark.parametrize("number", ["123456789018", "983205673214", "454972364860"])
def test_my_number(number: str) -> None:
    assert check.my_number(number[:11]) == int(number[11])


@pytest.mark.parametrize("number", ["24727059608", "24846016224", "25208017643", "12345678903"])
def test_resident_code(number: str) -> None:
    assert check.resident_code(number[:10]) == int(number[10])


def test_driving_licence() -> None:
    assert check.driving_licence("3090123456") == 2


@pytest.mark.parametrize("number", ["7000012050002", "7123456789012", "8000020130001", "8000020131016"])
def test_corporate_number(number: str) -> None:
    assert check.is_corporate_number(number)


def test_a_goods_code_is_no_corporate_number() -> None:
    assert not check.is_corporate_number("4901234567894")


@pytest.mark.parametrize(
    "number", ["33120015", "01130012", "138016", "4111111111111111", "378282246310005", "3530111333300000"]
)
def test_luhn(number: str) -> None:
    assert check.luhn(number[:-1]) == int(number[-1])


def test_remainders_of_nought_and_one_end_differently() -> None:
    """The three rules modulo 11 look alike and differ only here."""
    endings = {(check.my_number(f"{n:011d}"), check.driving_licence(f"{n:011d}"[1:])) for n in range(0, 5_000, 11)}
    # 個人番号 never ends so that only the licence's rule could say 1 for a remainder of nought.
    assert check.resident_code("0" * 10) == 0
    assert check.driving_licence("0" * 10) == 1
    assert len(endings) > 5
