"""伏せる: what was found is replaced by ⟦氏名1⟧ before a request leaves, and put back into the answer.

The map lives as long as one call. Numbers go by first appearance over the whole conversation, and a caller sends the
conversation anew with every question, so the same person keeps the same placeholder without anything being stored.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.guard.findings import Kind
from gateway.guard.fold import NOT_COMPARED, Folded, comparable, compared, fold
from gateway.guard.inspection import inspect_long
from gateway.guard.ng_words import WordIndex, lowered
from gateway.guard.texts import pieces_of, texts_of
from gateway.guard.writings import readings_of

_WORDS: Final[Mapping[Kind, str]] = {
    Kind.RESIDENT_CODE: "住民票コード",
    Kind.PENSION: "年金番号",
    Kind.LICENCE: "免許証番号",
    Kind.INSURANCE: "保険証",
    Kind.BANK: "口座",
    Kind.CARD: "カード",
    Kind.PASSPORT: "旅券番号",
    Kind.RESIDENCE_CARD: "在留カード",
    Kind.PHONE: "電話",
    Kind.EMAIL: "メール",
    Kind.ADDRESS: "住所",
    Kind.BIRTHDAY: "生年月日",
    Kind.NAME: "氏名",
}
MASKABLE: Final = frozenset(_WORDS)
_OPEN: Final = "⟦"
_PLACEHOLDER: Final = re.compile(r"⟦ ?([^⟦⟧\n]{1,16}?) ?⟧")
_LONGEST: Final = 20
# The same in JSON, where any letter may be written as \uXXXX.
_PLACEHOLDER_IN_JSON: Final = re.compile(
    r"(?:⟦|\\u27[eE]6) ?((?:\\u[0-9a-fA-F]{4}|[^⟦⟧\n\\\x22]){1,16}?) ?(?:⟧|\\u27[eE]7)"
)
_BEGUN_IN_JSON: Final = re.compile(r"(?:⟦|\\u27[eE]6)(?:(?!⟧|\\u27[eE]7).)*\Z|\\(?:u(?:2(?:7[eE]?)?)?)?\Z", re.DOTALL)
_LONGEST_IN_JSON: Final = 6 * _LONGEST
# Shorter ones (林, ミキ) are replaced where they were found and are not looked for elsewhere: they are words as well. Of
# two signs only names are looked for (山田).
_TELLING: Final = 3
_SHORT: Final = 2
_HAN: Final = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# So few letters and digits stand somewhere in the nonsense to which a long word decodes, and within longer numbers.
_BY_CHANCE: Final = 6
# What a model has to read as it is.
_KEPT_FIELDS: Final = frozenset({"role", "type", "id", "tool_call_id", "encoding_format", "detail", "url"})


@dataclass(frozen=True, slots=True)
class Masked:
    """A body with placeholders and what they stand for, by label. counts: how many of each kind were replaced."""

    body: dict[str, object] = field(repr=False)
    originals: Mapping[str, str] = field(repr=False)
    grown_bytes: int


class _Labels:
    """Gives each original its label; the same in another width or with other hyphens is the same."""

    def __init__(self, taken: Collection[str]) -> None:
        self.originals: dict[str, str] = {}
        self._labels: dict[tuple[Kind, str], str] = {}
        self._next: dict[Kind, int] = {}
        self._taken = taken

    def of(self, kind: Kind, original: str) -> str:
        key = (kind, comparable(original))
        if key not in self._labels:
            while True:
                self._next[kind] = self._next.get(kind, 0) + 1
                label = f"{_WORDS[kind]}{self._next[kind]}"
                # Somebody may have typed ⟦氏名1⟧; it must not turn into a person.
                if label not in self._taken:
                    break
            self._labels[key] = label
            self.originals[label] = original
        return self._labels[key]


def mask(body: Mapping[str, object], *, public: Collection[str] = ()) -> Masked:
    """Replaces everything that can be masked. CPU for a thread: names are looked for.

    Raises nothing: whether something slipped through is asked of `slipped` before the body leaves.
    """
    plain = _readable(dict(body))
    assert isinstance(plain, dict)
    written = list(texts_of(plain))
    texts = list(dict.fromkeys(written))
    taken = {fold(found.group(1)) for text in texts if _OPEN in text for found in _PLACEHOLDER.finditer(text)}
    labels = _Labels(taken)
    spans: dict[str, list[tuple[int, int, str]]] = {}
    for text in texts:
        spans[text] = [
            (f.start, f.end, labels.of(f.kind, text[f.start : f.end]))
            for f in inspect_long(text, public=public)
            if f.kind in MASKABLE
        ]
    wanted = {label: c for label, o in labels.originals.items() if _is_looked_for(label, c := comparable(o))}
    index = WordIndex({labels.originals[label]: label for label in wanted})
    words = WordIndex({c: label for label, c in wanted.items() if len(c) >= _TELLING and not c.isascii()})
    replaced = {text: _replace(text, [*spans[text], *_again(text, index, words)]) for text in texts}
    grown = sum(max(0, len(replaced[text].encode()) - len(text.encode())) for text in written)
    return Masked(_rewritten(plain, replaced), labels.originals, grown)


def _again(text: str, index: WordIndex, words: WordIndex) -> Iterator[tuple[int, int, str]]:
    """Where what was found elsewhere stands without what gave it away there.

    words: those that are also looked for spread out (山　田　太　郎), of which a detector may see a part.
    """
    folded = Folded(text)
    lower = lowered(folded.text)
    for start, end, label in index.find(lower):
        yield *folded.span(start, end), label
    close = NOT_COMPARED.sub("", lower)
    if len(close) == len(lower):
        return
    places: list[int] = []
    for start, end, label in words.find(close):
        places = places or [at for at, c in enumerate(lower) if NOT_COMPARED.match(c) is None]
        yield *folded.span(places[start], places[end - 1] + 1), label


def _replace(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    at = 0
    for start, end, label in sorted(spans, key=lambda s: (s[0], -s[1])):
        if start >= at:
            parts += (text[at:start], f"⟦{label}⟧")
            at = end
    return "".join([*parts, text[at:]])


def _readable(value: object) -> object:
    """Arguments of tools without \\uXXXX, so that what stands in them can be replaced."""
    if isinstance(value, dict):
        return {k: _plain_json(v) if k == "arguments" else _readable(v) for k, v in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value


def _plain_json(value: object) -> object:
    if not isinstance(value, str) or "\\u" not in value:
        return value
    try:
        return json.dumps(json.loads(value), ensure_ascii=False)
    except (ValueError, RecursionError):
        return value


def _rewritten(body: dict[str, object], replaced: Mapping[str, str]) -> dict[str, object]:
    def rewrite(value: object) -> object:
        if isinstance(value, str):
            return replaced.get(value, value)
        if isinstance(value, dict):
            return {
                replaced.get(k, k): v if k in _KEPT_FIELDS and isinstance(v, str) else rewrite(v)
                for k, v in value.items()
            }
        return [rewrite(item) for item in value] if isinstance(value, list) else value

    return {key: rewrite(value) for key, value in body.items()}


# ── nothing slips through ────────────────────────────────────────────────────────────────────────────────────────


def slipped(body: Mapping[str, object], originals: Mapping[str, str]) -> str | None:
    """The label of an original that is still in a masked body, in any writing; None when there is none.

    Looks at the text in one width without spaces and hyphens, and at what `writings` undoes in it. CPU for a thread.
    """
    if not originals:
        return None
    known = {comparable(o): label for label, o in originals.items()}
    long = {c: label for c, label in known.items() if len(c) >= _TELLING}
    by_chance = {c: label for c, label in long.items() if len(c) < _BY_CHANCE and c.isascii()}
    telling = WordIndex({c: label for c, label in long.items() if c not in by_chance}, whole_words=False)
    # 1234 is no part of 12345.
    short = WordIndex(by_chance)
    names = WordIndex({c: label for c, label in known.items() if _is_short_name(label, c)})
    for text in texts_of(body):
        for reading, is_decoded in readings_of(text):
            for _, piece in pieces_of(reading):
                folded = fold(piece)
                close = compared(folded)
                for _, _, label in telling.find(close):
                    return label
                for _, _, label in () if is_decoded else short.find(close):
                    return label
                for _, _, label in names.find(lowered(folded.replace(" ", ""))):
                    return label
    return None


def _is_looked_for(label: str, compared: str) -> bool:
    return len(compared) >= _TELLING or _is_short_name(label, compared)


def _is_short_name(label: str, compared: str) -> bool:
    """Of two signs, one of them Chinese: one alone, or two of another script, stand in other words all the time."""
    is_name = label.startswith(_WORDS[Kind.NAME])
    return is_name and len(compared) == _SHORT and _HAN.search(compared) is not None


# ── the way back ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Restorer:
    """Puts the originals back into an answer."""

    originals: Mapping[str, str] = field(repr=False)

    def text(self, text: str, *, in_json: bool = False) -> str:
        """in_json: the text is JSON in a string (arguments of a tool), where a quote has to be escaped."""
        if _OPEN not in text and not (in_json and "\\u27" in text):
            return text

        def original(found: re.Match[str]) -> str:
            label = json.loads(f'"{found[1]}"', strict=False) if in_json else found[1]
            value = self.originals.get(fold(label).strip())
            if value is None:
                return found.group()
            return json.dumps(value, ensure_ascii=False)[1:-1] if in_json else value

        return (_PLACEHOLDER_IN_JSON if in_json else _PLACEHOLDER).sub(original, text)

    def body(self, raw: bytes) -> bytes:
        """A whole answer of OpenAI's shape; one without placeholders comes back as it is."""
        if _OPEN.encode() not in raw and b"\\u27e6" not in raw.lower():
            return raw
        answer: Any = orjson.loads(raw)
        for choice in answer.get("choices") or ():
            if isinstance(choice.get("text"), str):
                choice["text"] = self.text(choice["text"])
            message = choice.get("message")
            if isinstance(message, dict):
                self._message(message)
        return orjson.dumps(answer)

    def _message(self, message: dict[str, Any]) -> None:
        for name, value in message.items():
            if isinstance(value, str) and name not in _KEPT_FIELDS:
                message[name] = self.text(value)
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = self.text(function["arguments"], in_json=True)


