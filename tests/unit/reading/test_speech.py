"""Numbers as people say them and as a listener writes them down."""

import pytest

from gateway.reading.speech import joined_numbers, unsure_numbers


@pytest.mark.parametrize(
    "heard",
    [
        # As Whisper base wrote down synthesised speech: a digit dropped, digits made words of.
        "マイナンバラは1234.5678.918です",
        "番号は1、2、3、4、5、6、7、マッチ、9、0、1、マッチ、です。",
        "1234-5678-918",
        "1、2、3、4、5、6、7、8、9、0、1、8です。",
        "いち、に、さん、よん、ご、ろく、なな、はち、きゅう、ゼロ、いち、はち",
        "さん、に、ご、ろく、し、く、に、ご、いち、に、ご、はち",
        "さんにごろくしくにごいちにごはち",
        "一二三四 五六七八 九〇一八",
        "１２３４５６７８９０１８",
        "090 1234 5678",
        "電話は1234 5678 9018",
    ],
)
def test_a_long_number_may_be_another(heard: str) -> None:
    assert unsure_numbers(heard)


@pytest.mark.parametrize(
    "heard",
    [
        "電話番号は090 1234 5678です。",
        "連絡先は、03の1234の5678です。",
        "令和8年11月28日10時30分から、参加者は15人です。",
        "2026年、11月、28日、10時、30分、15人",
        "予算は1,234,567,890円です。",
        "議案第1号、第2号、第3号、第4号、第5号、第6号、第7号、第8号、第9号、第10号",
        "3つ、4つ、それから、5つあります。",
        "佐藤さんに、いちごを、にさんパック、山田さんに、しごパックお願いしました。",
    ],
)
def test_dates_amounts_and_telephone_numbers_are_what_they_are(heard: str) -> None:
    assert unsure_numbers(heard) == ()


def test_where_the_listener_doubts_shorter_numbers_do() -> None:
    assert unsure_numbers("123 456", is_doubted=True) == ("123 456",)
    assert unsure_numbers("電話番号は090 1234 5678", is_doubted=True)
    assert unsure_numbers("123 456") == ()


def test_numbers_spoken_with_gaps_are_joined_for_the_detectors() -> None:
    assert joined_numbers("番号は1、2、3、4、いち、ゼロ、です。電話は090 1234 5678") == "123410"


def test_words_that_are_digits_besides_count_between_digits_alone() -> None:
    assert joined_numbers("いち、に、さん、し、ご、ろくです。さんくらいに。しち、はち、くらい") == "123456\n78"
    assert joined_numbers("090、1234、5678に9時に電話") == "09012345678"
