"""全国地方公共団体コード: six digits, the last one a check digit (総務省「都道府県コード及び市区町村コード」)."""

import unicodedata
from typing import Final

from observability.problems import InvalidInput

_WEIGHTS: Final = (6, 5, 4, 3, 2)


class BadCode(InvalidInput):
    type = "urn:problem:tenants:invalid-lgcode"
    title = "団体コードを確認してください"


def check_digit(five: str) -> int:
    """The sixth digit for the first five: 11 minus the weighted sum's remainder by 11, its last digit."""
    return (11 - sum(int(d) * w for d, w in zip(five, _WEIGHTS, strict=True)) % 11) % 10


def parse_code(text: str) -> str:
    """A typed code as six half-width digits. Raises `BadCode`, showing the right digit when only that is wrong."""
    code = unicodedata.normalize("NFKC", text).strip().replace("-", "")
    if len(code) == 5 and code.isascii() and code.isdigit():
        raise BadCode(f"検査数字まで6桁で入れてください。{code} の検査数字は {check_digit(code)} です。", field="code")
    if len(code) != 6 or not (code.isascii() and code.isdigit()):
        raise BadCode("団体コードは数字6桁で入れてください。", field="code")
    right = check_digit(code[:5])
    if int(code[5]) != right:
        raise BadCode(
            f"検査数字（6桁目）が違います。{code[:5]}{right} ではありませんか。",
            field="code",
            expected=f"{code[:5]}{right}",
        )
    if not 1 <= int(code[:2]) <= 47:
        raise BadCode("先頭の2桁が都道府県の番号（01から47）になっていません。", field="code")
    return code
