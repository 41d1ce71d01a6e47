"""Names in answers, over the wire: residents do not get somebody's who was not asked about, staff are told at most."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.guard.answers import HANDOVER
from tenants.context import DataClass
from tenants.policy import GuardAction, GuardPolicy, Policy
from tests.contract.api.test_answers import WITHHOLD, heard
from tests.contract.api.test_guard import ask, outcome, said
from tests.contract.api.test_models import known
from tests.faults.conftest import deployment
from tests.gateways import Region, RunningGateway, Town, eventually

MODEL = "talker"
BEFORE = "申請は届いています。"
NAMED = "受け付けたのは山田太郎さんです。"
AFTER = "審査は来週です。"
PIECES = [*BEFORE, *NAMED, *AFTER]


class Talker(BaseHTTPRequestHandler):
    """A model server that names somebody, a sign a piece."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(PIECES)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = {
                "id": "c",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [choice],
                "usage": usage,
            }
            return self._send("application/json", json.dumps(answer).encode())
        events = [{"index": 0, "delta": {"content": p}, "finish_reason": None} for p in PIECES]
        events.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        lines = [json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [e]}) for e in events]
        return self._send("text/event-stream", b"".join(b"data: %b\n\n" % x.encode() for x in [*lines, "[DONE]"]))

    def _send(self, media_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def talking(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Talker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    catalogue = tmp_path_factory.mktemp("talker") / "catalogue.yaml"
    own = deployment("talker", f"http://127.0.0.1:{server.server_port}/v1", [MODEL])
    catalogue.write_text(json.dumps({"deployments": [own]}))
    with region.gateway(KUMIAI_CATALOGUE_FILE=str(catalogue)) as running:
        yield running
    server.shutdown()
    server.server_close()


def make(region: Region, gateway: RunningGateway, guard: GuardPolicy) -> Town:
    town = region.make_town(policy=Policy(default_class=DataClass.C1, guard=guard))
    eventually(lambda: known(gateway, town))
    return town


def test_residents_get_no_name_that_was_not_asked_about(region: Region, talking: RunningGateway) -> None:
    town = make(region, talking, GuardPolicy())
    text, finish, note = heard(talking, town.key, said("申請はどうなりましたか", MODEL), **WITHHOLD)
    assert (text, finish) == (BEFORE + HANDOVER, "content_filter")
    assert note["answer_guard"][0]["findings"] == [{"kind": "name", "label": "氏名", "count": 1}]
    whole = ask(talking, town, said("申請はどうなりましたか", MODEL), **WITHHOLD)
    assert whole.json()["choices"][0]["message"]["content"] == BEFORE + HANDOVER
    # Who asks about somebody may hear of them, and so may everybody of whom the town itself names.
    about = said("山田 太郎さんに頼みました。申請はどうなりましたか", MODEL)
    assert heard(talking, town.key, about, **WITHHOLD)[:2] == ("".join(PIECES), "stop")
    published = make(region, talking, GuardPolicy(public=frozenset({"山田太郎"})))
    assert heard(talking, published.key, said("申請は", MODEL), **WITHHOLD)[:2] == ("".join(PIECES), "stop")


def test_staff_are_told_where_the_town_counts_names(region: Region, talking: RunningGateway) -> None:
    careless = make(region, talking, GuardPolicy())
    assert heard(talking, careless.key, said("申請は", MODEL)) == ("".join(PIECES), "stop", {})
    careful = make(region, talking, GuardPolicy(actions={"name": GuardAction.BLOCK}))
    text, _, note = heard(talking, careful.key, said("申請は", MODEL))
    assert text == "".join(PIECES)
    assert note["answer_guard"][0] | {"reasons": []} == {
        "index": 0, "action": "warn", "findings": [{"kind": "name", "label": "氏名", "count": 1}], "reasons": [],
    }  # fmt: skip
    answered = ask(talking, careful, said("申請は", MODEL))
    assert outcome(answered) == (200, "onprem")
    assert answered.headers["kumiai-answer-guard"] == "name=1"
