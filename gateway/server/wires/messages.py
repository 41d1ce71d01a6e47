"""`/v1/messages`: Anthropic's wire for callers, answered by whatever deployment a town may use.

A request becomes one of `/v1/chat/completions` and goes its way; the answer is told in Anthropic's words. What this
wire can say and the other cannot is refused when leaving it out would change the answer, else dropped and named.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import uuid4

import orjson

from gateway.contracts import BadRequest, ModelRequest, check_image, check_request, check_schema, parse_json
from gateway.server.wires.fields import boolean_at, list_at, note_unread, object_at, text_at, wrong

PATH: Final = "/v1/messages"
MAX_STOPS: Final = 4
# Run by the model's vendor, or kept there: each would be out of our hands.
_RUN_BY_UPSTREAM: Final = ("mcp_servers", "container")
_SAME: Final = ("model", "max_tokens", "temperature", "top_p", "stream")
_READ: Final = frozenset(
    {*_SAME, *_RUN_BY_UPSTREAM, "messages", "system", "stop_sequences", "tools", "tool_choice", "output_config"}
)
# A caller's own name for its user, which is never sent.
_SILENT: Final = frozenset({"metadata"})


# ── The request ──────────────────────────────────────────────────────────────────────────────────────────────────


def parse_messages(raw: bytes) -> ModelRequest:
    """Checks a body of this wire. Raises `BadRequest` or `BodyTooLarge`, naming the field as the caller wrote it."""
    given = parse_json(raw)
    chat, ignored = to_chat(given)
    return check_request("chat/completions", chat, ignored=ignored)


def to_chat(given: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The same request for `/v1/chat/completions`, and the names of what it cannot carry."""
    for field in _RUN_BY_UPSTREAM:
        if given.get(field):
            raise BadRequest(f"AIのサービス側で実行させること（{field}）はできません。", param=field)
    ignored = {field for field in given.keys() - _READ - _SILENT if given[field] is not None}
    chat = {field: given[field] for field in _SAME if given.get(field) is not None}
    if "max_tokens" not in chat:
        wrong("max_tokens", "1以上の整数（この形では必ず書くもの）")
    if chat.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    if (stops := given.get("stop_sequences")) is not None:
        if not _is_texts(stops) or len(stops) > MAX_STOPS:
            wrong("stop_sequences", f"{MAX_STOPS}つまでの文字列の配列")
        if stops:
            chat["stop"] = stops
    if given.get("tools"):
        chat["tools"] = [_tool(t, f"tools[{i}]", ignored) for i, t in enumerate(list_at(given["tools"], "tools"))]
    if (choice := given.get("tool_choice")) is not None:
        _tool_choice(object_at(choice, "tool_choice"), chat)
    if (config := given.get("output_config")) is not None:
        _output_config(object_at(config, "output_config"), chat, ignored)
    chat["messages"] = [*_system(given.get("system"), ignored), *_messages(given.get("messages"), ignored)]
    return chat, ignored


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _tool(value: object, at: str, ignored: set[str]) -> dict[str, Any]:
    tool = object_at(value, at)
    if tool.get("type") not in (None, "custom"):
        raise BadRequest(
            "使えるツールは自分で実行するもの（type: custom）だけです。AIのサービス側で実行されるツールは使えません。",
            param=f"{at}.type",
        )
    function: dict[str, Any] = {"name": text_at(tool.get("name"), f"{at}.name")}
    if tool.get("description") is not None:
        function["description"] = text_at(tool["description"], f"{at}.description")
    function["parameters"] = check_schema(tool.get("input_schema"), f"{at}.input_schema")
    if tool.get("strict") is not None:
        function["strict"] = boolean_at(tool["strict"], f"{at}.strict")
    note_unread(tool, frozenset({"type", "name", "description", "input_schema", "strict"}), "tools[]", ignored)
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any], chat: dict[str, Any]) -> None:
    match choice.get("type"):
        case "auto" | "none" as kind:
            chat["tool_choice"] = kind
        case "any":
            chat["tool_choice"] = "required"
        case "tool":
            name = text_at(choice.get("name"), "tool_choice.name")
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        case _:
            wrong("tool_choice.type", "auto・any・tool・noneのどれか")
    if (is_single := choice.get("disable_parallel_tool_use")) is not None:
        chat["parallel_tool_calls"] = not boolean_at(is_single, "tool_choice.disable_parallel_tool_use")


