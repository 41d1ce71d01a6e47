"""伏せる and its way back: what leaves has no original in any writing, and an answer gets them all again."""

import base64
import itertools
import json
import quopri
import random
import textwrap
from collections.abc import Callable
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.guard.masking import Restorer, StreamRestorer, mask, slipped
from gateway.guard.writings import readings_of

PEOPLE = "申請者は山田太郎、電話は090-1234-5678、住所は神奈川県横須賀市小川町11番地です。"


def body(*texts: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": t} for t in texts]}


def contents(masked: dict[str, object]) -> list[str]:
    return [m["content"] for m in masked["messages"]]  # type: ignore[attr-defined]  # as `body` made it


def test_placeholders_stand_for_what_was_found() -> None:
    masked = mask(body(PEOPLE))
    assert contents(masked.body) == ["申請者は⟦氏名1⟧、電話は⟦電話1⟧、住所は⟦住所1⟧です。"]
    assert masked.originals == {"氏名1": "山田太郎", "電話1": "090-1234-5678", "住所1": "神奈川県横須賀市小川町11番地"}
    assert slipped(masked.body, masked.originals) is None


def test_the_same_is_the_same_over_the_whole_conversation() -> None:
    """Whatever width it has, and where nothing but its being known gives it away."""
    first = contents(mask(body(PEOPLE)).body)
    later = contents(mask(body(PEOPLE, "０９０－１２３４－５６７８は誰？", "山田太郎の件と鈴木一郎の件")).body)
    assert later[0] == first[0]
    assert later[1:] == ["⟦電話1⟧は誰？", "⟦氏名1⟧の件と⟦氏名2⟧の件"]


def test_what_grows_grows_wherever_it_is_written() -> None:
    """A body is held for by its bytes: a text that stands in it twice grows twice."""
    once, often = (mask({"query": "水", "documents": ["林様"] * n}) for n in (1, 3))
    assert once.originals == often.originals and once.grown_bytes > 0
    assert often.grown_bytes == 3 * once.grown_bytes


def test_what_somebody_typed_is_no_placeholder_of_ours() -> None:
    masked = mask(body("⟦氏名1⟧という書き方", "申請者は山田太郎です"))
    assert contents(masked.body) == ["⟦氏名1⟧という書き方", "申請者は⟦氏名2⟧です"]
    assert Restorer(masked.originals).text("⟦氏名1⟧と⟦氏名2⟧") == "⟦氏名1⟧と山田太郎"


def test_arguments_schemas_and_names_are_masked_and_roles_are_not() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": "090-1234-5678"})}}
    escaped = json.dumps({"q": "山田太郎様"})
    assert "\\u" in escaped
    masked = mask(
        {
            "messages": [
                {"role": "user", "name": "taro@example.com", "content": [{"type": "text", "text": "鈴木一郎様"}]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "assistant", "content": None, "tool_calls": [call | {"function": {"name": "f", "arguments": escaped}}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": "旅券番号TK1234567"}}],
        }
    )  # fmt: skip
    written = json.dumps(masked.body, ensure_ascii=False)
    assert all(o not in written for o in ("090-1234", "taro@", "鈴木", "山田", "TK1234567"))
    assert '"role": "user"' in written
    assert slipped(masked.body, masked.originals) is None


@pytest.mark.parametrize(
    "writing",
    [
        "０９０－１２３４－５６７８",
        "0 9 0 1 2 3 4 5 6 7 8",
        "090\u200b1234\u200b5678",
        "〇九〇一二三四五六七八",
        quote("０９０-1234-5678"),
        "&#48;90-1234-5678",
        base64.b64encode("電話は090-1234-5678".encode()).decode(),
        base64.urlsafe_b64encode("番号090-1234-5678です".encode()).decode().rstrip("="),
    ],
)
def test_an_original_in_another_writing_does_not_slip_through(writing: str) -> None:
    originals = {"電話1": "090-1234-5678"}
    assert slipped(body(f"これは{writing}です"), originals) == "電話1"
    assert slipped(body("これは⟦電話1⟧です"), originals) is None


def test_a_name_in_base64_does_not_slip_through() -> None:
    hidden = base64.b64encode("申請者は山田太郎".encode()).decode()
    masked = mask(body(f"申請者は山田太郎です。{hidden}"))
    assert slipped(masked.body, masked.originals) == "氏名1"


@pytest.mark.parametrize(
    "hidden",
    [
        {"tools": [{"function": {"parameters": {"enum": [4111111111111111]}}}]},
        {"tools": [{"function": {"parameters": {"default": {"url": "x;base64,4111-1111-1111-1111"}}}}]},
        {"messages": [{"role": "tool", "tool_call_id": "4111111111111111", "content": "なし"}]},
    ],
)
def test_what_cannot_be_replaced_does_not_slip_through(hidden: dict[str, object]) -> None:
    masked = mask({"messages": [{"role": "user", "content": "要約"}], **hidden})
    assert list(masked.originals) == ["カード1"]
    assert slipped(masked.body, masked.originals) == "カード1"


def test_the_name_of_a_field_is_replaced() -> None:
    masked = mask({"tools": [{"function": {"parameters": {"properties": {"090-1234-5678": {"type": "string"}}}}}]})
    assert "⟦電話1⟧" in json.dumps(masked.body, ensure_ascii=False)
    assert slipped(masked.body, masked.originals) is None


# ── in any writing ───────────────────────────────────────────────────────────────────────────────────────────────

_CHARSETS = ("utf-8", "cp932", "euc_jp", "utf-16-le", "utf-16-be", "iso2022_jp")


def _bytewise(form: str) -> Callable[[str, str], str]:
    return lambda text, charset: "".join(form % byte for byte in text.encode(charset))


def _lines(encoded: bytes) -> str:
    """As mail breaks base64."""
    return "\n".join(textwrap.wrap(encoded.decode("ascii"), 76))


WRITINGS: dict[str, Callable[[str, str], str]] = {
    "percent": lambda text, charset: quote(text.encode(charset)),
    "percent of every byte": _bytewise("%%%02X"),
    "\\xNN": _bytewise("\\x%02x"),
    "octal": _bytewise("\\%03o"),
    "hex": lambda text, charset: text.encode(charset).hex(),
    "hex in pairs": lambda text, charset: text.encode(charset).hex(" ").upper(),
    "hex with 0x": lambda text, charset: ", ".join(f"0x{byte:02x}" for byte in text.encode(charset)),
    "base64": lambda text, charset: base64.b64encode(text.encode(charset)).decode(),
    "base64 for addresses": lambda text, charset: base64.urlsafe_b64encode(text.encode(charset)).decode().rstrip("="),
    "base64 in lines": lambda text, charset: _lines(base64.b64encode(("件名 " * 40 + text).encode(charset))),
    "base32": lambda text, charset: base64.b32encode(text.encode(charset)).decode(),
    "quoted-printable": lambda text, charset: quopri.encodestring(text.encode(charset)).decode("ascii"),
    "\\uNNNN": lambda text, _: "".join(f"\\u{u:04x}" for u in _units(text)),
    "%uNNNN": lambda text, _: "".join(f"%u{u:04X}" for u in _units(text)),
    "\\u{NNNN}": lambda text, _: "".join(f"\\u{{{ord(c):x}}}" for c in text),
    "U+NNNN": lambda text, _: " ".join(f"U+{ord(c):04X}" for c in text),
    "entities": lambda text, _: "".join(f"&#{ord(c)};" for c in text),
    "hexadecimal entities": lambda text, _: "".join(f"&#x{ord(c):X};" for c in text),
    "UTF-7": lambda text, _: text.encode("utf-7").decode("ascii"),
}
# Two bytes of UTF-16 may look like two letters each, and these leave letters as they are.
_NARROW = {"quoted-printable", "percent"}
_WIDE = {"utf-16-le", "utf-16-be"}


def written_in(name: str, charset: str, text: str) -> str:
    return WRITINGS[name](text, "utf-8" if name in _NARROW and charset in _WIDE else charset)


def _units(text: str) -> list[int]:
    data = text.encode("utf-16-be")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


_HAN = "山田佐藤鈴木高橋渡辺伊東中村小林加齋沢"
_ORIGINALS = st.one_of(
    st.tuples(st.just("氏名1"), st.text(_HAN, min_size=2, max_size=6)),
    st.tuples(st.just("氏名1"), st.text(_HAN + "アイウカサ", min_size=3, max_size=8)),
    st.tuples(st.just("電話1"), st.from_regex(r"0[1-9]0-[0-9]{4}-[0-9]{4}", fullmatch=True)),
    st.tuples(st.just("住所1"), st.from_regex(r"横須賀市[小大]川町[1-9]{1,2}番地[1-9]?", fullmatch=True)),
    st.tuples(st.just("メール1"), st.from_regex(r"[a-z]{3,8}@example\.jp", fullmatch=True)),
)


@settings(max_examples=300)
@given(
    original=_ORIGINALS,
    inner=st.tuples(st.sampled_from(sorted(WRITINGS)), st.sampled_from(_CHARSETS)),
    outer=st.none() | st.tuples(st.sampled_from(sorted(WRITINGS)), st.sampled_from(_CHARSETS[:3])),
    around=st.sampled_from([("", ""), ("控え：", "です"), ("見よ ", " end"), ("https://example.jp/a?q=", "&n=1"), ("「", "」\n次")]),
)  # fmt: skip
def test_no_writing_hides_an_original(
    original: tuple[str, str], inner: tuple[str, str], outer: tuple[str, str] | None, around: tuple[str, str]
) -> None:
    """However it is encoded, once or twice, whatever stands around it."""
    label, text = original
    for name, charset in filter(None, (inner, outer)):
        text = written_in(name, charset, text)
    before, after = around
    assert slipped(body(f"{before}{text}{after}"), {label: original[1]}) == label


@pytest.mark.parametrize("name", sorted(WRITINGS))
@pytest.mark.parametrize("charset", _CHARSETS)
def test_each_writing_of_a_name_is_read(name: str, charset: str) -> None:
    for original in ("山田", "山田太郎"):
        written = written_in(name, charset, original)
        assert slipped(body(f"控えは {written} です"), {"氏名1": original}) == "氏名1"
        assert slipped(body(f"控えは {written_in(name, charset, '鈴木一郎')} です"), {"氏名1": original}) is None


def test_a_short_number_within_a_longer_one_is_another_number() -> None:
    masked = mask(body("被保険者番号：1234、生年月日 H2.1.1 の方。支給額は12345円、制度は H21.1.10 からです。"))
    assert set(masked.originals.values()) == {"1234", "H2.1.1"}
    assert slipped(masked.body, masked.originals) is None
    assert slipped(body("番号は%31%32%33%34です"), masked.originals) == "保険証1"
    assert slipped(body("番号は 1 2-3 4 です"), masked.originals) == "保険証1"


@pytest.mark.parametrize("spaced", ["山　田　太　郎", "山 田 太 郎さん", "山・田太 郎"])
def test_a_name_that_is_spread_out_is_replaced_whole(spaced: str) -> None:
    """As forms have it; a name that the detectors see in a part of it must leave no other part behind."""
    masked = mask(body("申請者は山田太郎です。", f"氏名：{spaced}"))
    assert contents(masked.body)[1].startswith("氏名：⟦氏名1⟧")
    assert not set("山田太郎") & set(contents(masked.body)[1])
    assert slipped(masked.body, masked.originals) is None


def test_a_surname_of_two_signs_is_replaced_wherever_it_stands() -> None:
    masked = mask(body("山田様からの電話です。山田は来週来ます。林様と森林"))
    assert contents(masked.body) == ["⟦氏名1⟧様からの電話です。⟦氏名1⟧は来週来ます。⟦氏名2⟧様と森林"]
    assert slipped(masked.body, masked.originals) is None
    assert slipped(body("山\u3000田"), masked.originals) == "氏名1"
    assert slipped(body("青山\n田中"), masked.originals) is None


@pytest.mark.parametrize(
    "piece",
    ["QUJD", "UVVK", "%25", "%e5", "=E5", "\\xe5", "\\u5c71", "\\", "&#", "e5b1b1", "0x", "U+5c71", "A", "-/", "12 34 ",
     "abcdef\n", "%e5=E5\\xe5 &#x5c71; e5b1b1b1 QUJDREVGRw== ", "=\n", "a1-", "+", "+QUJD", None],
)  # fmt: skip
def test_what_is_read_for_it_grows_with_the_text_alone(piece: str | None) -> None:
    """Whatever it is made of: the letters of all readings of a text, for each of its own."""
    noise = base64.b64encode(random.Random(7).randbytes(30_000)).decode()
    for size in (2_000, 20_000):
        text = (noise if piece is None else piece * (size // len(piece) + 1))[:size]
        assert sum(len(reading) for reading, _ in readings_of(text)) <= 60 * size


# ── the way back ─────────────────────────────────────────────────────────────────────────────────────────────────

ORIGINALS = {"氏名1": '山田"太郎', "電話1": "090-1234-5678"}
ANSWER = "⟦氏名1⟧様（⟦電話1⟧）と⟦氏名9⟧、⟦ 電話１ ⟧、⟦"
RESTORED = '山田"太郎様（090-1234-5678）と⟦氏名9⟧、090-1234-5678、⟦'


def chunk(delta: dict[str, object], finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "x", "choices": [choice]}) + b"\n\n"


def said(events: list[bytes]) -> str:
    text = ""
    for event in events:
        for choice in orjson.loads(event.removeprefix(b"data:"))["choices"]:
            text += choice["delta"].get("content") or ""
    return text


@given(st.lists(st.integers(1, len(ANSWER) - 1), max_size=12))
def test_a_placeholder_may_be_cut_anywhere_in_a_stream(cuts: list[int]) -> None:
    places = [0, *sorted(set(cuts)), len(ANSWER)]
    restorer = StreamRestorer(Restorer(ORIGINALS))
    pieces = [ANSWER[a:b] for a, b in itertools.pairwise(places)]
    events = [restorer.event(chunk({"content": p})) for p in pieces]
    events.append(restorer.event(chunk({}, "stop")))
    assert said(events) == RESTORED
    assert restorer.event(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"


def test_choices_and_fields_are_held_apart() -> None:
    restorer = StreamRestorer(Restorer(ORIGINALS))
    events = [
        restorer.event(chunk({"content": "⟦氏", "reasoning_content": "⟦電"}, index=0)),
        restorer.event(chunk({"content": "⟦電話"}, index=1)),
        restorer.event(chunk({"content": "名1⟧", "reasoning_content": "話1⟧"}, index=0)),
        restorer.event(chunk({"content": "1⟧"}, index=1)),
    ]
    deltas = [orjson.loads(e[5:])["choices"][0]["delta"] for e in events]
    assert deltas[2] == {"content": '山田"太郎', "reasoning_content": "090-1234-5678"}
    assert deltas[3] == {"content": "090-1234-5678"}


@pytest.mark.parametrize("is_ascii", [False, True])
@given(cuts=st.lists(st.integers(1, 100), max_size=8))
def test_arguments_of_tools_stay_json(is_ascii: bool, cuts: list[int]) -> None:
    """Also where a provider writes every letter of another script as \\uXXXX."""
    restorer = StreamRestorer(Restorer(ORIGINALS))
    arguments = json.dumps({"q": "⟦氏名1⟧と⟦氏名9⟧", "p": "路\n⟦ 電話１ ⟧"}, ensure_ascii=is_ascii)
    pieces = [arguments[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(arguments)])]
    events = [restorer.event(chunk({"tool_calls": [{"index": 0, "function": {"arguments": p}}]})) for p in pieces] + [
        restorer.event(chunk({}, "tool_calls"))
    ]
    written = "".join(
        c["function"]["arguments"]
        for e in events
        for c in orjson.loads(e[5:])["choices"][0]["delta"].get("tool_calls", ())
    )
    assert json.loads(written) == {"q": '山田"太郎と⟦氏名9⟧', "p": "路\n090-1234-5678"}


def test_a_whole_answer_is_restored_and_one_without_placeholders_is_the_same_bytes() -> None:
    restorer = Restorer(ORIGINALS)
    written = [{"function": {"arguments": json.dumps({"q": "⟦氏名1⟧"}, ensure_ascii=a)}} for a in (False, True)]
    whole = {
        "choices": [
            {
                "message": {
                    "role": "assistant",
                    "content": ANSWER,
                    "tool_calls": written,
                }
            }
        ]
    }
    message = orjson.loads(restorer.body(orjson.dumps(whole)))["choices"][0]["message"]
    assert message["content"] == RESTORED
    for call in message["tool_calls"]:
        assert json.loads(call["function"]["arguments"]) == {"q": '山田"太郎'}
    escaped = json.dumps({"choices": [{"text": "⟦電話1⟧"}]}).encode()
    assert orjson.loads(restorer.body(escaped))["choices"][0]["text"] == "090-1234-5678"
    # Ends of two strings are no placeholder.
    assert restorer.text('["⟦", "\\u6c0f⟧", "⟦\\u27e7"]', in_json=True) == '["⟦", "\\u6c0f⟧", "⟦\\u27e7"]'
    untouched = b'{ "choices": [ {"text": "a"} ] }'
    assert restorer.body(untouched) is untouched