class StreamRestorer:
    """The same for a stream: a placeholder that comes in several pieces waits for its end."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer
        # By choice and field: text that may be the begin of a placeholder.
        self._held: dict[tuple[int, str], str] = {}

    def event(self, event: bytes) -> bytes:
        """One whole event in, one out."""
        data = event.removeprefix(b"data:").strip()
        if not event.startswith(b"data:") or data == b"[DONE]":
            return event
        payload: Any = orjson.loads(data)
        for choice in payload.get("choices") or ():
            self._choice(choice)
        return b"data: " + orjson.dumps(payload) + b"\n\n"

    def _choice(self, choice: dict[str, Any]) -> None:
        number = choice.get("index") or 0
        is_last = choice.get("finish_reason") is not None
        if isinstance(choice.get("text"), str):
            choice["text"] = self._piece((number, "text"), choice["text"], is_last=is_last)
            return
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        for name in [n for n, v in delta.items() if isinstance(v, str) and n not in _KEPT_FIELDS]:
            delta[name] = self._piece((number, name), delta[name], is_last=is_last)
        for call in delta.get("tool_calls") or ():
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                key = (number, f"tool:{call.get('index') or 0}")
                function["arguments"] = self._piece(key, function["arguments"], is_last=is_last, in_json=True)
        if is_last:
            self._rest(number, delta)

    def _rest(self, number: int, delta: dict[str, Any]) -> None:
        """What was still held when the choice ended goes out with its last event."""
        for key in [k for k in self._held if k[0] == number]:
            rest, name = self._held.pop(key), key[1]
            if name.startswith("tool:"):
                call = {"index": int(name.removeprefix("tool:")), "function": {"arguments": rest}}
                delta["tool_calls"] = [*(delta.get("tool_calls") or ()), call]
            else:
                delta[name] = (delta.get(name) or "") + rest

    def _piece(self, key: tuple[int, str], text: str, *, is_last: bool, in_json: bool = False) -> str:
        text = self._held.pop(key, "") + text
        if not is_last:
            begin = _begun(text, in_json=in_json)
            if begin < len(text):
                self._held[key] = text[begin:]
                text = text[:begin]
        return self._restorer.text(text, in_json=in_json)


def _begun(text: str, *, in_json: bool) -> int:
    """Where a placeholder begins that has not ended, and may still do so; else the end of the text."""
    if in_json:
        found = _BEGUN_IN_JSON.search(text, max(0, len(text) - _LONGEST_IN_JSON))
        return len(text) if found is None else found.start()
    begin = text.rfind(_OPEN)
    is_open = begin >= 0 and "⟧" not in text[begin:] and len(text) - begin <= _LONGEST
    return begin if is_open else len(text)