def _output_config(config: Mapping[str, Any], chat: dict[str, Any], ignored: set[str]) -> None:
    if (wanted := config.get("format")) is not None:
        at = "output_config.format"
        if object_at(wanted, at).get("type") != "json_schema":
            wrong(f"{at}.type", "json_schema")
        schema = check_schema(wanted.get("schema"), f"{at}.schema")
        named = {"name": "output", "schema": schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": named}
    note_unread(config, frozenset({"format"}), "output_config", ignored)


def _system(value: object, ignored: set[str]) -> Iterator[dict[str, Any]]:
    if value is None:
        return
    if isinstance(value, str):
        yield {"role": "system", "content": value}
        return
    parts = []
    for i, item in enumerate(list_at(value, "system")):
        block = object_at(item, f"system[{i}]")
        if block.get("type") != "text":
            wrong(f"system[{i}].type", "text")
        parts.append(_text_part(block, f"system[{i}]", "system[]", ignored))
    if parts:
        yield {"role": "system", "content": parts}


def _text_part(block: Mapping[str, Any], at: str, name: str, ignored: set[str]) -> dict[str, Any]:
    note_unread(block, frozenset({"type", "text"}), name, ignored)
    return {"type": "text", "text": text_at(block.get("text"), f"{at}.text")}


def _messages(value: object, ignored: set[str]) -> Iterator[dict[str, Any]]:
    messages = list_at(value, "messages")
    if not messages:
        wrong("messages", "1件以上の配列")
    for i, item in enumerate(messages):
        at = f"messages[{i}]"
        message = object_at(item, at)
        note_unread(message, frozenset({"role", "content"}), "messages[]", ignored)
        content = message.get("content")
        if not isinstance(content, str | list):
            wrong(f"{at}.content", "文字列または配列")
        role = message.get("role")
        if role not in ("user", "assistant"):
            wrong(f"{at}.role", "userかassistant（全体への指示はsystem）")
        if role == "assistant" and i == len(messages) - 1:
            # Most servers would answer it instead of going on with it.
            raise BadRequest("最後の発言は、userのものにしてください。答えの書き出しは指定できません。", param=at)
        if isinstance(content, str):
            yield {"role": role, "content": content}
        else:
            blocks = [(object_at(b, f"{at}.content[{j}]"), f"{at}.content[{j}]") for j, b in enumerate(content)]
            if role == "user":
                yield from _asked(blocks, ignored)
            else:
                yield _answered(blocks, ignored)


_BLOCK: Final = "messages[].content[]"


def _asked(blocks: list[tuple[dict[str, Any], str]], ignored: set[str]) -> Iterator[dict[str, Any]]:
    """The results of tools stand before what is said beside them, as servers want it; pictures are shown by the user."""
    parts: list[dict[str, Any]] = []
    for block, at in blocks:
        if block.get("type") == "tool_result":
            texts, pictures = _result(block, at, ignored)
            parts += pictures
            call_id = text_at(block.get("tool_use_id"), f"{at}.tool_use_id")
            yield {"role": "tool", "tool_call_id": call_id, "content": texts}
        else:
            parts.append(_shown(block, at, ignored))
    if parts:
        yield {"role": "user", "content": parts}


def _result(block: Mapping[str, Any], at: str, ignored: set[str]) -> tuple[Any, list[dict[str, Any]]]:
    note_unread(block, frozenset({"type", "tool_use_id", "content", "is_error"}), _BLOCK, ignored)
    content = block.get("content") or ""
    # The other wire has no field for it, and a model must not take a failure for an outcome.
    failed = "Error: " if block.get("is_error") else ""
    if isinstance(content, str):
        return failed + content, []
    shown = [
        _shown(object_at(part, f"{at}.content[{i}]"), f"{at}.content[{i}]", ignored)
        for i, part in enumerate(list_at(content, f"{at}.content"))
    ]
    return failed + "\n".join(part["text"] for part in shown if part["type"] == "text"), [
        part for part in shown if part["type"] != "text"
    ]


def _shown(block: Mapping[str, Any], at: str, ignored: set[str]) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return _text_part(block, at, _BLOCK, ignored)
    if kind == "document":
        raise BadRequest(
            "ファイルは、中を確かめられないので送れません。文字にしてから、textで送ってください。", param=f"{at}.type"
        )
    if kind != "image":
        wrong(f"{at}.type", "text・image・tool_resultのどれか")
    note_unread(block, frozenset({"type", "source"}), _BLOCK, ignored)
    source = object_at(block.get("source"), f"{at}.source")
    if source.get("type") != "base64":
        raise BadRequest(
            "画像はURLや番号ではなく、データ（type: base64）で送ってください。"
            "AIのサービスに外部のURLを取りに行かせることはできません。",
            param=f"{at}.source.type",
        )
    media_type = text_at(source.get("media_type"), f"{at}.source.media_type")
    url = f"data:{media_type};base64,{text_at(source.get('data'), f'{at}.source.data')}"
    check_image(url, f"{at}.source")
    return {"type": "image_url", "image_url": {"url": url}}


def _answered(blocks: list[tuple[dict[str, Any], str]], ignored: set[str]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block, at in blocks:
        match block.get("type"):
            case "text":
                parts.append(_text_part(block, at, _BLOCK, ignored))
            case "tool_use":
                note_unread(block, frozenset({"type", "id", "name", "input"}), _BLOCK, ignored)
                arguments = json.dumps(object_at(block.get("input"), f"{at}.input"), ensure_ascii=False)
                function = {"name": text_at(block.get("name"), f"{at}.name"), "arguments": arguments}
                calls.append({"id": text_at(block.get("id"), f"{at}.id"), "type": "function", "function": function})
            case "thinking" | "redacted_thinking" as kind:
                # What a model thought on its way belongs to that answer; no other server takes it back.
                ignored.add(f"{_BLOCK}.{kind}")
            case _:
                wrong(f"{at}.type", "text・tool_use・thinkingのどれか")
    message: dict[str, Any] = {"role": "assistant", "content": parts or ("" if not calls else None)}
    if calls:
        message["tool_calls"] = calls
    return message


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────────────

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
# By status, where Anthropic's word is another than OpenAI's.
_ERROR_TYPES: Final = {404: "not_found_error", 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}


def message_of(raw: bytes) -> bytes:
    """A whole answer of `/v1/chat/completions` as a message."""
    answer = orjson.loads(raw)
    [choice] = answer["choices"]
    said = choice["message"]
    content: list[dict[str, Any]] = []
    if thought := _thought(said):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := _said(said):
        content.append({"type": "text", "text": text})
    for call in said.get("tool_calls") or ():
        content.append(
            {
                "type": "tool_use",
                "id": call["id"],
                "name": call["function"]["name"],
                "input": _input_of(call["function"].get("arguments")),
            }
        )
    return orjson.dumps(
        {
            "id": f"msg_{answer.get('id')}",
            "type": "message",
            "role": "assistant",
            "model": answer.get("model"),
            "content": content,
            **_stop(choice, choice.get("finish_reason")),
            "usage": _usage(answer.get("usage")),
            **({"kumiai": answer["kumiai"]} if "kumiai" in answer else {}),
        }
    )


def error_of(error: Mapping[str, Any], status: int | None, request_id: str) -> bytes:
    """OpenAI's error in Anthropic's shape; `code` and `param` stay, for programs. status: None inside a stream."""
    kind = _ERROR_TYPES.get(status, error["type"]) if status is not None else error["type"]
    told = {"type": kind, "message": error["message"], "code": error["code"], "param": error["param"]}
    if "usage" in error:
        told["usage"] = _usage(error["usage"]) | {"counted": error["usage"]["counted"]}
    return orjson.dumps({"type": "error", "error": told, "request_id": request_id})


def _thought(said: Mapping[str, Any]) -> str:
    return said.get("reasoning_content") or said.get("reasoning") or ""


def _said(said: Mapping[str, Any]) -> str:
    return (said.get("content") or "") + (said.get("refusal") or "")


def _input_of(arguments: str | None) -> dict[str, Any]:
    """What a tool is called with; what a model wrote that is no JSON object is kept under a name of its own."""
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {"unparsed_arguments": arguments}


def _stop(choice: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    # vLLM tells which of the words to stop at it was; others do not tell it from an end.
    if finish_reason == "stop" and isinstance(choice.get("stop_reason"), str):
        return {"stop_reason": "stop_sequence", "stop_sequence": choice["stop_reason"]}
    return {"stop_reason": _STOP_REASONS.get(finish_reason or "stop", "end_turn"), "stop_sequence": None}


def _usage(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """Anthropic counts what came from a cache apart from the rest of the input."""
    usage = usage or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached,
        "output_tokens": usage.get("completion_tokens") or 0,
        "cache_read_input_tokens": cached,
    }


class MessageStream:
    """Tells the events of one streamed answer in Anthropic's words."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._open = ""
        self._blocks = 0
        self._has_begun = False
        self._calls: dict[int, dict[str, str]] = {}
        self._stop: dict[str, Any] = _stop({}, None)
        self._usage: Mapping[str, Any] | None = None
        self._note: dict[str, Any] = {}

    def event(self, data: bytes) -> bytes:
        """One event's data → any number of whole events."""
        if data == b"[DONE]":
            return b"".join(self._end())
        chunk = orjson.loads(data)
        if "error" in chunk:
            return b"event: error\ndata: " + error_of(chunk["error"], None, self._request_id) + b"\n\n"
        return b"".join(self._chunk(chunk))

    def _chunk(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            message: dict[str, Any] = {
                "id": f"msg_{chunk.get('id') or uuid4()}",
                "type": "message",
                "role": "assistant",
                "model": chunk.get("model"),
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                # Counted at the end, in `message_delta`.
                "usage": _usage(None),
            }
            yield _event("message_start", message=message)
        self._usage = chunk.get("usage") or self._usage
        if "kumiai" in chunk:
            self._note = {"kumiai": chunk["kumiai"]}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thought := _thought(delta):
                yield from self._more("thinking", {"thinking": "", "signature": ""}, "thinking_delta", thought)
            if text := _said(delta):
                yield from self._more("text", {"text": ""}, "text_delta", text)
            for part in delta.get("tool_calls") or ():
                # Blocks come one after another here, while parts of calls may come in any order.
                call = self._calls.setdefault(part.get("index") or 0, {"id": "", "name": "", "arguments": ""})
                function = part.get("function") or {}
                call["id"] = part.get("id") or call["id"]
                call["name"] = function.get("name") or call["name"]
                call["arguments"] += function.get("arguments") or ""
            if choice.get("finish_reason"):
                self._stop = _stop(choice, choice["finish_reason"])

    def _more(self, kind: str, empty: Mapping[str, str], delta: str, text: str) -> Iterator[bytes]:
        if self._open != kind:
            yield from self._close()
            yield _event("content_block_start", index=self._blocks, content_block={"type": kind, **empty})
            self._open = kind
        yield _event("content_block_delta", index=self._blocks, delta={"type": delta, kind: text})

    def _close(self) -> Iterator[bytes]:
        if self._open:
            yield _event("content_block_stop", index=self._blocks)
            self._blocks += 1
            self._open = ""

    def _end(self) -> Iterator[bytes]:
        yield from self._close()
        for _, call in sorted(self._calls.items()):
            block = {"type": "tool_use", "id": call["id"], "name": call["name"], "input": {}}
            yield _event("content_block_start", index=self._blocks, content_block=block)
            written = orjson.dumps(_input_of(call["arguments"])).decode()
            delta = {"type": "input_json_delta", "partial_json": written}
            yield _event("content_block_delta", index=self._blocks, delta=delta)
            yield _event("content_block_stop", index=self._blocks)
            self._blocks += 1
        yield _event("message_delta", delta=self._stop, usage=_usage(self._usage), **self._note)
        yield _event("message_stop")


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **fields}) + b"\n\n"


# ── Both ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class MessagesWire:
    """See `Wire`."""

    def __init__(self) -> None:
        self._request_id = ""
        self._stream = MessageStream("")

    def parse(self, raw: bytes) -> ModelRequest:
        return parse_messages(raw)

    def begin(self, call_id: str) -> list[tuple[bytes, bytes]]:
        self._request_id = call_id
        self._stream = MessageStream(call_id)
        return [(b"request-id", call_id.encode())]

    def event(self, data: bytes) -> bytes:
        return self._stream.event(data)

    def answer(self, body: bytes) -> bytes:
        return message_of(body)

    def error(self, body: bytes, status: int) -> bytes:
        return error_of(orjson.loads(body)["error"], status, self._request_id)
