"""A My Number in what a reader of pictures made of a card: one sign read wrongly must not let the card through.

A typed number is judged by its check digit or by its label. Of a photographed one either may be lost, while the card
around it is still plain to see.
"""

import re
from collections.abc import Iterator
from typing import Final

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.labels import Label, Labels
from gateway.guard.weights import class_of

# Printed 4-4-4; a gap may be lost, and a letter may stand for the digit that looks like it. A driving licence's number has
# no gaps, and parcels have a label.
_LIKE_DIGIT: Final = "0-9OoDIl|SBZ"
_NUMBER: Final = re.compile(
    rf"(?<![{_LIKE_DIGIT}\-])[{_LIKE_DIGIT}]{{4}}(?:[ \-]{{1,3}}[{_LIKE_DIGIT}]{{4}}[ \-]{{0,3}}|[{_LIKE_DIGIT}]{{4}}[ \-]{{1,3}})[{_LIKE_DIGIT}]{{4}}(?![ \-]{{0,3}}[{_LIKE_DIGIT}])"
)
# Sixteen digits are a card to pay with.
_GROUP_BEFORE: Final = re.compile(r"[0-9]{4}[ \-]{0,3}\Z")
_LEAST_DIGITS: Final = 9
_OF_A_PERSON: Final = re.compile("氏名|生年月日|日生|性別|性别|住所|有効|交付|個人番号|マイナンバ-|番号カ-ド")
_LEAST_WORDS: Final = 2
_OTHERS: Final = (Label.OFFICE, Label.CORPORATE, Label.LICENCE, Label.CARD, Label.MY_NUMBER)


def find_misread_numbers(text: str) -> Iterator[Finding]:
    """text: what stands in one picture. Only where at least two words of a person's card stand beside."""
    folded = Folded(text)
    if len(set(_OF_A_PERSON.findall(folded.text))) < _LEAST_WORDS:
        return
    labels = Labels(folded.text)
    for found in _NUMBER.finditer(folded.text):
        if _GROUP_BEFORE.search(folded.text[max(0, found.start() - 7) : found.start()]):
            continue
        label = labels.nearest(*found.span(), _OTHERS)
        if label in (None, Label.MY_NUMBER) and sum(c.isdigit() for c in found.group()) >= _LEAST_DIGITS:
            reason = "画像の中に、マイナンバーの並びの番号と、カードの言葉があります。"
            yield Finding(Kind.MY_NUMBER, *folded.span(*found.span()), class_of(Kind.MY_NUMBER), reason)
