"""Personal data that is more than a number: found by an anchor first (a label, an @, a house number), then checked.

Each look is at a few dozen characters around an anchor, so the work grows with the length of the text alone.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from gateway.guard import check_digits
from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.labels import Label, Labels
from tenants.context import DataClass

_C3C: Final = DataClass.C3C

# ── e-mail ───────────────────────────────────────────────────────────────────────────────────────────────────────
_AT: Final = re.compile(r"(?: ?@ ?|[(\[] ?(?:at|アットマ-ク) ?[)\]])")
_LOCAL: Final = re.compile(r"[A-Za-z0-9._%+\-]{1,64}\Z")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9\-]{1,63}(?: ?\. ?[A-Za-z0-9\-]{1,63}){1,8}")
# Offices of state and town: the address of a desk, on every letter that leaves it.
_PUBLIC_DOMAINS: Final = (".lg.jp", ".go.jp")


def find_emails(folded: Folded) -> Iterator[Finding]:
    text = folded.text
    if "@" not in text and "at" not in text and "アット" not in text:
        return
    for at in _AT.finditer(text):
        local = _LOCAL.search(text[max(0, at.start() - 64) : at.start()])
        domain = _DOMAIN.match(text, at.end())
        if local is None or domain is None:
            continue
        host = domain.group().replace(" ", "").lower()
        if host.endswith(_PUBLIC_DOMAINS) or not host.rsplit(".", 1)[1].isalpha():
            continue
        start = at.start() - len(local.group())
        yield Finding(Kind.EMAIL, *folded.span(start, domain.end()), _C3C, "メールアドレスの形をしています。")


# ── passport, residence card ─────────────────────────────────────────────────────────────────────────────────────
_LETTERS_AND_DIGITS: Final = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z][ \-]{0,2}[A-Za-z](?:[ \-]{0,2}[0-9]){7,8}(?:[ \-]{0,2}[A-Za-z]){0,2}(?![A-Za-z0-9])"
)
# The second line of a passport's machine-readable zone: number, check, country, birth, check, sex, expiry, check.
_MACHINE_READABLE: Final = re.compile(r"(?<![A-Z0-9<])[A-Z]{2}[0-9]{7}[0-9<][A-Z<]{3}[0-9]{7}[MF<][0-9]{7}")
_PAPERS: Final = frozenset({Label.PASSPORT, Label.RESIDENCE_CARD, Label.OFFICE})


# Both begin so; few texts have it, and it is found many times faster.
_LATIN_THEN_DIGIT: Final = re.compile(r"[A-Za-z][ \-]{0,2}[0-9]")


def find_papers(folded: Folded, labels: Labels) -> Iterator[Finding]:
    text = folded.text
    if _LATIN_THEN_DIGIT.search(text) is None:
        return
    for found in _LETTERS_AND_DIGITS.finditer(text):
        written = re.sub(r"[ \-]", "", found.group())
        digits = sum(c.isdigit() for c in written)
        label = labels.nearest(found.start(), found.end(), _PAPERS) if labels else None
        if digits == 7 and len(written) == 9 and label is Label.PASSPORT:
            yield Finding(
                Kind.PASSPORT,
                *folded.span(*found.span()),
                _C3C,
                "「旅券」の言葉のそばに、英字2つと7桁の番号があります。",
            )
        elif digits == 8 and len(written) == 12 and label is not Label.OFFICE:
            yield Finding(
                Kind.RESIDENCE_CARD,
                *folded.span(*found.span()),
                _C3C,
                "英字2つ、8桁、英字2つの、在留カードの番号の形です。",
            )
    for found in _MACHINE_READABLE.finditer(text):
        yield Finding(Kind.PASSPORT, *folded.span(*found.span()), _C3C, "旅券の機械で読む行の形をしています。")


# ── insurance, bank ──────────────────────────────────────────────────────────────────────────────────────────────
_SYMBOL_AND_NUMBER: Final = re.compile(
    r"記号[^0-9\n]{0,6}(?P<symbol>[^\n。、番]{1,20}?)[ ・,、/:]{0,3}\n?[ ]{0,3}番号[^0-9\n]{0,6}(?P<number>[0-9](?:[ \-]?[0-9]){0,9})"
)
_INSURANCE_WORD: Final = re.compile(r"保険|被保|国保|健保|共済組合|資格確認")
_POST_BANK_WORD: Final = re.compile(r"ゆうちょ|郵便貯金|通帳|総合口座|振込|口座")
_NEAR: Final = 80
_INSURED: Final = re.compile(r"[^0-9\n]{0,8}(?P<number>[0-9](?:[ \-]?[0-9]){3,10})(?![0-9])")
_INSURER: Final = re.compile(r"[^0-9\n]{0,8}(?P<number>[0-9](?:[ \-]?[0-9]){5}(?:[ \-]?[0-9]){0,2})(?![0-9])")
_ACCOUNT: Final = re.compile(r"(?:預金|口座|番号|No)?[^0-9\n円]{0,10}(?P<number>[0-9](?:[ \-]?[0-9]){6})(?![0-9\-])")
_ACCOUNT_WORD: Final = re.compile(
    r"銀行|信用金庫|信金|信用組合|信組|農協|農業協同組合|労働金庫|支店|本店|出張所|預金|口座"
)


# Of the numbers below one with a 記号 may have a single digit, the others have four.
_FOUR_DIGITS: Final = re.compile(r"[0-9](?:[ \-]?[0-9]){3}")


def find_insurance_and_accounts(folded: Folded, labels: Labels) -> Iterator[Finding]:
    text = folded.text
    if "記号" not in text and _FOUR_DIGITS.search(text) is None:
        return
    personal: list[int] = []
    for at in labels.of(Label.SYMBOL):
        found = _SYMBOL_AND_NUMBER.match(text, at.start)
        if found is None:
            continue
        around = text[max(0, at.start - _NEAR) : found.end() + _NEAR]
        symbol = re.sub(r"[ \-]", "", found["symbol"])
        number = re.sub(r"[ \-]", "", found["number"])
        span = folded.span(found.start("symbol"), found.end("number"))
        if _POST_BANK_WORD.search(around) or (
            re.fullmatch(r"[01][0-9]{4}[0-9]?", symbol) and len(number) in (7, 8) and number[-1] == "1"
        ):
            yield Finding(Kind.BANK, *span, _C3C, "ゆうちょ銀行の記号と番号が並んでいます。")
        elif _INSURANCE_WORD.search(around):
            personal.append(found.start())
            yield Finding(Kind.INSURANCE, *span, _C3C, "保険証の記号と番号が並んでいます。")
    for at in labels.of(Label.INSURED):
        found = _INSURED.match(text, at.end)
        if found is not None:
            personal.append(at.start)
            yield Finding(
                Kind.INSURANCE,
                *folded.span(*found.span("number")),
                _C3C,
                "「被保険者番号」の言葉のそばに番号があります。",
            )
    for at in labels.of(Label.INSURER):
        found = _INSURER.match(text, at.end)
        # The insurer's number alone names an office; beside a person's number it is part of the person's.
        if found is not None and any(abs(p - at.start) <= 4 * _NEAR for p in personal):
            digits = re.sub(r"[ \-]", "", found["number"])
            if len(digits) in (6, 8) and check_digits.luhn(digits[:-1]) == int(digits[-1]):
                yield Finding(
                    Kind.INSURANCE,
                    *folded.span(*found.span("number")),
                    _C3C,
                    "保険者番号が、記号・番号とともにあります。",
                )
    for at in labels.of(Label.BANK):
        found = _ACCOUNT.match(text, at.end)
        if found is None or not _ACCOUNT_WORD.search(text[max(0, at.start - _NEAR) : found.end()]):
            continue
        yield Finding(Kind.BANK, *folded.span(*found.span("number")), _C3C, "口座の言葉のそばに、7桁の番号があります。")


# ── birthday ─────────────────────────────────────────────────────────────────────────────────────────────────────
_DATE: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:(?:明治|大正|昭和|平成|令和|[MTSHRmtshr])[ .]?(?:元|[0-9十]{1,3}) ?[年.\-/] ?[0-9十]{1,3} ?[月.\-/] ?[0-9十]{1,3}(?: ?日)?"
    r"|(?:19|20)[0-9]{2} ?[年.\-/] ?[0-9十]{1,3} ?[月.\-/] ?[0-9十]{1,3}(?: ?日)?"
    r"|(?:19|20)[0-9]{6})(?![0-9])"
)
_BORN_AFTER: Final = re.compile(r"(?: ?\([^()\n]{1,12}\))? ?(?:日?生(?:まれ)?(?![産活徒])|\(?誕生)")
_BIRTH_BEFORE: Final = 16


def find_birthdays(folded: Folded, labels: Labels) -> Iterator[Finding]:
    text = folded.text
    if "生" not in text and not labels.of(Label.BIRTH):
        return
    for found in _DATE.finditer(text):
        before = text[max(0, found.start() - _BIRTH_BEFORE) : found.start()].lower()
        is_labelled = any(word in before for word in ("生年月日", "誕生日", "出生", "birth", "dob", "生まれ"))
        if is_labelled or _BORN_AFTER.match(text, found.end()):
            yield Finding(Kind.BIRTHDAY, *folded.span(*found.span()), _C3C, "生まれた日とわかる日付です。")


_AFTER_NAME: Final = re.compile(
    rf" ?(?:様|さん|さま|氏|君|くん|ちゃん)? ?\( ?(?P<date>{_DATE.pattern})(?= ?(?:\)|,|、|・|生|満))"
)
_BESIDE_NAME: Final = 48


def find_birthdays_beside(text: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """A date in brackets after a name, as lists of families have it. found: what was found so far, in the original."""
    for name in found:
        if name.kind is Kind.NAME:
            after = Folded(text[name.end : name.end + _BESIDE_NAME])
            if date := _AFTER_NAME.match(after.text):
                start, end = after.span(*date.span("date"))
                reason = "名前の後のかっこの中に、日付があります。"
                yield Finding(Kind.BIRTHDAY, name.end + start, name.end + end, _C3C, reason)


# ── address ──────────────────────────────────────────────────────────────────────────────────────────────────────
# A house number: 丁目 with 番, 番地, or digits with hyphens. 丁目 alone is a quarter, not a house.
_HOUSE: Final = re.compile(
    r"(?P<said>[0-9十百]{1,5} ?丁目 ?[0-9十百]{1,5} ?(?:番地?|の|-) ?(?:[0-9十百]{0,4} ?号?)?(?:-[0-9]{1,5}){0,2}"
    r"|[0-9十百千]{1,6} ?番地?(?:の?[0-9]{1,4}| ?[0-9十百]{1,4} ?号)?)"
    r"|(?P<short>[0-9]{1,5}(?:[-のノ][0-9]{1,5}){1,3})(?![0-9\-])"
)
_PLACE: Final = re.compile(
    r"(?:(?:北海道|東京都|大阪府|京都府|[^\s0-9、。,()「」:]{2,3}県) ?)?"
    r"(?P<town>[^\s、。,()「」:/]{1,8}?[市区町村郡])(?P<quarter>[^\s、。,()「」:/]{0,16}?) ?\Z"
)
_POST_CODE: Final = re.compile(r"〒? ?[0-9]{3}-?[0-9]{4}[ \n]{0,2}\Z")
# 住所は横須賀市…: what leads to the place is no part of it.
_LEAD: Final = re.compile(
    r".{0,8}?(?=北海道|東京都|大阪府|京都府|[一-龥]{2,3}県)|[^ぁ-ん]{0,4}[はがをにでと](?=[一-龥ァ-ヶ])"
)
_NO_QUARTER: Final = re.compile(
    r"(?:[課係室例第条項号版階図表回組班校部局年度月日時分円人名件個棟期]|番|令和|平成|昭和|規則|要綱|内線)\Z"
)
_ADDRESS_BEFORE: Final = 32
_MAY_BE_HOUSE: Final = re.compile(r"[0-9十百千](?: ?(?:番|丁)|[-のノ][0-9])")
_MAY_BE_PLACE: Final = re.compile("[市区町村郡]")


def find_addresses(folded: Folded) -> Iterator[Finding]:
    """A place down to the house. A quarter, a town or a post code alone is nobody's."""
    text = folded.text
    if _MAY_BE_HOUSE.search(text) is None or _MAY_BE_PLACE.search(text) is None:
        return
    last_end = 0
    for house in _HOUSE.finditer(text):
        if house.start() < last_end:
            continue
        since = max(last_end, house.start() - _ADDRESS_BEFORE)
        before = text[since : house.start()]
        place = _PLACE.search(before)
        if place is None or _NO_QUARTER.search(place.group().rstrip()):
            continue
        if house["short"] is not None and not (place["quarter"].strip() or place["town"][-1] in "町村"):
            continue
        if (
            house["said"] is not None
            and "丁目" not in house["said"]
            and not place["quarter"]
            and place["town"][-1] in "市郡"
        ):
            continue
        lead = _LEAD.match(place.group())
        start = since + place.start() + (len(lead.group()) if lead is not None else 0)
        code = _POST_CODE.search(text[max(0, start - 12) : start])
        if code is not None:
            start -= len(code.group())
        last_end = house.end()
        yield Finding(Kind.ADDRESS, *folded.span(start, last_end), _C3C, "番地まで書かれた住所です。")


