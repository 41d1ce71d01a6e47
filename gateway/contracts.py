"""What `/v1` accepts: bodies are parsed once, checked field by field, and only allow-listed values travel on.

The caller's bytes never reach an upstream: duplicate keys (we would read the last, it might read the first) are
refused, unknown fields are dropped and named, and whatever would make the upstream fetch, store or run something
by itself (remote URLs, `store`, hosted tools) is refused.
"""

import base64
import binascii
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, NoReturn

import orjson

from gateway.guard.answers import AnswerRules
from gateway.guard.masking import Restorer
from gateway.reading.speech import Recording
from observability.problems import Problem

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_MESSAGES = 2_000
MAX_CHOICES = 8
MAX_EMBEDDING_INPUTS = 2_048
MAX_RANKED_DOCUMENTS = 1_000
MAX_PICTURES = 4
MAX_PICTURE_PROMPT = 32_000
MAX_IMAGE_BYTES = 10 * 1024 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_SOUNDS = 4
MAX_HINT = 1_000
MAX_NAMED_IGNORED = 20
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

type_of_operation = Literal[
    "chat/completions", "completions", "embeddings", "rerank", "audio/transcriptions", "images/generations"
]
# Answered by numbers or pictures: nothing is streamed, read or written word by word.
WORDLESS: Final = frozenset({"embeddings", "rerank", "images/generations"})


class BadRequest(Problem):
    """Malformed input on `/v1`; `param` names the field as OpenAI's clients expect."""

    type = "urn:problem:gateway:invalid-request"
    status = HTTPStatus.BAD_REQUEST
    title = "リクエストの形が正しくありません"


class BodyTooLarge(Problem):
    type = "urn:problem:gateway:body-too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    title = "リクエストが大きすぎます"


@dataclass(slots=True)
class ModelRequest:
    """A checked request. `body` holds only allow-listed fields; `images` counts what no text detector can read.

    `ignored` names what was left out, in characters that a header may carry. `restorer` puts back into the answer what was
    masked in the body. `answer_rules`: what is looked for in the answer. `read_texts`:
    what was read in the pictures and heard in recordings.

    `sound`: a recording as it came; `recording`: as it may go on. `sounds` counts recordings, those among messages too.
    `is_misheard`: a number was heard that may be another. `answer_form`: how a transcript is told.

    `spared`: by tokenizer, how many tokens fewer than `input_bytes` were counted; None where nobody had to.
    """

    operation: type_of_operation
    model: str
    body: dict[str, object]
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    choices: int
    max_output_tokens: int | None
    input_bytes: int
    input_items: int
    images: int
    restorer: Restorer | None = None
    answer_rules: AnswerRules | None = None
    read_texts: tuple[str, ...] = ()
    sounds: int = 0
    sound: bytes = dataclasses.field(default=b"", repr=False)
    recording: Recording | None = dataclasses.field(default=None, repr=False)
    is_misheard: bool = False
    answer_form: str = ""
    spared: Mapping[str, int] | None = None


def parse_json(raw: bytes) -> dict[str, object]:
    """Decodes a JSON object; duplicate keys, NaN, bad UTF-8 and anything but an object are refused."""
    if len(raw) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"{MAX_BODY_BYTES // 1024 // 1024}MBまでにしてください。", limit_bytes=MAX_BODY_BYTES)
    if (plain := _without_doubles(raw)) is not None:
        return plain
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, _DuplicateKeyError):
            raise BadRequest(
                f"同じ項目「{error.key}」が2回書かれています。", param=error.key, code="duplicate_key"
            ) from None
        raise BadRequest("JSONとして読めません。") from None
    if b"\\ud" in raw or b"\\uD" in raw:
        # Half of a surrogate pair is legal JSON and no legal text; no encoder further on could write it.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadRequest("文字として成り立たない符号（サロゲートの片方）が入っています。") from None
    if not isinstance(value, dict):
        raise BadRequest("JSONのオブジェクトを送ってください。")
    return value


# Larger ones are made floats by a quick reader.
_INTEGERS_END: Final = 2**63


