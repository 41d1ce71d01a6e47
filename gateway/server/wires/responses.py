"""`/v1/responses`: OpenAI's newer wire for callers, answered by whatever deployment a town may use.

A request becomes one of `/v1/chat/completions` and goes its way; the answer is told as items and their events. Nothing
is kept for a later call: who goes on with a conversation sends it again, as with chat. Whatever would be stored or run
elsewhere is refused; what this wire can say and the other cannot is dropped and named.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from gateway.contracts import (
    MAX_MESSAGES,
    BadRequest,
    ModelRequest,
    check_image,
    check_request,
    check_schema,
    parse_json,
)
from gateway.server.wires.fields import boolean_at, list_at, note_unread, object_at, text_at, wrong

PATH: Final = "/v1/responses"
MAX_OUTPUT_TOKENS: Final = 1_000_000
# What a caller may refer to instead of sending it, and what to send.
_KEPT_ELSEWHERE: Final = {
    "previous_response_id": "前の答えは残していません。前の input と答えの output を、続けて input に入れて送ってください。",
    "conversation": "会話は残していません。これまでの発言を input に入れて送ってください。",
    "prompt": "ひな形は預かっていません。文を instructions と input に入れて送ってください。",
    "background": "答えを後から受け取る呼び方はできません。stream を true にして送ってください。",
    "store": "答えを残すことはできません。store を外すか、false にして送ってください。",
}
_SAME: Final = ("model", "temperature", "top_p", "stream", "parallel_tool_calls")
_READ: Final = frozenset(
    {
        *_SAME,
        *_KEPT_ELSEWHERE,
        "input",
        "instructions",
        "max_output_tokens",
        "reasoning",
        "text",
        "tool_choice",
        "tools",
    }
)
# A caller's own words for its user and its books, which are never sent, and what would change nothing.
_SILENT: Final = frozenset({"metadata", "user", "safety_identifier", "stream_options"})


# ── The request ──────────────────────────────────────────────────────────────────────────────────────────────────


def to_chat(given: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The same request for `/v1/chat/completions`, and the names of what it cannot carry. Raises `BadRequest`."""
    for field, way_out in _KEPT_ELSEWHERE.items():
        if given.get(field):
            raise BadRequest(way_out, param=field)
    ignored = {field for field in given.keys() - _READ - _SILENT if given[field] is not None}
    if given.get("truncation") == "disabled":
        ignored.remove("truncation")
    chat = {field: given[field] for field in _SAME if given.get(field) is not None}
    if chat.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    if (limit := given.get("max_output_tokens")) is not None:
        if type(limit) is not int or not 1 <= limit <= MAX_OUTPUT_TOKENS:
            wrong("max_output_tokens", f"1から{MAX_OUTPUT_TOKENS}までの整数")
        chat["max_tokens"] = limit
    if given.get("tools"):
        chat["tools"] = [_tool(t, f"tools[{i}]", ignored) for i, t in enumerate(list_at(given["tools"], "tools"))]
    if (choice := given.get("tool_choice")) is not None:
        chat["tool_choice"] = _tool_choice(choice)
    if (reasoning := given.get("reasoning")) is not None:
        note_unread(object_at(reasoning, "reasoning"), frozenset({"effort"}), "reasoning", ignored)
        if reasoning.get("effort") is not None:
            chat["reasoning_effort"] = text_at(reasoning["effort"], "reasoning.effort")
    if (text := given.get("text")) is not None:
        note_unread(object_at(text, "text"), frozenset({"format"}), "text", ignored)
        if text.get("format") is not None:
            chat["response_format"] = _format(object_at(text["format"], "text.format"), ignored)
    _check_metadata(given.get("metadata"))
    chat["messages"] = _messages(given.get("input"), ignored)
    if given.get("instructions"):
        chat["messages"].insert(0, {"role": "system", "content": text_at(given["instructions"], "instructions")})
    return chat, ignored


def _check_metadata(value: object) -> None:
    if value is not None and not all(isinstance(v, str) for v in object_at(value, "metadata").values()):
        wrong("metadata", "文字列から文字列への対応")


