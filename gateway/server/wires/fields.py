"""How the wires read what a caller wrote: one value, and the place of it as they wrote it. Each raises `BadRequest`."""

from collections.abc import Mapping
from typing import Any, NoReturn

from gateway.contracts import BadRequest


def wrong(param: str, expected: str) -> NoReturn:
    raise BadRequest(f"「{param}」は{expected}にしてください。", param=param)


def object_at(value: object, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        wrong(at, "オブジェクト")
    return value


def list_at(value: object, at: str) -> list[Any]:
    if not isinstance(value, list):
        wrong(at, "配列")
    return value


def text_at(value: object, at: str) -> str:
    if not isinstance(value, str):
        wrong(at, "文字列")
    return value


def boolean_at(value: object, at: str) -> bool:
    if not isinstance(value, bool):
        wrong(at, "trueかfalse")
    return value


def note_unread(block: Mapping[str, Any], read: frozenset[str], at: str, ignored: set[str]) -> None:
    """Adds what stands in `block` and is not among `read` to what is told as ignored; what is null says nothing."""
    ignored |= {f"{at}.{field}" for field in block.keys() - read if block[field] is not None}