def _without_doubles(raw: bytes) -> dict[str, object] | None:
    """The object, where a quick look shows that no key stands twice: there are no more colons than keys.

    None where that is not so (a text may have colons, too), or where it is no object in plain JSON.
    """
    try:
        value: object = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    keys = 0
    pending: list[object] = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            keys += len(part)
            pending += part.values()
        elif isinstance(part, list):
            pending += part
        elif isinstance(part, float) and abs(part) >= _INTEGERS_END:
            # It may have been written as an integer.
            return None
    return value if raw.count(b":") == keys else None


class _DuplicateKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__("duplicate key")
        self.key = key[:64]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return value


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


# ── Field checks ─────────────────────────────────────────────────────────────────────────────────────────────────

Check = Callable[[object, str], object]


def _wrong(param: str, expected: str) -> NoReturn:
    raise BadRequest(f"「{param}」は{expected}にしてください。", param=param)


def _string(value: object, param: str) -> str:
    if not isinstance(value, str):
        _wrong(param, "文字列")
    return value


def _boolean(value: object, param: str) -> bool:
    if not isinstance(value, bool):
        _wrong(param, "trueかfalse")
    return value


def _number(low: float, high: float) -> Check:
    def check(value: object, param: str) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            _wrong(param, f"{low:g}から{high:g}までの数")
        return value

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: object, param: str) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            _wrong(param, f"{low}から{high}までの整数")
        return value

    return check


def _stop(value: object, param: str) -> object:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > 4 or not all(isinstance(v, str) for v in values):
        _wrong(param, "文字列、または4つまでの文字列の配列")
    return value


def _object(value: object, param: str) -> dict[str, object]:
    if not isinstance(value, dict):
        _wrong(param, "オブジェクト")
    return value


def check_schema(value: object, param: str) -> object:
    """A JSON Schema that every wire can carry and nobody has to fetch a part of."""
    pending = [(_object(value, param), 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_SCHEMA_DEPTH:
            _wrong(param, f"{MAX_SCHEMA_DEPTH}段までの深さ")
        reference = item.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise BadRequest("スキーマの中で、外部の$refは使えません。", param=param)
        pending += [(child, depth + 1) for child in _children(item, param)]
    return value


def _children(item: dict[str, object], param: str) -> list[dict[str, object]]:
    """The objects directly inside; lists are looked through, numbers checked."""
    found: list[dict[str, object]] = []
    pending: list[object] = list(item.values())
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            found.append(value)
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, float) and not math.isfinite(value):
            _wrong(param, "有限の数だけを使ったスキーマ")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            _wrong(param, "64ビットまでの整数を使ったスキーマ")
    return found


def _logit_bias(value: object, param: str) -> object:
    for key, bias in _object(value, param).items():
        if not key.isdigit() or isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            _wrong(param, "トークン番号から-100〜100への対応")
    return value


def _tools(value: object, param: str) -> object:
    if not isinstance(value, list) or len(value) > 128:
        _wrong(param, "128個までの配列")
    tools = []
    for i, tool in enumerate(value):
        at = f"{param}[{i}]"
        kind = _object(tool, at).get("type")
        if kind != "function":
            raise BadRequest(
                "使えるツールは自分で実行する関数（type: function）だけです。"
                "AIのサービス側で実行されるツールは使えません。",
                param=f"{at}.type",
            )
        function = _object(tool.get("function"), f"{at}.function")
        tools.append({"type": "function", "function": _described(function, f"{at}.function", "parameters")})
    return tools


def _described(value: dict[str, object], at: str, schema: str) -> dict[str, object]:
    """What tools and response formats share: a name, a description, a schema under the given key, strictness."""
    kept: dict[str, object] = {"name": _string(value.get("name"), f"{at}.name")}
    checks: Mapping[str, Check] = {"description": _string, schema: check_schema, "strict": _boolean}
    for field, check in checks.items():
        if value.get(field) is not None:
            kept[field] = check(value[field], f"{at}.{field}")
    return kept


def _tool_choice(value: object, param: str) -> object:
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            _wrong(param, "none・auto・requiredのどれか")
        return value
    name = _string(_object(_object(value, param).get("function"), f"{param}.function").get("name"), f"{param}.function")
    return {"type": "function", "function": {"name": name}}


def _response_format(value: object, param: str) -> object:
    kind = _object(value, param).get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        _wrong(f"{param}.type", "text・json_object・json_schemaのどれか")
    schema = _object(value.get("json_schema"), f"{param}.json_schema")  # type: ignore[attr-defined]  # a dict by now
    return {"type": "json_schema", "json_schema": _described(schema, f"{param}.json_schema", "schema")}


_SAMPLING: Mapping[str, Check] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _integer(-(2**63), 2**63 - 1),
    "stop": _stop,
    "logit_bias": _logit_bias,
    "user": _string,
    "n": _integer(1, MAX_CHOICES),
}

