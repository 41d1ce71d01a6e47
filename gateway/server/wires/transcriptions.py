"""`/v1/audio/transcriptions`: a form with a recording in, its words out, in the shape that was asked for.

Whatever shape the caller wants, the model server is asked for one that the guard can read; the caller's shape is made
here from what may go on.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import orjson
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.contracts import MAX_HINT, BadRequest, ModelRequest, check_request
from gateway.guard.answers import AnswerWatch
from gateway.reading.speech import Recording

OPERATION: Final = "audio/transcriptions"
PATH: Final = f"/v1/{OPERATION}"
# Shapes that tell when something was said; not every model can.
TIMED: Final = frozenset({"srt", "vtt", "verbose_json"})
_TYPES: Final[Mapping[str, bytes]] = {"text": b"text/plain; charset=utf-8", "srt": b"text/plain; charset=utf-8"}
_MAX_FIELDS: Final = 32
# Of a piece: what OpenAI's clients know beside times and words.
_PIECE_FIELDS: Final = ("avg_logprob", "compression_ratio", "no_speech_prob", "temperature")


# ── The request ──────────────────────────────────────────────────────────────────────────────────────────────────


def parse_transcription(content_type: bytes, raw: bytes) -> ModelRequest:
    """Checks a form. Raises `BadRequest`, naming the field."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise BadRequest("Content-Type は multipart/form-data にしてください。")
    fields, sound = _fields(boundary, raw)
    if not sound:
        raise BadRequest("「file」に音声のファイルを付けてください。", param="file")
    if fields.get("stream", "false").lower() not in ("", "false"):
        raise BadRequest("文字起こしを少しずつ受け取ること（stream）はできません。", param="stream")
    given: dict[str, object] = {name: value for name, value in fields.items() if name != "stream"}
    if "temperature" in fields:
        try:
            given["temperature"] = float(fields["temperature"])
        except ValueError:
            raise BadRequest("「temperature」は数にしてください。", param="temperature") from None
    ignored: set[str] = set()
    if given.pop("timestamp_granularities[]", "segment") != "segment":
        raise BadRequest("時刻は文の区切りごと（segment）だけです。", param="timestamp_granularities[]")
    checked = check_request(OPERATION, given, ignored=ignored)
    form = str(checked.body.pop("response_format", "json"))
    hint = str(checked.body.get("prompt", ""))
    return replace(checked, sound=sound, answer_form=form, input_bytes=len(hint.encode()))


def _fields(boundary: bytes, raw: bytes) -> tuple[dict[str, str], bytes]:
    """The fields of a form and the file called `file`; a field that comes twice is refused."""
    texts: dict[str, bytearray] = {}
    sound = bytearray()
    head: dict[bytes, bytes] = {}
    name, value = bytearray(), bytearray()
    into: bytearray | None = None

    def begin() -> None:
        nonlocal into
        into = None
        head.clear()

    def header_field(data: bytes, start: int, end: int) -> None:
        name.extend(data[start:end])

    def header_value(data: bytes, start: int, end: int) -> None:
        value.extend(data[start:end])

    def header_end() -> None:
        head[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def headers_finished() -> None:
        nonlocal into
        _, options = parse_options_header(head.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field == "file":
            if b"filename" not in options or sound:
                raise BadRequest("「file」は1つの音声のファイルにしてください。", param="file")
            into = sound
            return
        if field in texts:
            raise BadRequest(f"同じ項目「{field[:64]}」が2回書かれています。", param=field[:64], code="duplicate_key")
        if len(texts) >= _MAX_FIELDS:
            raise BadRequest(f"項目は{_MAX_FIELDS}個までにしてください。")
        into = texts[field] = bytearray()

    def data_of(data: bytes, start: int, end: int) -> None:
        assert into is not None
        if into is not sound and len(into) + end - start > 8 * MAX_HINT:
            raise BadRequest(f"項目は{MAX_HINT:,}文字までにしてください。")
        into.extend(data[start:end])

    has_ended = False

    def end() -> None:
        nonlocal has_ended
        has_ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_part_data": data_of,
            "on_header_field": header_field,
            "on_header_value": header_value,
            "on_header_end": header_end,
            "on_headers_finished": headers_finished,
            "on_end": end,
        },
    )
    try:
        parser.write(raw)
        parser.finalize()
        fields = {field: bytes(text).decode() for field, text in texts.items()}
    except (MultipartParseError, UnicodeDecodeError):
        raise BadRequest("フォーム（multipart/form-data）として読めません。") from None
    if not has_ended:
        raise BadRequest("フォーム（multipart/form-data）が途中で切れています。")
    return fields, bytes(sound)


