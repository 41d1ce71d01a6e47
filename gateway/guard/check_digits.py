"""Check digits of Japanese numbers. Each takes the digits without the check and returns what the check must be.

A check digit alone proves little: one random string of twelve digits in ten passes マイナンバー's.
"""

from collections.abc import Sequence
from typing import Final

# 総務省令 平成26年第85号 5条; the shorter ones use the end of the same row.
_WEIGHTS: Final = (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)


def _dot(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True))


def my_number(first11: str) -> int:
    """個人番号: a remainder of 0 or 1 gives 0."""
    return (11 - _dot(first11, _WEIGHTS) % 11) % 11 % 10


def resident_code(first10: str) -> int:
    """住民票コード: as 個人番号, by the three published specimens; the ending for remainders 0 and 1 is unconfirmed."""
    return (11 - _dot(first10, _WEIGHTS[1:]) % 11) % 11 % 10


def driving_licence(first10: str) -> int:
    """運転免許証番号, the eleventh digit: a remainder of 0 gives 1 and of 1 gives 0."""
    return (11 - _dot(first10, _WEIGHTS[1:]) % 11) % 10


def corporate_number(last12: str) -> int:
    """法人番号, the first digit: 平成26年財務省令70号 2条."""
    return 9 - _dot(last12, (2, 1) * 6) % 9


def luhn(body: str) -> int:
    """Cards; also 保険者番号 of six and eight digits."""
    total = 0
    for i, digit in enumerate(reversed(body)):
        doubled = int(digit) * (2 - i % 2)
        total += doubled - 9 if doubled > 9 else doubled
    return -total % 10


def is_corporate_number(digits: str) -> bool:
    return len(digits) == 13 and digits[0] != "0" and corporate_number(digits[1:]) == int(digits[0])