def _tool(value: object, at: str, ignored: set[str]) -> dict[str, Any]:
    tool = object_at(value, at)
    if tool.get("type") != "function":
        raise BadRequest(
            "使えるツールは自分で実行する関数（type: function）だけです。AIのサービス側で実行されるツールは使えません。",
            param=f"{at}.type",
        )
    function: dict[str, Any] = {"name": text_at(tool.get("name"), f"{at}.name")}
    if tool.get("description") is not None:
        function["description"] = text_at(tool["description"], f"{at}.description")
    if tool.get("parameters") is not None:
        function["parameters"] = check_schema(tool["parameters"], f"{at}.parameters")
    if tool.get("strict") is not None:
        function["strict"] = boolean_at(tool["strict"], f"{at}.strict")
    note_unread(tool, frozenset({"type", "name", "description", "parameters", "strict"}), "tools[]", ignored)
    return {"type": "function", "function": function}


def _tool_choice(choice: object) -> object:
    if choice in ("auto", "none", "required"):
        return choice
    if not isinstance(choice, dict) or choice.get("type") != "function":
        wrong("tool_choice", "auto・none・required、または「type: function」とname")
    return {"type": "function", "function": {"name": text_at(choice.get("name"), "tool_choice.name")}}


def _format(wanted: Mapping[str, Any], ignored: set[str]) -> dict[str, Any]:
    kind = wanted.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        wrong("text.format.type", "text・json_object・json_schemaのどれか")
    named: dict[str, Any] = {
        "name": text_at(wanted.get("name"), "text.format.name"),
        "schema": check_schema(wanted.get("schema"), "text.format.schema"),
    }
    if wanted.get("description") is not None:
        named["description"] = text_at(wanted["description"], "text.format.description")
    if wanted.get("strict") is not None:
        named["strict"] = boolean_at(wanted["strict"], "text.format.strict")
    note_unread(wanted, frozenset({"type", *named, "description", "strict"}), "text.format", ignored)
    return {"type": "json_schema", "json_schema": named}


def _messages(value: object, ignored: set[str]) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    items = value if isinstance(value, list) else []
    if not 1 <= len(items) <= MAX_MESSAGES:
        wrong("input", f"文字列、または1〜{MAX_MESSAGES}件の配列")
    said: list[dict[str, Any]] = []
    # Of tools' results: shown by the user behind the last of them, because a tool can only say texts there.
    pictures: list[dict[str, Any]] = []
    for i, value in enumerate(items):
        at = f"input[{i}]"
        item = object_at(value, at)
        kind = item.get("type") or "message"
        if kind == "function_call_output":
            said.append(_result(item, at, pictures, ignored))
            continue
        if pictures:
            said.append({"role": "user", "content": pictures})
            pictures = []
        match kind:
            case "message":
                _say(said, _message(item, at, ignored))
            case "function_call":
                _call(said, item, at, ignored)
            case "reasoning":
                # What a model thought on its way belongs to that answer; no other server takes it back.
                ignored.add("input[].reasoning")
            case "item_reference":
                raise BadRequest("前の答えは残していません。番号ではなく、中身を送ってください。", param=f"{at}.type")
            case _:
                wrong(f"{at}.type", "message・function_call・function_call_output・reasoningのどれか")
    if pictures:
        said.append({"role": "user", "content": pictures})
    if not said:
        wrong("input", "発言が1件以上ある配列")
    return said