def identity(content_type: bytes, raw: bytes) -> bytes:
    """What is asked, without the mark between fields, which clients throw anew for each try."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    return raw.replace(boundary, b"") if boundary else raw


def form_of(recording: Recording, fields: Mapping[str, object]) -> tuple[bytes, str]:
    """The form for a model server and its content type. The caller's own file and its name stay here."""
    boundary = f"kumiai-{uuid4().hex}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="audio.flac"\r\n'
        "Content-Type: audio/flac\r\n\r\n"
    )
    body = b"".join([*parts, head.encode(), recording.flac, f"\r\n--{boundary}--\r\n".encode()])
    return body, f"multipart/form-data; boundary={boundary}"


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────────────


def transcript_of(request: ModelRequest, raw: bytes, watch: AnswerWatch | None) -> tuple[bytes, bytes]:
    """A model server's transcript as it may go on, in the shape that was asked for, and its content type.

    raw: JSON with `text` and, for shapes with times, `segments`. What is withheld ends the words, and nothing is told of
    the pieces any more.
    """
    assert request.recording is not None
    said: dict[str, Any] = orjson.loads(raw)
    text = str(said["text"])
    pieces = [p for p in said.get("segments") or () if isinstance(p, dict) and isinstance(p.get("text"), str)]
    note: dict[str, Any] = {}
    if watch is not None:
        whole = "\n".join(str(p["text"]) for p in pieces)
        if "".join(whole.split()) != "".join(text.split()):
            # Both are told, and a server may say more in one than in the other.
            whole = "\n".join((text, *(str(p["text"]) for p in pieces)))
        choice = {"index": 0, "message": {"content": whole}, "finish_reason": "stop"}
        read = orjson.loads(watch.body(orjson.dumps({"choices": [choice]})))
        note = {"kumiai": read["kumiai"]} if "kumiai" in read else {}
        if watch.has_withheld:
            text, pieces = read["choices"][0]["message"]["content"], []
    form = request.answer_form
    if form in ("srt", "vtt"):
        made = _subtitles(pieces or [{"start": 0, "end": request.recording.milliseconds / 1000, "text": text}], form)
        return made.encode(), _TYPES.get(form, b"text/vtt; charset=utf-8")
    if form == "text":
        return f"{text}\n".encode(), _TYPES[form]
    seconds = -(-request.recording.milliseconds // 1000)
    answer: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": seconds}, **note}
    if form == "verbose_json":
        language = said.get("language")
        answer |= {
            "task": "transcribe",
            "language": language if isinstance(language, str) else str(request.body.get("language", "")),
            "duration": request.recording.milliseconds / 1000,
            "segments": [_piece(i, p) for i, p in enumerate(pieces)],
        }
    return orjson.dumps(answer), b"application/json"


def _piece(number: int, piece: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: _seconds(piece.get(name)) for name in _PIECE_FIELDS}
    times = {"start": _seconds(piece.get("start")), "end": _seconds(piece.get("end"))}
    return {"id": number, "seek": 0, "text": piece["text"], "tokens": [], **times, **known}


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _subtitles(pieces: list[dict[str, Any]], form: str) -> str:
    blocks = ["WEBVTT\n"] if form == "vtt" else []
    mark = "." if form == "vtt" else ","
    for number, piece in enumerate(pieces, 1):
        times = f"{_clock(piece.get('start'), mark)} --> {_clock(piece.get('end'), mark)}"
        words = " ".join(str(piece["text"]).split())
        blocks.append(f"{times}\n{words}\n" if form == "vtt" else f"{number}\n{times}\n{words}\n")
    return "\n".join(blocks)


def _clock(seconds: object, mark: str) -> str:
    milliseconds = max(0, round(_seconds(seconds) * 1000))
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
