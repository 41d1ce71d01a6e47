"""`kumiai demo` with a real model behind it: its names, its zone, its price. The servers here are fake and say so."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from kumiai.local.postgres import free_port
from loadtests.upstream import PIECES, running_upstream
from tests.demo_process import DemoProcess
from tests.gateways import eventually

ASK: Any = [{"role": "user", "content": "町の花は"}]
ANSWER = "".join(PIECES)


def ask(demo: DemoProcess, model: str = "standard") -> tuple[str | None, Any]:
    facts = demo.facts
    with OpenAI(base_url=f"{facts['base_url']}/v1", api_key=facts["api_keys"][0]["key"], max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model=model, messages=ASK)
    return raw.parse().choices[0].message.content, raw.headers


def posted(demo: DemoProcess) -> int:
    """What the first town has been billed this month, in micro-yen."""
    code = demo.facts["api_keys"][0]["tenant"]
    told = demo.run("budget", "show", code, "--json")
    assert told.returncode == 0, told.stderr
    [town] = [row for row in json.loads(told.stdout) if row["node"] == "town"]
    return int(town["posted_uyen"])


def test_a_server_of_one_s_own_is_on_prem_and_free(tmp_path: Path) -> None:
    with running_upstream() as upstream:
        environment = {"KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"{upstream.url}/v1"}
        with DemoProcess(tmp_path / "home", environment=environment) as demo:
            assert demo.facts["model_note"] == "OpenAI互換 fake-chat（ほかに fake-embedding、fake-transcription）"
            text, headers = ask(demo)
            assert text == ANSWER
            assert (headers["kumiai-zone"], headers["kumiai-zone-owner"]) == ("onprem", "shared")
            assert ask(demo, "fake-chat")[0] == ANSWER
            # What hears does not write.
            with pytest.raises(BadRequestError):
                ask(demo, "fake-transcription")
            assert upstream.seen()["by_path"] == {"/v1/chat/completions": 2}
            assert "authorization" not in upstream.seen()["requests"][0]["headers"]
            assert posted(demo) == 0


def test_zone_and_key_of_a_server_are_as_told(tmp_path: Path) -> None:
    with running_upstream() as upstream:
        environment = {
            "KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"{upstream.url}/v1",
            "KUMIAI_OPENAI_COMPATIBLE_ZONE": "domestic",
            "KUMIAI_OPENAI_COMPATIBLE_API_KEY": "of-the-server",
        }
        with DemoProcess(tmp_path / "home", environment=environment) as demo:
            _, headers = ask(demo)
            assert headers["kumiai-zone"] == "domestic"
            assert "kumiai-zone-owner" not in headers
            [sent] = upstream.seen()["requests"]
            assert sent["headers"]["authorization"] == "Bearer of-the-server"


def test_a_vendor_s_key_brings_its_models_at_their_price(tmp_path: Path) -> None:
    with running_upstream() as upstream:
        environment = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": f"{upstream.url}/v1"}
        with DemoProcess(tmp_path / "home", environment=environment) as demo:
            note = demo.facts["model_note"]
            assert note.startswith("OpenAI gpt-5.6-terra（ほかに gpt-5.6-luna、text-embedding-3-small、whisper-1）")
            # The fake lists other names, and that is said.
            assert "この鍵の一覧にはない" in note
            text, headers = ask(demo)
            assert text == ANSWER
            assert (headers["kumiai-zone"], headers["kumiai-vendor-country"]) == ("overseas", "US")
            [sent] = upstream.seen()["requests"]
            assert sent["headers"]["authorization"] == "Bearer sk-test"
            assert sent["body"]["model"] == "gpt-5.6-terra"
            assert "max_completion_tokens" in sent["body"]
            # The shipped dollar price at the sample rate of 155 yen: rounded up to a micro-yen.
            usage = upstream_usage(demo)
            assert eventually(lambda: posted(demo)) == usage


def upstream_usage(demo: DemoProcess) -> int:
    """What one call of the fake's length costs by hand: 2 dollars a million in, 12 out."""
    prompt = len('[{"role":"user","content":"町の花は"}]'.encode()) // 3 + 1
    micro_dollars = prompt * 2 + len(PIECES) * 12
    return micro_dollars * 155


def test_a_server_that_does_not_answer_is_a_plain_error(tmp_path: Path) -> None:
    home = tmp_path / "home"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KUMIAI_") and "API_KEY" not in k}  # noqa: TID251 - for a child
    done = subprocess.run(
        [sys.executable, "-m", "kumiai", "demo", "--port", "0"],
        env=clean | {"KUMIAI_HOME": str(home), "KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"http://127.0.0.1:{free_port()}/v1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "モデルを確かめられません" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "demo.json").exists()
