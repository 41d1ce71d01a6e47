"""The most tokens a picture can be billed for: its size as its header says, by what providers have published."""

import base64
import binascii
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

# What is read of a picture to learn its size. A header beyond it counts as unreadable.
HEADER_BYTES: Final = 192 * 1024
# An unreadable picture is taken for one of this size; larger ones are not read, and refused by providers.
MOST_PIXELS: Final = (8192, 6144)
_JPEG_SIZES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class Rule:
    """A way of counting, for models whose names begin like this. tokens: of width and height, both at least 1."""

    models: tuple[str, ...]
    tokens: Callable[[int, int], int]


def image_tokens(url: str, model: str = "") -> int:
    """url: `data:image/…;base64,…`. Without a model whose counting is known: the dearest of all that are."""
    width, height = size_of(url) or MOST_PIXELS
    rule = _rule_of(model)
    return rule.tokens(width, height) if rule else max(r.tokens(width, height) for r in _rules())


def size_of(url: str) -> tuple[int, int] | None:
    """Width and height of a PNG, GIF, WebP or JPEG; None when its beginning does not say."""
    encoded = url.partition(";base64,")[2][: HEADER_BYTES * 4 // 3]
    try:
        data = base64.b64decode(encoded[: len(encoded) // 4 * 4])
        width, height = _size(data)
    except (binascii.Error, ValueError, IndexError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _size(data: bytes) -> tuple[int, int]:
    def number(at: int, length: int, order: Any = "big") -> int:
        if at + length > len(data):
            raise IndexError
        return int.from_bytes(data[at : at + length], order)

    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return number(16, 4), number(20, 4)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return number(6, 2, "little"), number(8, 2, "little")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        match data[12:16]:
            case b"VP8X":
                return number(24, 3, "little") + 1, number(27, 3, "little") + 1
            case b"VP8L":
                bits = number(21, 4, "little")
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case b"VP8 ":
                return number(26, 2, "little") & 0x3FFF, number(28, 2, "little") & 0x3FFF
    if data[:2] == b"\xff\xd8":
        at = 2
        while number(at, 1) == 0xFF:
            marker = number(at + 1, 1)
            if marker == 0xFF:
                at += 1
            elif marker in _JPEG_ALONE:
                at += 2
            elif marker in _JPEG_SIZES:
                return number(at + 7, 2), number(at + 5, 2)
            else:
                at += 2 + number(at + 2, 2)
    raise ValueError("no picture whose size is known")


def _rule_of(model: str) -> Rule | None:
    """By the longest beginning of the name that ends where a part of it does: `gpt-4o` is not `gpt-4o1`."""
    found = [
        (len(name), rule)
        for rule in _rules()
        for name in rule.models
        if model == name or (model.startswith(f"{name}-") and model[len(name) + 1 :][:4].isdigit())
    ]
    return max(found, key=lambda each: each[0])[1] if found else None


@cache
def _rules() -> tuple[Rule, ...]:
    with (Path(__file__).parent / "image_tokens.toml").open("rb") as file:
        return tuple(_read(tomllib.load(file)["rule"]))


def _read(listed: list[Mapping[str, Any]]) -> Iterator[Rule]:
    for given in listed:
        if tiles := given.get("tiles"):
            counted: Callable[[int, int], int] = _by_tiles(tiles["base"], tiles["tile"])
        elif patches := given.get("patches"):
            counted = _by_patches(patches["permille"], patches.get("most"))
        else:
            counted = _by_pixels(given["pixels_per_token"])
        yield Rule(tuple(given["models"]), counted)


def _by_tiles(base: int, tile: int) -> Callable[[int, int], int]:
    def tokens(width: int, height: int) -> int:
        # Rounded up at each step: how providers round is not published.
        longest = max(width, height)
        if longest > 2048:
            width, height = -(-width * 2048 // longest), -(-height * 2048 // longest)
        shortest = min(width, height)
        if shortest > 768:
            width, height = -(-width * 768 // shortest), -(-height * 768 // shortest)
        return base + tile * -(-width // 512) * -(-height // 512)

    return tokens


def _by_patches(permille: int, most: int | None) -> Callable[[int, int], int]:
    def tokens(width: int, height: int) -> int:
        patches = -(-width // 32) * -(-height // 32)
        return -(-(patches if most is None else min(patches, most)) * permille // 1000)

    return tokens


def _by_pixels(pixels_per_token: int) -> Callable[[int, int], int]:
    return lambda width, height: -(-width * height // pixels_per_token)