# ── marks ────────────────────────────────────────────────────────────────────────────────────────────────────────
# 秘密文書 are 極秘文書 and 秘文書 (行政文書の管理に関するガイドライン); what ministries stamped 機密性3 means the same. 特定秘密
# has a law of its own. 取扱厳重注意 stands on papers of the state and is taken for one of them, unconfirmed.
_MARK_WORD: Final = r"(?P<word>極秘(?:文書)?|厳秘|秘密文書|部外秘密|秘文書|時限秘|時秘|特定秘密|取扱厳重注意|秘|(?:自治体)?機密性 ?3 ?[ABCabc]?(?: ?情報)?)"
# 【秘・取扱注意】, (秘 令和9年3月31日まで): what else a stamp says.
_MORE: Final = r"(?:[ ・:/、,(-][^】\]〕>》)\n]{0,24}\)?)?"
_MARK: Final = re.compile(
    rf"(?:[【\[〔<《(] ?{_MARK_WORD}{_MORE} ?[】\]〕>》)]|^ {{0,8}}{_MARK_WORD.replace('?P<word>', '?P<alone>')} {{0,8}}$)",
    re.MULTILINE,
)
_CLASS_OF_MARK: Final = {"A": DataClass.C3A, "B": DataClass.C3B, "C": DataClass.C3C}


def find_marks(folded: Folded) -> Iterator[Finding]:
    """A stamp on a document, in brackets or alone on its line; a text about such documents has none."""
    if "秘" not in folded.text and "機密性" not in folded.text and "厳重" not in folded.text:
        return
    for found in _MARK.finditer(folded.text):
        word = found["word"] or found["alone"]
        letter = word.replace(" ", "").removesuffix("情報")[-1].upper()
        data_class = _CLASS_OF_MARK.get(letter, DataClass.C3A)
        yield Finding(
            Kind.MARK,
            *folded.span(*found.span()),
            data_class,
            "文書の取扱いを示す表示があります（秘密文書、機密性の区分）。",
        )