_CHAT: Mapping[str, Check] = {
    **_SAMPLING,
    "max_tokens": _integer(1, 1_000_000),
    "max_completion_tokens": _integer(1, 1_000_000),
    "logprobs": _boolean,
    "top_logprobs": _integer(0, 20),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _boolean,
    "response_format": _response_format,
    "reasoning_effort": _string,
}

_COMPLETIONS: Mapping[str, Check] = {
    **_SAMPLING,
    "max_tokens": _integer(1, 1_000_000),
    "logprobs": _integer(0, 5),
    "echo": _boolean,
    "suffix": _string,
}

_EMBEDDINGS: Mapping[str, Check] = {
    "dimensions": _integer(1, 8_192),
    "user": _string,
}

_LANGUAGE = re.compile(r"[a-z]{2,3}")
TRANSCRIPT_FORMS = ("json", "text", "srt", "verbose_json", "vtt")


def _language(value: object, param: str) -> object:
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
        _wrong(param, "ja・enなどの言語の略号（ISO 639-1）")
    return value


def _hint(value: object, param: str) -> object:
    if len(_string(value, param)) > MAX_HINT:
        _wrong(param, f"{MAX_HINT:,}文字まで")
    return value


def _transcript_form(value: object, param: str) -> object:
    if value not in TRANSCRIPT_FORMS:
        _wrong(param, "・".join(TRANSCRIPT_FORMS) + "のどれか")
    return value


_TRANSCRIPTIONS: Mapping[str, Check] = {
    "language": _language,
    "prompt": _hint,
    "temperature": _number(0, 1),
    "response_format": _transcript_form,
}

_SIZE = re.compile(r"auto|[1-9][0-9]{2,3}x[1-9][0-9]{2,3}")


def _size(value: object, param: str) -> object:
    if not isinstance(value, str) or not _SIZE.fullmatch(value):
        _wrong(param, "1024x1024のような「幅x高さ」")
    return value


def _one_of(*values: str) -> Check:
    def check(value: object, param: str) -> object:
        if value not in values:
            _wrong(param, "・".join(values) + "のどれか")
        return value

    return check


def _as_data(value: object, param: str) -> object:
    if value != "b64_json":
        raise BadRequest(
            "絵は、データ（b64_json）でだけ返します。AIのサービスが置いた場所（url）は、誰でも開けるからです。",
            param=param,
        )
    return value


_IMAGES: Mapping[str, Check] = {
    "n": _integer(1, MAX_PICTURES),
    "size": _size,
    "quality": _one_of("auto", "low", "medium", "high", "standard", "hd"),
    "background": _one_of("auto", "opaque", "transparent"),
    "output_format": _one_of("png", "jpeg", "webp"),
    "output_compression": _integer(0, 100),
    "response_format": _as_data,
    "user": _string,
}

_RERANK: Mapping[str, Check] = {
    "top_n": _integer(1, MAX_RANKED_DOCUMENTS),
    "return_documents": _boolean,
    "user": _string,
}

# A caller's own name for its user may be a person's name or address: it stays here. Documents come back by their places
# alone, for nobody has to send them to and fro.
_NEVER_SENT = frozenset({"user", "return_documents"})

# Dropping these would answer without what was asked for; passing them on would make the upstream fetch by itself.
_RUN_BY_UPSTREAM = ("web_search_options", "data_sources")


