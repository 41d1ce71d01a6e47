"""The guard on what a model answers, read while it passes and once only, whatever pieces it comes in.

For staff nothing is held up: what was found is told with the last piece. For residents a sentence goes on when it was
read to its end; one in which something was found is withheld, and the answer ends there with a word on whom to ask.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson

from gateway.guard.findings import Finding, Kind, without_overlaps
from gateway.guard.fold import Folded, comparable
from gateway.guard.inspection import inspect
from gateway.guard.texts import pieces_of, texts_of
from gateway.guard.wordings import find_wordings

Action = Literal["warn", "withhold"]

HANDOVER: Final = "ここから先は、AIではお答えできません。担当の窓口におたずねください。"
# As OpenAI's API tells of an answer that was stopped for its content.
WITHHELD: Final = "content_filter"
# How much is read at once, what is read again before it, and what may still grow at its end.
_STEP: Final = 500
_CONTEXT: Final = 200
_MARGIN: Final = 100
# A text without an end of a sentence goes on all the same, but for its last piece.
_LONGEST_SENTENCE: Final = 1_000
_BORDER: Final = re.compile(r"[。．！？!?\n][」』）)\]]*[ \u3000\n]*")
_NO_TEXT: Final = frozenset({"role", "type", "id", "tool_call_id"})
_FOR_RESIDENTS: Final = frozenset({"role", "content", "refusal", "tool_calls"})
_MAX_REASONS: Final = 5
# A page that draws it fetches it, and tells its server whatever stands in the address: the way out of a conversation that
# somebody's document was written to take. By reference it may stand anywhere.
_IMAGE: Final = re.compile(
    r"!\[[^\]\n]{0,200}\](?:\([ \t]*<?(?:[a-z][a-z0-9+.\-]{0,15}:)?//|\[)|<(?:img|image|source|iframe)\b[^>]{0,200}?[\"'= ](?:https?:)?//",
    re.IGNORECASE,
)
# They weigh what leaves; an answer has arrived.
_ABOUT_THE_CALL: Final = frozenset({Kind.SENSITIVE, Kind.PEOPLE_LIST})


class Asked:
    """The texts of a question, read when somebody is named in its answer."""

    def __init__(self, body: Mapping[str, object]) -> None:
        self._body = body
        self._text: str | None = None

    def names(self, name: str) -> bool:
        """Whether the name stood in the question, however it was spaced."""
        if self._text is None:
            self._text = comparable("\n".join(texts_of(self._body)))
        return comparable(name) in self._text


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What is looked for in answers, by a town's rules, and what is done about it.

    names: where it is given, people are looked for as well, but for those whom the question named. That takes a
    millisecond for a thousand characters: callers on an event loop read such answers in a thread.
    """

    action: Action
    ng_words: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()
    public: Collection[str] = frozenset()
    names: Asked | None = None

    def find(self, text: str) -> tuple[Finding, ...]:
        """Numbers and the like of people, the town's words, wordings, images from elsewhere; with `names` who was not asked
        about, too."""
        found: dict[tuple[Kind, int, int], Finding] = {}
        for start, piece in pieces_of(text):
            inspected = inspect(piece, ng_words=self.ng_words, public=self.public, names=self.names is not None)
            for f in (*inspected, *find_wordings(Folded(piece), self.wordings), *_images_in(piece)):
                if f.kind in _ABOUT_THE_CALL or (f.kind is Kind.NAME and self._was_named(piece[f.start : f.end])):
                    continue
                there = Finding(f.kind, start + f.start, start + f.end, f.data_class, f.reason)
                found.setdefault((f.kind, there.start, there.end), there)
        return without_overlaps(found.values())

    def _was_named(self, name: str) -> bool:
        return self.names is None or self.names.names(name)


def _images_in(text: str) -> Iterator[Finding]:
    if "![" in text or "<" in text:
        for found in _IMAGE.finditer(text):
            yield Finding(Kind.REMOTE_IMAGE, *found.span(), None, "外部から画像を読み込む書き方です。")


@dataclass(slots=True)
class _Told:
    """What was found in one choice."""

    counts: Counter[Kind] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)
    is_withheld: bool = False

    def add(self, found: Collection[Finding]) -> None:
        for f in found:
            self.counts[f.kind] += 1
            if f.kind is Kind.WORDING:
                self.reasons.setdefault(f.reason)

    def as_json(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "action": "withhold" if self.is_withheld else "warn",
            "findings": [{"kind": k.value, "label": k.words, "count": self.counts[k]} for k in Kind if self.counts[k]],
            "reasons": list(self.reasons)[:_MAX_REASONS],
        }


