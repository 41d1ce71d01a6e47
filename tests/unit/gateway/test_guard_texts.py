"""Which parts of a request the guard reads: every one that a model would."""

import base64
import json

import pytest

from gateway.guard.texts import texts_of

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"x" * 64).decode()}}


def read(value: object, field: str = "tools") -> list[str]:
    return list(texts_of({field: value}))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ({"090-1234-5678": 1}, ["090-1234-5678"]),
        ({"a@example.com": {"b(at)example.com": None}}, ["a@example.com", "b(at)example.com"]),
        ({"氏名": "山田"}, ["氏名", "山田"]),
        ({"type": "string", "minimum": 0}, ["string"]),
        ([1234567, -12345678, 123456, 1234567.0, 1e12, 0.5, True, None], ["1234567", "-12345678", "1234567", "1000000000000"]),
        ({"url": "x;base64,abc"}, ["x;base64,abc"]),
        (PICTURE, ["image_url", PICTURE["image_url"]["url"]]),  # type: ignore[index]  # as it is made above
    ],
)  # fmt: skip
def test_names_and_numbers_are_read_as_well(value: object, texts: list[str]) -> None:
    assert read(value) == texts


def test_a_picture_is_none_but_in_messages() -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "読んで"}, PICTURE]}]
    assert read(asked, "messages") == ["user", "text", "読んで", "image_url"]


def test_escaped_arguments_are_read_with_all_they_hold() -> None:
    """Of two fields with one name as well, and no picture is looked for among them."""
    url = json.dumps("x;base64,山田")
    first, second = json.dumps("番号"), json.dumps("町")
    arguments = f'{{"q": {first}, "q": {second}, "url": {url}, "n": 12345678}}'
    call = {"function": {"arguments": arguments}}
    assert read([{"tool_calls": [call]}], "messages") == [
        arguments, "q", "番号", "q", "町", "url", "x;base64,山田", "n", "12345678",
    ]  # fmt: skip
