"""What a picture is held for: never less than what providers were seen to bill for it."""

import base64
import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contracts import parse_request
from gateway.server.metering import prompt_bound
from gateway.server.pixels import HEADER_BYTES, MOST_PIXELS, image_tokens, size_of


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int) -> str:
    return url(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + bytes(5))


def jpeg(width: int, height: int, *, before: bytes = b"") -> str:
    frame = b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + bytes(10)
    return url(b"\xff\xd8" + before + frame, "jpeg")


def segment(length: int) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", length + 2) + bytes(length)


@pytest.mark.parametrize(
    "picture",
    [
        png(640, 480),
        jpeg(640, 480),
        jpeg(640, 480, before=segment(60_000) * 2 + b"\xff\xff\xff\xe2\x00\x02\xff\x01"),
        url(b"GIF89a" + struct.pack("<HH", 640, 480) + bytes(9), "gif"),
        url(b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(8) + (639).to_bytes(3, "little") + (479).to_bytes(3, "little"), "webp"),
        url(b"RIFF\x00\x00\x00\x00WEBPVP8L\x00\x00\x00\x00\x2f" + (639 | 479 << 14).to_bytes(4, "little"), "webp"),
        url(b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(10) + struct.pack("<HH", 640, 480), "webp"),
    ],
)  # fmt: skip
def test_a_size_is_read_off_the_header(picture: str) -> None:
    assert size_of(picture) == (640, 480)


@pytest.mark.parametrize(
    "picture",
    [
        url(b""),
        url(b"BM not one of ours"),
        png(0, 480),
        url(b"\x89PNG\r\n\x1a\n"),
        "data:image/png;base64,あ",
        jpeg(640, 480, before=segment(65_000) * (HEADER_BYTES // 65_000 + 1)),
    ],
)
def test_what_says_no_size_is_taken_for_the_largest(picture: str) -> None:
    assert size_of(picture) is None
    assert image_tokens(picture) == image_tokens(png(*MOST_PIXELS))


@given(st.binary(max_size=80))
def test_no_bytes_break_it(data: bytes) -> None:
    for head in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBPVP8L",
        b"\x89PNG\r\n\x1a\n",
    ):
        assert image_tokens(url(head + data)) > 0


@pytest.mark.parametrize(
    ("model", "width", "height", "tokens"),
    [
        # The examples of OpenAI's guide.
        ("gpt-4o", 1024, 1024, 765),
        ("gpt-4o-2024-11-20", 2048, 4096, 1105),
        ("gpt-4o-mini", 1024, 1024, 25_501),
        ("gpt-4o-mini", 2048, 4096, 36_835),
    ],
)
def test_a_known_way_of_counting_is_followed(model: str, width: int, height: int, tokens: int) -> None:
    assert image_tokens(png(width, height), model) == tokens


# (width, height, tokens): what was measured or published, see gateway/server/image_tokens.toml.
BILLED = [
    ("gpt-5-mini", 2048, 768, 1844), ("gpt-5-mini", 1800, 1200, 2334), ("gpt-4.1-mini", 4000, 1474, 2488),
    ("gpt-4.1-nano", 4096, 4096, 3779),
    ("gpt-5.6-terra", 4032, 3024, 14_364), ("gpt-5.6-terra", 4032, 3024, 11_868), ("gpt-5.6-luna", 3840, 2160, 9_792),
    ("gpt-6.1-sol", 9000, 6000, 63_564),
    ("claude-sonnet-5-5", 4032, 3024, 4_005), ("claude-haiku-5-5", 1920, 1080, 2_768), ("claude-haiku-5-5", 256, 256, 177),
    ("gemini-3.8-flash", 256, 256, 1_090), ("gemini-3.8-flash", 4032, 3024, 1_120), ("gpt-4o1", 1024, 1024, 25_501),
]  # fmt: skip


@pytest.mark.parametrize(("model", "width", "height", "billed"), BILLED)
def test_no_picture_was_billed_above_its_bound(model: str, width: int, height: int, billed: int) -> None:
    assert image_tokens(png(width, height), model) >= billed


@given(
    st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(["gpt-4o", "gpt-4o-mini", "gpt-5-mini", "gpt-5-nano"])
)
def test_who_is_not_known_is_held_for_at_least_as_much(width: int, height: int, model: str) -> None:
    assert image_tokens(png(width, height)) >= image_tokens(png(width, height), model) > 0


def test_every_picture_of_a_request_counts_and_a_text_costs_nothing_more() -> None:
    def bound(*pictures: str) -> int:
        content = [
            {"type": "text", "text": "何ですか"},
            *({"type": "image_url", "image_url": {"url": p}} for p in pictures),
        ]
        given = {"model": "m", "messages": [{"role": "user", "content": "前"}, {"role": "user", "content": content}]}
        return prompt_bound(parse_request("chat/completions", orjson.dumps(given)), "gpt-4o")

    assert bound(png(1024, 1024), png(2048, 4096)) == bound() + 765 + 1105
