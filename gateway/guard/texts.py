"""Every text of a request that a model would read, wherever it stands: messages, names, tool calls, schemas, inputs."""

import json
from collections.abc import Iterator, Mapping
from typing import Final

# Between two texts: no detector reads across it.
BETWEEN: Final = "\n|\n"
# Texts longer than this are read in pieces, because one look holds the interpreter for its whole length.
PIECE: Final = 20_000
# What may stand across the border of two pieces.
_OVERLAP: Final = 200
# Pictures as data; there is nothing to read in their letters, and whoever sends one is weighed for it elsewhere.
DATA: Final = "url"


def texts_of(body: Mapping[str, object]) -> Iterator[str]:
    """The strings of a checked body in order, the names of fields in schemas among them."""
    pending: list[object] = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if value:
                yield value
                if "\\u" in value and value.lstrip()[:1] in ("{", "["):
                    pending.append(_unescaped(value))
        elif isinstance(value, dict):
            for key, item in reversed(value.items()):
                if key == DATA and isinstance(item, str) and ";base64," in item[:64]:
                    continue
                pending.append(item)
                if not key.isascii():
                    pending.append(key)
        elif isinstance(value, list):
            pending.extend(reversed(value))


def _unescaped(text: str) -> object:
    """Arguments of a tool are JSON in a string, and JSON may write every letter as \\uXXXX."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def pieces_of(text: str) -> Iterator[tuple[int, str]]:
    """A long text in pieces with their places; they overlap, so that nothing is cut in two in both of its pieces."""
    step = PIECE - _OVERLAP
    for start in range(0, max(1, len(text) - _OVERLAP), step):
        yield start, text[start : start + PIECE]