def parse_request(operation: type_of_operation, raw: bytes) -> ModelRequest:
    """Checks a body for `operation`. Raises `BadRequest` or `BodyTooLarge`, naming the field."""
    return check_request(operation, parse_json(raw), ignored=set())


def check_request(operation: type_of_operation, given: Mapping[str, object], *, ignored: set[str]) -> ModelRequest:
    """Checks what was read from a body; `ignored`: what was left out of it already. Raises `BadRequest`."""
    if given.get("store"):
        raise BadRequest("会話をAIのサービス側に保存させること（store）はできません。", param="store")
    model = _string(given.get("model"), "model")
    if not model or len(model) > 128:
        _wrong("model", "モデル名")
    for field in _RUN_BY_UPSTREAM:
        if given.get(field) is not None:
            raise BadRequest(f"AIのサービス側で検索させること（{field}）はできません。", param=field)
    stream = given.get("stream") is not None and operation not in WORDLESS and _boolean(given["stream"], "stream")
    include_usage = False
    options = given.get("stream_options")
    if options is not None:
        if not stream:
            _wrong("stream_options", "streamがtrueのときだけ")
        include_usage = _boolean(_object(options, "stream_options").get("include_usage", False), "stream_options")

    match operation:
        case "chat/completions":
            checks, body, size, items, images, sounds = _CHAT, *_chat_input(given, ignored)
        case "completions":
            checks, body, size, items, images, sounds = _COMPLETIONS, *_completion_input(given)
        case "embeddings":
            checks, body, size, items, images, sounds = _EMBEDDINGS, *_embedding_input(given)
        case "rerank":
            checks, body, size, items, images, sounds = _RERANK, *_rerank_input(given, ignored)
        case "images/generations":
            checks, body, size, items, images, sounds = _IMAGES, *_image_input(given)
        case "audio/transcriptions":
            checks, body, size, items, images, sounds = _TRANSCRIPTIONS, {}, 0, 1, 0, 1

    known = {"model", "stream", "stream_options", "store", *_RUN_BY_UPSTREAM, *body}
    for field, value in given.items():
        if field in known:
            continue
        check = checks.get(field)
        if check is None:
            ignored.add(field)
        elif value is not None:
            checked = check(value, field)
            if field not in _NEVER_SENT:
                body[field] = checked
    if operation == "images/generations":
        # Whoever sends it on knows whether a model must be told.
        body.pop("response_format", None)
    if "tools" in body:
        size += len(json.dumps(body["tools"], ensure_ascii=False).encode())
    if "response_format" in body:
        size += len(json.dumps(body["response_format"], ensure_ascii=False).encode())
    limits = [v for v in (body.get("max_completion_tokens"), body.get("max_tokens")) if isinstance(v, int)]
    choices = body.get("n", 1)
    return ModelRequest(
        operation=operation,
        model=model,
        body=body,
        stream=stream,
        include_usage=include_usage,
        ignored=_named(ignored),
        choices=choices if isinstance(choices, int) else 1,
        max_output_tokens=min(limits) if limits else None,
        input_bytes=size,
        input_items=items,
        images=images,
        sounds=sounds,
    )


_UNFIT_FOR_A_HEADER = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def _named(ignored: set[str]) -> tuple[str, ...]:
    """Names as a header may carry them: a caller chooses them freely, line ends included."""
    names = [_UNFIT_FOR_A_HEADER.sub("?", name[:64]) for name in sorted(ignored)[:MAX_NAMED_IGNORED]]
    return (*names, "...") if len(ignored) > MAX_NAMED_IGNORED else tuple(names)


def _unknown(value: Mapping[str, object], known: frozenset[str], at: str) -> set[str]:
    """Fields below the top that are dropped, by a path without numbers; what is null says nothing."""
    return {f"{at}.{field}" for field in value.keys() - known if value[field] is not None}


# Allow-listed fields, UTF-8 bytes of text, number of messages or texts, of images, of recordings.
_Input = tuple[dict[str, object], int, int, int, int]
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
# What nobody here can look into before it leaves.
_UNREADABLE = ("file", "video_url")
SOUND_FORMATS = ("wav", "mp3")
_PART_FIELDS = frozenset({"type", "text", "image_url", "input_audio"})


