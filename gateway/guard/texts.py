"""Every text of a request that a model would read, wherever it stands: messages, names, tool calls, schemas, inputs."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

# Between two texts: no detector reads across it.
BETWEEN: Final = "\n|\n"
# Texts longer than this are read in pieces, because one look holds the interpreter for its whole length.
PIECE: Final = 20_000
# What may stand across the border of two pieces.
_OVERLAP: Final = 200
# Pictures as data, which stand in checked messages only; there is nothing to read in their letters, and whoever sends
# one is weighed for it elsewhere.
DATA: Final = "url"
_PICTURED: Final = "messages"
# In plain ASCII a name of a field tells something only with a digit, an @ or (at).
_PLAIN_KEYS: Final = frozenset({"role", "content", "type", "text"})
_TELLING: Final = re.compile(r"[0-9@(\[]")
# An account and a passport have seven digits, and nothing of a person has fewer by itself.
_MANY: Final = 1_000_000


def texts_of(body: Mapping[str, object]) -> Iterator[str]:
    """The strings and long numbers of a checked body in order, the names of fields in schemas among them."""
    for field, given in body.items():
        pending: list[object] = [given]
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                if value:
                    yield value
                    if "\\u" in value and value.lstrip()[:1] in ("{", "["):
                        pending.append(_unescaped(value))
            elif isinstance(value, dict):
                for key, item in reversed(value.items()):
                    if key == DATA and field == _PICTURED and isinstance(item, str) and ";base64," in item[:64]:
                        continue
                    pending.append(item)
                    if key not in _PLAIN_KEYS and (not key.isascii() or _TELLING.search(key)):
                        pending.append(key)
            elif isinstance(value, list):
                pending.extend(reversed(value))
            elif isinstance(value, int | float) and abs(value) >= _MANY:
                yield f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _unescaped(text: str) -> object:
    """Arguments of a tool are JSON in a string, and JSON may write every letter as \\uXXXX. Fields come as flat lists:

    of two with one name both are read, and no picture is looked for among them.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=lambda pairs: [part for pair in pairs for part in pair])
    except (ValueError, RecursionError):
        return None
    return value


def pieces_of(text: str) -> Iterator[tuple[int, str]]:
    """A long text in pieces with their places; they overlap, so that nothing is cut in two in both of its pieces."""
    step = PIECE - _OVERLAP
    for start in range(0, max(1, len(text) - _OVERLAP), step):
        yield start, text[start : start + PIECE]