def _say(said: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """What a model said beside its calls is one message with them there, whichever came first here."""
    last = said[-1] if said else {}
    if message["role"] == last.get("role") == "assistant" and last["content"] is None:
        last["content"] = message["content"]
    else:
        said.append(message)


def _call(said: list[dict[str, Any]], item: Mapping[str, Any], at: str, ignored: set[str]) -> None:
    known = frozenset({"type", "id", "call_id", "name", "arguments", "status"})
    note_unread(item, known, "input[]", ignored)
    function = {
        "name": text_at(item.get("name"), f"{at}.name"),
        "arguments": text_at(item.get("arguments"), f"{at}.arguments"),
    }
    call = {"id": text_at(item.get("call_id"), f"{at}.call_id"), "type": "function", "function": function}
    if not said or said[-1]["role"] != "assistant":
        said.append({"role": "assistant", "content": None})
    said[-1].setdefault("tool_calls", []).append(call)


def _result(item: Mapping[str, Any], at: str, pictures: list[dict[str, Any]], ignored: set[str]) -> dict[str, Any]:
    note_unread(item, frozenset({"type", "id", "call_id", "output", "status"}), "input[]", ignored)
    call_id = text_at(item.get("call_id"), f"{at}.call_id")
    output = item.get("output")
    if not isinstance(output, str):
        parts = _parts(output, f"{at}.output", "input[].output[]", ignored)
        pictures += [part for part in parts if part["type"] != "text"]
        output = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return {"role": "tool", "tool_call_id": call_id, "content": output}


def _message(item: Mapping[str, Any], at: str, ignored: set[str]) -> dict[str, Any]:
    note_unread(item, frozenset({"type", "id", "role", "content", "status"}), "input[]", ignored)
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        wrong(f"{at}.role", "user・assistant・system・developerのどれか")
    content = item.get("content")
    if not isinstance(content, str):
        parts = _parts(content, f"{at}.content", "input[].content[]", ignored)
        # Most servers want a text where there is nothing else, at least from a system and an assistant.
        content = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
    # By this name every server knows who gives the instructions.
    return {"role": "system" if role == "developer" else role, "content": content}


def _parts(value: object, at: str, name: str, ignored: set[str]) -> list[dict[str, Any]]:
    return [
        _part(object_at(part, f"{at}[{i}]"), f"{at}[{i}]", name, ignored) for i, part in enumerate(list_at(value, at))
    ]


def _part(part: Mapping[str, Any], at: str, name: str, ignored: set[str]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text"):
        # Beside it stands in an answer what is sent back as it came.
        note_unread(part, frozenset({"type", "text", "annotations", "logprobs"}), name, ignored)
        return {"type": "text", "text": text_at(part.get("text"), f"{at}.text")}
    if kind == "refusal":
        note_unread(part, frozenset({"type", "refusal"}), name, ignored)
        return {"type": "text", "text": text_at(part.get("refusal"), f"{at}.refusal")}
    if kind in ("input_file", "input_audio"):
        raise BadRequest(
            "音声とファイルは、中を確かめられないので送れません。文字にしてから、input_textで送ってください。",
            param=f"{at}.type",
        )
    if kind != "input_image":
        wrong(f"{at}.type", "input_text・input_image・output_text・refusalのどれか")
    note_unread(part, frozenset({"type", "image_url", "detail"}), name, ignored)
    if part.get("file_id"):
        raise BadRequest("画像は番号ではなく、データ（image_url）で送ってください。", param=f"{at}.file_id")
    url = text_at(part.get("image_url"), f"{at}.image_url")
    check_image(url, f"{at}.image_url")
    return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail")}}


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────────────

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
# A field of chat's message or delta → what its text is called here, and in which kind of item.
_TEXTS: Final = {
    "reasoning_content": "reasoning_text",
    "reasoning": "reasoning_text",
    "content": "output_text",
    "refusal": "refusal",
}
_EMPTY: Final[Mapping[str, Mapping[str, Any]]] = {
    "reasoning_text": {"type": "reasoning_text", "text": ""},
    "output_text": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    "refusal": {"type": "refusal", "refusal": ""},
}


class _Text:
    """An item that is being written: a message, or a thought."""

    def __init__(self, kind: str, number: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self.pieces: list[str] = []
        self.item: dict[str, Any] = (
            {"id": f"rs_{number}", "type": "reasoning", "summary": [], "content": [], "status": "in_progress"}
            if kind == "reasoning_text"
            else {
                "id": f"msg_{number}", "type": "message", "role": "assistant", "content": [], "status": "in_progress",
            }
        )  # fmt: skip

    def place(self) -> dict[str, Any]:
        return {"item_id": self.item["id"], "output_index": self.index, "content_index": 0}


class _Call:
    """A call of a function; where its name is not known yet, it waits for it."""

    def __init__(self) -> None:
        self.index = -1
        self.call_id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.item: dict[str, Any] = {}


class ResponseEvents:
    """Tells one answer of `/v1/chat/completions`, streamed or whole, as the events of a response."""

    def __init__(self, call_id: str, head: Mapping[str, Any]) -> None:
        """head: see `head_of`."""
        self._id = call_id.replace("-", "")
        self._response = {"id": f"resp_{self._id}", **head}
        self._has_begun = False
        self._events = 0
        self._output: list[dict[str, Any]] = []
        self._text: _Text | None = None
        self._calls: dict[int, _Call] = {}
        self._finish: str | None = None

    @property
    def response(self) -> dict[str, Any]:
        return self._response | {"output": self._output}

    def event(self, data: bytes) -> bytes:
        """One event's data → any number of whole events."""
        if data == b"[DONE]":
            return b"".join(self.end())
        chunk = orjson.loads(data)
        return b"".join(self.failed(chunk["error"]) if "error" in chunk else self.more(chunk))

    def more(self, answer: Mapping[str, Any]) -> Iterator[bytes]:
        """The next chunk of a stream, or the one whole answer."""
        if not self._has_begun:
            self._response["model"] = answer.get("model") or self._response["model"]
            self._response["created_at"] = answer.get("created") or 0
        yield from self._begin()
        if answer.get("usage"):
            self._response["usage"] = _usage(answer["usage"])
        if "kumiai" in answer:
            self._response["kumiai"] = answer["kumiai"]
        for choice in answer.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or {}
            for field, kind in _TEXTS.items():
                if said.get(field):
                    yield from self._write(kind, said[field])
            for at, part in enumerate(said.get("tool_calls") or ()):
                yield from self._called(part.get("index", at), part)
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> Iterator[bytes]:
        """After the last chunk."""
        reason = _INCOMPLETE.get(self._finish or "")
        status = "incomplete" if reason else "completed"
        yield from self._close(status)
        for call in self._calls.values():
            if call.index < 0:
                # Its name never came.
                yield from self._open_call(call)
            yield from self._close_call(call, status)
        self._response |= {"status": status, "incomplete_details": {"reason": reason} if reason else None}
        yield self._event(f"response.{status}", response=self.response)

    def failed(self, error: Mapping[str, Any]) -> Iterator[bytes]:
        """In place of the rest; what was written until then stands in it."""
        yield from self._begin()
        if self._text is not None:
            self._settle(self._text, "incomplete")
        for call in self._calls.values():
            call.item |= {"arguments": "".join(call.arguments), "status": "incomplete"}
        if "usage" in error:
            self._response["usage"] = _usage(error["usage"]) | {"counted": error["usage"]["counted"]}
        told = {"code": error["code"], "message": error["message"]}
        self._response |= {"status": "failed", "error": told}
        yield self._event("response.failed", response=self.response)

    def _begin(self) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            yield self._event("response.created", response=self.response)
            yield self._event("response.in_progress", response=self.response)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._events = self._events, self._events + 1
        told = orjson.dumps({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), told)

    def _write(self, kind: str, text: str) -> Iterator[bytes]:
        if self._text is None or self._text.kind != kind:
            yield from self._close("completed")
            open_ = self._text = _Text(kind, self._number(), len(self._output))
            self._output.append(open_.item)
            yield self._event("response.output_item.added", output_index=open_.index, item=open_.item)
            yield self._event("response.content_part.added", **open_.place(), part=_EMPTY[kind])
        self._text.pieces.append(text)
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        yield self._event(f"response.{kind}.delta", **self._text.place(), delta=text, **more)

    def _close(self, status: str) -> Iterator[bytes]:
        """Ends the text that is being written, if any."""
        if (text := self._text) is None:
            return
        self._text = None
        part = self._settle(text, status)
        yield self._event(
            f"response.{text.kind}.done",
            **text.place(),
            **{k: v for k, v in part.items() if k not in ("type", "annotations")},
        )
        yield self._event("response.content_part.done", **text.place(), part=part)
        yield self._event("response.output_item.done", output_index=text.index, item=text.item)

    def _settle(self, text: _Text, status: str) -> dict[str, Any]:
        written = "refusal" if text.kind == "refusal" else "text"
        part = {**_EMPTY[text.kind], written: "".join(text.pieces)}
        text.item |= {"content": [part], "status": status}
        return part

    def _called(self, at: int, part: Mapping[str, Any]) -> Iterator[bytes]:
        call = self._calls.setdefault(at, _Call())
        function = part.get("function") or {}
        call.call_id = part.get("id") or call.call_id
        call.name = function.get("name") or call.name
        piece = function.get("arguments") or ""
        call.arguments.append(piece)
        if call.index >= 0 and piece:
            yield self._argued(call, piece)
        elif call.index < 0 and call.name:
            yield from self._open_call(call)

    def _open_call(self, call: _Call) -> Iterator[bytes]:
        yield from self._close("completed")
        number = self._number()
        call.index = len(self._output)
        call.item |= {
            "id": f"fc_{number}", "type": "function_call", "call_id": call.call_id or f"call_{number}", "name": call.name,
            "arguments": "", "status": "in_progress",
        }  # fmt: skip
        self._output.append(call.item)
        yield self._event("response.output_item.added", output_index=call.index, item=call.item)
        if written := "".join(call.arguments):
            yield self._argued(call, written)

    def _argued(self, call: _Call, piece: str) -> bytes:
        return self._event(
            "response.function_call_arguments.delta", item_id=call.item["id"], output_index=call.index, delta=piece
        )

    def _close_call(self, call: _Call, status: str) -> Iterator[bytes]:
        call.item |= {"arguments": "".join(call.arguments), "status": status}
        yield self._event(
            "response.function_call_arguments.done",
            item_id=call.item["id"], output_index=call.index, name=call.name, arguments=call.item["arguments"],
        )  # fmt: skip
        yield self._event("response.output_item.done", output_index=call.index, item=call.item)

    def _number(self) -> str:
        return f"{self._id}_{len(self._output)}"


def head_of(given: Mapping[str, Any], chat: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request, as far as it was read, and what is the same for all of ours."""
    choice, shape = chat.get("tool_choice", "auto"), chat.get("response_format", {"type": "text"})
    return {
        "object": "response",
        "created_at": 0,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": chat.get("max_tokens"),
        "metadata": given.get("metadata") or {},
        "model": chat["model"],
        "parallel_tool_calls": chat.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": chat.get("reasoning_effort"), "summary": None},
        "store": False,
        "temperature": chat.get("temperature"),
        "text": {"format": {"type": shape["type"], **shape.get("json_schema", {})}},
        "tool_choice": choice if isinstance(choice, str) else {"type": "function", **choice["function"]},
        "tools": [{"type": "function", **tool["function"]} for tool in chat.get("tools", ())],
        "top_p": chat.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    asked, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": asked + written,
    }


# ── Both ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class ResponsesWire:
    """See `Wire`."""

    def __init__(self) -> None:
        self._head: Mapping[str, Any] = {}
        self._told = ResponseEvents("", {})

    def parse(self, raw: bytes) -> ModelRequest:
        given = parse_json(raw)
        chat, ignored = to_chat(given)
        request = check_request("chat/completions", chat, ignored=ignored)
        self._head = head_of(given, chat)
        return request

    def begin(self, call_id: str) -> list[tuple[bytes, bytes]]:
        self._told = ResponseEvents(call_id, self._head)
        return [(b"x-request-id", call_id.encode())]

    def event(self, data: bytes) -> bytes:
        return self._told.event(data)

    def answer(self, body: bytes) -> bytes:
        list(self._told.more(orjson.loads(body)))
        list(self._told.end())
        return orjson.dumps(self._told.response)

    def error(self, body: bytes, status: int) -> bytes:
        return body