def _chat_input(given: Mapping[str, object], ignored: set[str]) -> _Input:
    messages = given.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        _wrong("messages", f"1〜{MAX_MESSAGES}件の配列")
    kept: list[dict[str, object]] = []
    size = 0
    images = 0
    sounds = 0
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        role = _object(message, at).get("role")
        if role not in _ROLES:
            _wrong(f"{at}.role", "・".join(_ROLES) + "のどれか")
        clean: dict[str, object] = {"role": role}
        content = message.get("content")
        if isinstance(content, str):
            clean["content"] = content
            size += len(content.encode())
        elif isinstance(content, list):
            parts, part_bytes, part_images, part_sounds = _content_parts(content, f"{at}.content", ignored)
            clean["content"] = parts
            size += part_bytes
            images += part_images
            sounds += part_sounds
        elif content is None and role == "assistant" and message.get("tool_calls"):
            clean["content"] = None
        else:
            _wrong(f"{at}.content", "文字列または配列")
        if role == "assistant" and message.get("tool_calls") is not None:
            calls = _tool_calls(message["tool_calls"], f"{at}.tool_calls")
            clean["tool_calls"] = calls
            size += len(json.dumps(calls, ensure_ascii=False).encode())
        if role == "tool":
            clean["tool_call_id"] = call_id = _string(message.get("tool_call_id"), f"{at}.tool_call_id")
            size += len(call_id.encode())
        if isinstance(message.get("name"), str):
            clean["name"] = message["name"][:64]
            size += len(message["name"][:64].encode())
        if not message.keys() <= _MESSAGE_FIELDS:
            ignored |= _unknown(message, _MESSAGE_FIELDS, "messages[]")
        kept.append(clean)
    return {"messages": kept}, size, len(kept), images, sounds


def _content_parts(parts: list[object], at: str, ignored: set[str]) -> tuple[list[dict[str, object]], int, int, int]:
    kept: list[dict[str, object]] = []
    size = 0
    images = 0
    sounds = 0
    for i, part in enumerate(parts):
        here = f"{at}[{i}]"
        kind = _object(part, here).get("type")
        if kind == "text":
            text = _string(part.get("text"), f"{here}.text")  # type: ignore[attr-defined]  # a dict by now
            kept.append({"type": "text", "text": text})
            # Some templates put a line end between parts.
            size += len(text.encode()) + 1
        elif kind == "image_url":
            image = _object(part.get("image_url"), f"{here}.image_url")  # type: ignore[attr-defined]  # a dict by now
            url = _string(image.get("url"), f"{here}.image_url.url")
            check_image(url, f"{here}.image_url.url")
            clean: dict[str, object] = {"url": url}
            if image.get("detail") in ("low", "high", "auto"):
                clean["detail"] = image["detail"]
            kept.append({"type": "image_url", "image_url": clean})
            images += 1
        elif kind == "input_audio":
            sound = _object(part.get("input_audio"), f"{here}.input_audio")  # type: ignore[attr-defined]  # a dict by now
            kept.append({"type": "input_audio", "input_audio": _sound(sound, f"{here}.input_audio")})
            sounds += 1
        elif kind in _UNREADABLE:
            raise BadRequest(
                "動画・ファイルは、中を確かめられないので送れません。文字にしてから送ってください。",
                param=f"{here}.type",
            )
        else:
            _wrong(f"{here}.type", "text・image_url・input_audioのどれか")
        ignored |= _unknown(part, _PART_FIELDS, "messages[].content[]")  # type: ignore[arg-type]  # a dict by now
    return kept, size, images, sounds


def _sound(value: dict[str, object], at: str) -> dict[str, object]:
    if value.get("format") not in SOUND_FORMATS:
        _wrong(f"{at}.format", "・".join(SOUND_FORMATS) + "のどちらか")
    data = _string(value.get("data"), f"{at}.data")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        _wrong(f"{at}.data", "正しいbase64")
    return {"data": data, "format": value["format"]}


def sounds_in(body: Mapping[str, object]) -> list[dict[str, object]]:
    """The `input_audio` parts of a checked body's messages, in their order."""
    messages = body.get("messages")
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "input_audio"]