class _Reader:
    """Reads a text behind its back: what is given goes on as it is."""

    def __init__(self, rules: AnswerRules) -> None:
        self._rules = rules
        self._parts: list[str] = []
        self._size = 0
        self._tail = ""
        # Up to where in the tail everything is counted.
        self._counted = 0

    def add(self, text: str, *, is_last: bool) -> tuple[str, list[Finding]]:
        self._parts.append(text)
        self._size += len(text)
        if self._size < _STEP and not is_last:
            return text, []
        whole = self._tail + "".join(self._parts)
        end = len(whole) if is_last else len(whole) - _MARGIN
        found = [f for f in self._rules.find(whole) if self._counted < f.end <= end]
        start = max(0, end - _CONTEXT)
        self._parts, self._size = [], 0
        self._tail, self._counted = whole[start:], end - start
        return text, found


class _Gate:
    """Lets a text through by whole sentences, up to the first in which something was found."""

    def __init__(self, rules: AnswerRules) -> None:
        self._rules = rules
        self._before = ""
        self._held = ""
        self._searched = 0

    def add(self, text: str, *, is_last: bool) -> tuple[str, list[Finding]]:
        self._held += text
        cut = len(self._held) if is_last else self._cut()
        if not cut:
            return "", []
        whole, at = self._before + self._held, len(self._before)
        found = [f for f in self._rules.find(whole) if f.end > at and f.start < at + cut]
        if found:
            until = min(f.start for f in found) - at
            cut = max((end for end in _borders(self._held) if end <= until), default=0)
        ready = self._held[:cut]
        self._before = whole[: at + cut][-_CONTEXT:]
        self._held = "" if found else self._held[cut:]
        self._searched = 0
        return ready, found

    def _cut(self) -> int:
        """Where the last whole sentence ends; 0 while there is none."""
        ends = list(_borders(self._held, self._searched))
        if ends:
            return ends[-1]
        if len(self._held) > _LONGEST_SENTENCE:
            return len(self._held) - _CONTEXT
        # A border is a few characters long and may still grow.
        self._searched = max(0, len(self._held) - 4)
        return 0


def _borders(text: str, start: int = 0) -> Iterator[int]:
    """Ends of sentences; not between two digits, which may be one number on two lines."""
    for found in _BORDER.finditer(text, start):
        before = text[found.start() - 1 : found.start()]
        if not (before.isnumeric() or before in ("-", "ー", "－", "‐")):
            yield found.end()