def check_image(url: str, param: str) -> None:
    """Raises `BadRequest` unless `url` is a picture's own data of a kind and size that may be sent."""
    head, _, data = url.partition(";base64,")
    if not head.startswith("data:"):
        raise BadRequest(
            "画像はURLではなく、データ（data:image/png;base64,…）で送ってください。"
            "AIのサービスに外部のURLを取りに行かせることはできません。",
            param=param,
        )
    if head.removeprefix("data:") not in IMAGE_TYPES:
        _wrong(param, "PNG・JPEG・WebP・GIFのデータ")
    if len(data) * 3 // 4 > MAX_IMAGE_BYTES:
        _wrong(param, f"{MAX_IMAGE_BYTES // 1024 // 1024}MBまで")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        _wrong(param, "正しいbase64")


def _tool_calls(value: object, at: str) -> list[dict[str, object]]:
    if not isinstance(value, list):
        _wrong(at, "配列")
    calls: list[dict[str, object]] = []
    for i, call in enumerate(value):
        function = _object(_object(call, f"{at}[{i}]").get("function"), f"{at}[{i}].function")
        calls.append(
            {
                "id": _string(call.get("id"), f"{at}[{i}].id"),
                "type": "function",
                "function": {
                    "name": _string(function.get("name"), f"{at}[{i}].function.name"),
                    "arguments": _string(function.get("arguments"), f"{at}[{i}].function.arguments"),
                },
            }
        )
    return calls


def _completion_input(given: Mapping[str, object]) -> _Input:
    prompt = given.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        _wrong("prompt", "文字列、または文字列の配列")
    if len(prompts) > MAX_CHOICES:
        _wrong("prompt", f"{MAX_CHOICES}件まで")
    return {"prompt": prompt}, sum(len(p.encode()) for p in prompts), len(prompts), 0, 0


def _embedding_input(given: Mapping[str, object]) -> _Input:
    value = given.get("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_EMBEDDING_INPUTS:
        _wrong("input", f"文字列、または{MAX_EMBEDDING_INPUTS}件までの文字列の配列")
    if not all(isinstance(t, str) and t for t in texts):
        _wrong("input", "空でない文字列（トークン番号の配列は使えません）")
    encoding = given.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        _wrong("encoding_format", "floatまたはbase64")
    body: dict[str, object] = {"input": value, "encoding_format": encoding}
    return body, sum(len(t.encode()) for t in texts), len(texts), 0, 0


_DOCUMENT_FIELDS = frozenset({"text"})


def _image_input(given: Mapping[str, object]) -> _Input:
    prompt = _string(given.get("prompt"), "prompt")
    if not 1 <= len(prompt) <= MAX_PICTURE_PROMPT:
        _wrong("prompt", f"1〜{MAX_PICTURE_PROMPT:,}文字の文字列")
    if given.get("stream"):
        raise BadRequest("絵は、できあがってから返します。streamは使えません。", param="stream")
    return {"prompt": prompt}, len(prompt.encode()), 1, 0, 0


def _rerank_input(given: Mapping[str, object], ignored: set[str]) -> _Input:
    """A model reads the question anew beside every document, and is paid for it as often."""
    query, value = _string(given.get("query"), "query"), given.get("documents")
    if not query:
        _wrong("query", "空でない文字列")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_RANKED_DOCUMENTS:
        _wrong("documents", f"1〜{MAX_RANKED_DOCUMENTS}件の、文字列の配列")
    texts: list[str] = []
    for i, document in enumerate(value):
        text = document
        if isinstance(document, dict):
            text = document.get("text")
            ignored |= _unknown(document, _DOCUMENT_FIELDS, "documents[]")
        if not isinstance(text, str) or not text:
            _wrong(f"documents[{i}]", "空でない文字列、または「text」のあるオブジェクト")
        texts.append(text)
    if given.get("return_documents") is True:
        ignored.add("return_documents")
    size = sum(len(t.encode()) for t in texts) + len(texts) * len(query.encode())
    return {"query": query, "documents": texts}, size, len(texts), 0, 0