class AnswerWatch:
    """One per answer. `counts` and `is_over` grow while it passes."""

    def __init__(self, rules: AnswerRules, *, choices: int) -> None:
        """choices: how many texts there will be."""
        self._rules = rules
        self._choices = choices
        self._told: dict[int, _Told] = {}
        self._texts: dict[tuple[int, str], _Reader | _Gate] = {}

    @property
    def takes_long(self) -> bool:
        """Whether reading it would hold up other streams on the same loop."""
        return self._rules.names is not None

    @property
    def counts(self) -> Counter[Kind]:
        return sum((t.counts for t in self._told.values()), Counter[Kind]()) if self._told else Counter()

    @property
    def has_withheld(self) -> bool:
        return any(t.is_withheld for t in self._told.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing of what still comes would go on."""
        return sum(t.is_withheld for t in self._told.values()) >= self._choices

    @property
    def header(self) -> str:
        """For a program: phone=2, wording=1."""
        if not self._told:
            return ""
        counts = self.counts
        return ", ".join(f"{kind.value}={counts[kind]}" for kind in Kind if counts[kind])

    def body(self, raw: bytes) -> bytes:
        """A whole answer of OpenAI's shape; one in which nothing was found comes back as it is."""
        answer: Any = orjson.loads(raw)
        choices = answer.get("choices") or ()
        texts = [place[key] for c in choices for _, place, key in _texts_in(c, c.get("message"))]
        if not any(self._rules.find(text) for text in texts):
            return raw
        for choice in choices:
            self._choice(choice, choice.get("message"), is_last=True)
        answer["kumiai"] = self._note(self._told)
        return orjson.dumps(answer)

    def event(self, event: bytes) -> bytes:
        """One whole event of a stream in, one out, or nothing where all of it is withheld."""
        data = _data_of(event)
        if not data or data == b"[DONE]":
            return event
        payload: Any = orjson.loads(data)
        choices: list[Any] = payload.get("choices") or []
        ended = []
        is_same = self._rules.action == "warn"
        for choice in list(choices):
            index = choice.get("index") or 0
            if index in self._told and self._told[index].is_withheld:
                choices.remove(choice)
                is_same = False
                continue
            is_last = choice.get("finish_reason") is not None
            self._choice(choice, choice.get("delta"), is_last=is_last)
            if index in self._told and (is_last or self._told[index].is_withheld):
                ended.append(index)
        if ended:
            payload["kumiai"] = self._note({i: self._told[i] for i in ended})
        elif is_same:
            return event
        elif not choices and not payload.get("usage"):
            return b""
        return b"data: " + orjson.dumps(payload) + b"\n\n"

    def _note(self, told: Mapping[int, _Told]) -> dict[str, Any]:
        return {"answer_guard": [t.as_json(i) for i, t in sorted(told.items())]}

    def _choice(self, choice: dict[str, Any], said: object, *, is_last: bool) -> None:
        """Reads what a choice says, leaves in it what may go on, and ends it where something is withheld."""
        index = choice.get("index") or 0
        if self._rules.action == "withhold":
            _keep_what_is_read(choice, said)
        found: list[Finding] = []
        for key, place, name in _texts_in(choice, said):
            place[name], there = self._text((index, key)).add(place[name], is_last=is_last)
            found += there
        if is_last:
            found += self._rest(index, choice, said)
        if not found:
            return
        told = self._told.setdefault(index, _Told())
        told.add(found)
        if self._rules.action == "withhold":
            told.is_withheld = True
            _hand_over(choice, said)

    def _text(self, key: tuple[int, str]) -> "_Reader | _Gate":
        if key not in self._texts:
            self._texts[key] = _Gate(self._rules) if self._rules.action == "withhold" else _Reader(self._rules)
        return self._texts[key]

    def _rest(self, index: int, choice: dict[str, Any], said: object) -> list[Finding]:
        """What was not read or not let through when a choice ended; it goes out with the last piece."""
        found: list[Finding] = []
        for key in [k for k in self._texts if k[0] == index]:
            ready, there = self._texts.pop(key).add("", is_last=True)
            found += there
            if ready:
                _append(choice, said, key[1], ready)
        return found


def _texts_in(choice: dict[str, Any], said: object) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every text of a choice: its key, and where it stands."""
    if isinstance(choice.get("text"), str):
        yield "text", choice, "text"
    if not isinstance(said, dict):
        return
    for name in [n for n, v in said.items() if isinstance(v, str) and n not in _NO_TEXT]:
        yield name, said, name
    for at, call in enumerate(said.get("tool_calls") or ()):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield f"tool:{call.get('index', at)}", function, "arguments"


def _keep_what_is_read(choice: dict[str, Any], said: object) -> None:
    """Drops what repeats the text elsewhere or comes in a form that nobody reads here."""
    choice.pop("logprobs", None)
    if isinstance(said, dict):
        for name in [n for n in said if n not in _FOR_RESIDENTS]:
            del said[name]


def _append(choice: dict[str, Any], said: object, key: str, text: str) -> None:
    place = choice if key == "text" else said
    if not isinstance(place, dict):
        return
    if not key.startswith("tool:"):
        place[key] = (place.get(key) or "") + text
        return
    index = int(key.removeprefix("tool:"))
    for at, call in enumerate(place.get("tool_calls") or ()):
        if call.get("index", at) == index:
            call["function"]["arguments"] += text
            return
    place["tool_calls"] = [*(place.get("tool_calls") or ()), {"index": index, "function": {"arguments": text}}]


def _hand_over(choice: dict[str, Any], said: object) -> None:
    """Ends a choice with a word on whom to ask; what it wanted to call is not called."""
    choice["finish_reason"] = WITHHELD
    if isinstance(choice.get("text"), str):
        choice["text"] += HANDOVER
    elif isinstance(said, dict):
        said.pop("tool_calls", None)
        said["content"] = (said.get("content") or "") + HANDOVER


def _data_of(event: bytes) -> bytes:
    if event.startswith(b"data:") and event.count(b"\n") == 2:
        return event[5:-2].strip()
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
