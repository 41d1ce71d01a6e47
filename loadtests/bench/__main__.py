"""The gateway beside its peers, in one run on one machine: each server on one core, the load on the other.

wrk drives unstreamed chat completions closed-loop at 1 and 64 connections (throughput and latency of a saturated
core); first-token overhead is measured with streamed calls over one connection. Every peer talks to the same fake
upstream. Kumiai authenticates an API key and reserves and settles money durably for every call; the others do not.
Figures are ratios within one run: the machine is shared and its absolute times mean little.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import psycopg
import yaml

from kumiai.local.postgres import Postgres, free_port
from loadtests.bench.issuer import issuing

CACHE = Path(os.environ.get("KUMIAI_BENCH_CACHE", Path.home() / ".cache/kumiai/bench"))  # noqa: TID251 - a tool's own edge
BODY = {"model": "standard", "messages": [{"role": "user", "content": "こんにちは。今日の予定を三つ教えてください。"}]}
# A: 500 bytes of body; B: 1,000 characters of Japanese; C is B with a person's token, where names are looked for.
_LINE = "防災訓練のお知らせを、町の広報に載せる文にしてください。日時は来月の第二日曜日、場所は中央公民館です。"
CASE_B = {"model": "standard", "messages": [{"role": "user", "content": (_LINE * 20)[:1000]}]}
SERVER_CORE, LOAD_CORE = "0", "1"


def _case_a() -> dict[str, object]:
    """A chat call whose body is 500 bytes as it is sent."""
    empty = {"model": "standard", "messages": [{"role": "user", "content": ""}]}
    return {**empty, "messages": [{"role": "user", "content": "a" * (500 - len(json.dumps(empty)))}]}


CASE_A = _case_a()


@dataclass
class Peer:
    """A server under test. `headers` authenticate; `model` is what it calls the upstream's model.

    names_headers: a person's token, of a tenant where names are looked for. metrics_url: where it tells of its ledger and its event loop.
    worker_model: a model that a LiteLLM worker beside it serves. reserve_ms: p50 of one hold's way to the database and
    back, committed.
    """

    name: str
    url: str
    model: str = "standard"
    headers: dict[str, str] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    note: str = ""
    names_headers: dict[str, str] = field(default_factory=dict)
    metrics_url: str = ""
    worker_model: str = ""
    reserve_ms: float = math.nan


@dataclass
class Inside:
    """What only a server of ours tells. batch: reserves and settles a commit. Lags: of the event loop at 64 connections.

    beside_ms: p99 at 64 connections while the LiteLLM worker on the same core is kept busy. with_worker_mb: memory then.
    """

    batch: float
    lag_mean_ms: float
    lag_99_ms: float
    reserve_ms: float
    beside_ms: float
    with_worker_mb: float


@dataclass
class Figures:
    """requests_per_s_64 and the latencies: case A. chunks_per_s: 64 streams. failed: of every case and of streams.

    memory_mb: before the names' dictionary is loaded, where there is one; with_names_mb: after it.
    """

    name: str
    requests_per_s_64: float
    case_b_64: float
    case_c_64: float
    chunks_per_s: float
    p50_ms_1: float
    p99_ms_1: float
    p50_ms_64: float
    p99_ms_64: float
    first_token_ms: float
    memory_mb: float
    with_names_mb: float
    failed: int
    note: str
    inside: Inside | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--only", default="", help="comma-separated names")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing (Debian: apt-get install wrk)")
    wanted = set(filter(None, options.only.split(",")))
    starters: list[Callable[[str, Path], contextlib.AbstractContextManager[Peer | None]]] = [
        direct, nginx, kumiai_postgres, kumiai_sqlite, kumiai_postgres_one_core, kumiai_postgres_2ms,
        kumiai_postgres_10ms, kumiai_sqlite_2ms, kumiai_sqlite_10ms, portkey, litellm_proxy, tensorzero,
    ]  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="kumiai-bench-"))
    # PostgreSQL runs as nobody when we are root, and must be able to reach its folder inside.
    folder.chmod(0o711)
    results: list[Figures] = []
    syncs = fdatasync_ms(folder)
    print(f"{interpreter()}; fdatasync p50 {syncs[0]:.2f} ms, p99 {syncs[1]:.2f} ms")
    try:
        with upstream(folder) as upstream_url:
            for start in starters:
                if wanted and start.__name__ not in wanted and start.__name__ != "direct":
                    continue
                with start(upstream_url, folder) as peer:
                    if peer is None:
                        continue
                    results.append(measure(peer, options.seconds))
                    print(line(results[-1], results[0]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = render(results, syncs, options.seconds)
    print(report)
    if options.output:
        options.output.write_text(report)


def measure(peer: Peer, seconds: int) -> Figures:
    warm_up(peer)
    one = wrk(peer, CASE_A, connections=1, seconds=seconds)
    before = _told(peer)
    many = wrk(peer, CASE_A, connections=64, seconds=seconds)
    after = _told(peer)
    loads = [one, many, wrk(peer, CASE_B, connections=64, seconds=seconds)]
    case_b, case_c = loads[-1].per_s, math.nan
    without_names_mb = _memory_mb(peer)
    if peer.names_headers:
        named = replace(peer, headers=peer.names_headers)
        warm_up(named)
        loads.append(wrk(named, CASE_B, connections=64, seconds=seconds))
        case_c = loads[-1].per_s
    loads.append(wrk(peer, BODY | {"stream": True}, connections=64, seconds=seconds))
    chunks_per_s = loads[-1].per_s * _events(peer)
    first = first_token_ms(peer)
    with_names_mb = _memory_mb(peer)
    inside = _inside(peer, before, after, seconds) if peer.metrics_url else None
    return Figures(
        peer.name, many.per_s, case_b, case_c, chunks_per_s, one.p50_ms, one.p99_ms, many.p50_ms, many.p99_ms, first,
        without_names_mb, with_names_mb, sum(load.failed for load in loads), peer.note, inside,
    )  # fmt: skip


def _inside(peer: Peer, before: Mapping[str, float], after: Mapping[str, float], seconds: int) -> Inside:
    def grown(name: str) -> float:
        return after[name] - before[name]

    items, commits = grown("kumiai_ledger_batch_items_sum"), grown("kumiai_ledger_batch_items_count")
    lag, looks = grown("kumiai_event_loop_lag_seconds_sum"), grown("kumiai_event_loop_lag_seconds_count")
    buckets = {n: grown(n) for n in after if n.startswith("kumiai_event_loop_lag_seconds_bucket")}
    # The upper edge of the bucket in which the 99th of 100 lies: it was not later than that.
    edge = next(name for name, number in buckets.items() if number >= 0.99 * looks)
    lag_99_s = float(edge.split('"')[1])
    beside_ms = _beside_the_worker(peer, seconds)
    return Inside(
        batch=items / commits if commits else math.nan,
        lag_mean_ms=lag / looks * 1000 if looks else math.nan,
        lag_99_ms=lag_99_s * 1000,
        reserve_ms=peer.reserve_ms,
        beside_ms=beside_ms,
        with_worker_mb=_memory_mb(peer),
    )


def _beside_the_worker(peer: Peer, seconds: int) -> float:
    """p99 at 64 connections, in ms, while four more connections keep the LiteLLM worker busy."""
    slow = replace(peer, model=peer.worker_model)
    warm_up(slow)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(wrk, slow, CASE_A, connections=4, seconds=seconds + 4)
        time.sleep(2)
        beside = wrk(peer, CASE_A, connections=64, seconds=seconds)
        worker = busy.result()
    assert worker.per_s > 0 and not worker.failed and not beside.failed, "the worker was not busy, or a call failed"
    return beside.p99_ms


def _memory_mb(peer: Peer) -> float:
    """Of all its processes; a page that several share counts once (PSS)."""
    return sum(_tree_pss(pid) for pid in peer.pids) / 1e6


def _events(peer: Peer) -> int:
    """How many events with data one streamed answer has."""
    with httpx.stream(
        "POST", peer.url, json=BODY | {"model": peer.model, "stream": True}, headers=peer.headers
    ) as answer:
        return sum(event.startswith("data:") for event in answer.iter_lines())


def _told(peer: Peer) -> dict[str, float]:
    """Every figure that a server of ours tells, by name and labels; nothing of the others."""
    if not peer.metrics_url:
        return {}
    told = urllib.request.urlopen(peer.metrics_url, timeout=5).read().decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^([a-z_]+(?:\{.*\})?) ([\d.e+-]+)$", told, re.MULTILINE)}


def warm_up(peer: Peer) -> None:
    body = json.dumps(BODY | {"model": peer.model}).encode()
    answered, said = 0, b""
    for _ in range(20):
        request = urllib.request.Request(peer.url, body, {"content-type": "application/json", **peer.headers})
        # A busy disk may refuse one call of the first few; what counts is counted later.
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answered += b"choices" in answer.read()
        except urllib.error.HTTPError as refused:
            said = refused.read()
    assert answered, f"{peer.name} answers no call: {said.decode()}"


class Load(NamedTuple):
    """A closed loop's answers each second, their times, and how many calls failed: refused, broken off or never answered."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def wrk(peer: Peer, asked: Mapping[str, object], *, connections: int, seconds: int) -> Load:
    script = Path(tempfile.mkstemp(suffix=".lua")[1])
    headers = "".join(f'wrk.headers["{k}"] = "{v}"\n' for k, v in peer.headers.items())
    body = json.dumps({**asked, "model": peer.model}, ensure_ascii=asked is CASE_A)
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = [==[{body}]==]\nwrk.headers["content-type"] = "application/json"\n{headers}'
    )
    done = subprocess.run(
        ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s",
         "-s", str(script), peer.url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    script.unlink()
    out = done.stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    failed = sum(int(number) for found in (refused, broken) if found for number in found.groups())
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert rate, out
    return Load(float(rate.group(1)), _percentile(out, "50%"), _percentile(out, "99%"), failed)


def _percentile(text: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s)", text)
    assert found, text
    return float(found.group(1)) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found.group(2)]


def first_token_ms(peer: Peer, *, calls: int = 60) -> float:
    """p50 from sending a streamed request to its first event with content, over one connection."""
    times = []
    body = BODY | {"model": peer.model, "stream": True}
    with httpx.Client(timeout=30) as client:
        for _ in range(calls):
            began = time.perf_counter()
            with client.stream("POST", peer.url, json=body, headers=peer.headers) as answer:
                if answer.status_code != 200:
                    return math.nan
                first = None
                # To the end, so that the connection is used again.
                for event in answer.iter_lines():
                    if first is None and event.startswith("data:") and _has_content(event):
                        first = (time.perf_counter() - began) * 1000
            assert first is not None, f"{peer.name} streamed no content"
            times.append(first)
    return statistics.median(times)


def _has_content(event: str) -> bool:
    """True for an event with text in its first choice; the opening event carries an empty one."""
    data = event.removeprefix("data:").strip()
    choices = json.loads(data).get("choices") if data.startswith("{") else None
    return bool(choices and choices[0].get("delta", {}).get("content"))


def interpreter() -> str:
    """Ours and LiteLLM's. How it was built makes more difference than most changes of ours, and a build does not say."""

    class Small:
        __slots__ = ("a", "b")

        def __init__(self, a: int, b: int) -> None:
            self.a, self.b = a, b

    def many() -> None:
        for _ in range(1_000):
            Small(1, 2)

    made_ns = min(timeit.repeat(many, number=1, repeat=300)) * 1e6
    return f"CPython {platform.python_version()} ({made_ns:.0f} ns to make a small object)"


def fdatasync_ms(folder: Path) -> tuple[float, float]:
    """p50 and p99 of writing 4 KiB to the disk."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(1_000):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def _tree_pss(pid: int) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)])
    return 0


def line(figures: Figures, direct_figures: Figures) -> str:
    return (
        f"{figures.name:<18} A {figures.requests_per_s_64:>6.0f}  B {figures.case_b_64:>6.0f}  C {figures.case_c_64:>5.0f} "
        f"req/s@64  {figures.chunks_per_s:>7.0f} chunks/s  p50@1 {figures.p50_ms_1:7.2f} ms "
        f"(+{figures.p50_ms_1 - direct_figures.p50_ms_1:6.2f})  p99@1 {figures.p99_ms_1:7.2f}  "
        f"p50@64 {figures.p50_ms_64:8.2f}  p99@64 {figures.p99_ms_64:8.2f}  "
        f"first token {figures.first_token_ms:6.2f}  {figures.memory_mb:6.0f} MB, {figures.with_names_mb:.0f} with names  failed {figures.failed}"
        + (f"  {figures.inside}" if figures.inside else "")
    )


def render(results: list[Figures], syncs: tuple[float, float], seconds: int) -> str:
    base = next(r for r in results if r.name == "direct")
    proxy = next((r for r in results if r.name == "litellm_proxy"), None)
    lines = [
        f"{interpreter()}. One run, {seconds} s per figure, server on one core, load on the other; fdatasync p50 {syncs[0]:.2f} ms, p99 {syncs[1]:.2f}.",
        "",
        "| server | A: req/s at 64 | × LiteLLM proxy | B | C | chunks/s of 64 streams | p50 at 1, ms | overhead at 1, ms | p99 at 1 | p50 at 64 | p99 at 64 "
        "| first token over direct, ms | memory, MB | with names | failed | note |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ratio = f"{r.requests_per_s_64 / proxy.requests_per_s_64:.1f}" if proxy else "–"
        lines.append(
            f"| {r.name} | {r.requests_per_s_64:.0f} | {ratio} | {r.case_b_64:.0f} | {_or_dash(r.case_c_64, 0)} "
            f"| {r.chunks_per_s:.0f} | {r.p50_ms_1:.2f} | {r.p50_ms_1 - base.p50_ms_1:.2f} "
            f"| {r.p99_ms_1:.2f} | {r.p50_ms_64:.2f} | {r.p99_ms_64:.2f} "
            f"| {r.first_token_ms - base.first_token_ms:.2f} | {r.memory_mb:.0f} | {r.with_names_mb:.0f} | {r.failed} | {r.note} |"
        )
    lines += [
        "",
        "| server | a commit's batch | event loop late, mean ms | 99 of 100 times at most, ms | a reserve's way p50, ms "
        "| p99 at 64 beside a busy LiteLLM worker, ms | × alone | memory with it, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if (i := r.inside) is not None:
            lines.append(
                f"| {r.name} | {_or_dash(i.batch, 1)} | {i.lag_mean_ms:.1f} | {i.lag_99_ms:.0f} | {_or_dash(i.reserve_ms, 2)} "
                f"| {i.beside_ms:.1f} | {i.beside_ms / r.p99_ms_64:.1f} | {i.with_worker_mb:.0f} |"
            )
    if proxy:
        lines += ["", *_aims(results, base, proxy, syncs[0])]
    return "\n".join(lines) + "\n"


def _aims(results: list[Figures], base: Figures, proxy: Figures, sync_ms: float) -> list[str]:
    """The floor and the ambition of each figure beside what was reached, as lines of a table."""
    tensorzero = next((r.requests_per_s_64 for r in results if r.name == "tensorzero"), math.nan)
    lines = ["| server | figure | floor | ambitious | reached | |", "|---|---|---|---|---|---|"]
    for r in results:
        if r.inside is None or r.name not in ("kumiai_postgres", "kumiai_sqlite"):
            continue
        # A call waits for one commit; on PostgreSQL also for the way there and back, in which its commit is.
        commit = 1.2 * sync_ms + (r.inside.reserve_ms if r.name == "kumiai_postgres" else 0.0)
        least = max(75 * proxy.requests_per_s_64, 6_000.0, 0.0 if math.isnan(tensorzero) else tensorzero)
        added, first = r.p50_ms_1 - base.p50_ms_1, r.first_token_ms - base.first_token_ms
        for figure, floor, ambitious, reached, higher in (
            ("A at 64, req/s (75 × LiteLLM's proxy and above TensorZero)", least, 12_000.0, r.requests_per_s_64, True),
            ("B at 64, req/s", 2_000.0, 6_000.0, r.case_b_64, True),
            ("A, added p50 at 1, ms", 0.45 + commit, 0.25 + commit, added, False),
            ("added first token, ms", 0.6 + commit, 0.34 + commit, first, False),
            ("chunks/s of 64 streams", 20_000.0, 30_000.0, r.chunks_per_s, True),
            ("memory without LiteLLM, MB", 250.0, 120.0, r.memory_mb, False),
            ("memory with LiteLLM in its worker and names, MB", 250.0, math.nan, r.inside.with_worker_mb, False),
            ("p99 beside a busy LiteLLM worker, × alone", 3.0, math.nan, r.inside.beside_ms / r.p99_ms_64, False),
        ):
            places = 2 if figure.endswith("ms") else 1 if "×" in figure and not higher else 0
            words = [
                "ambitious" if _is_reached(reached, ambitious, higher=higher) else "",
                "floor" if _is_reached(reached, floor, higher=higher) else "**not reached**",
            ]
            lines.append(
                f"| {r.name} | {figure} | {floor:.{places}f} | {_or_dash(ambitious, places)} | {reached:.{places}f} "
                f"| {next(filter(None, words))} |"
            )
    return lines


def _is_reached(value: float, aim: float, *, higher: bool) -> bool:
    return value >= aim if higher else value <= aim


def _or_dash(value: float, places: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{places}f}"


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def process(
    words: list[str], folder: Path, name: str, *, core: str = SERVER_CORE, env: dict[str, str] | None = None
) -> Iterator[int]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", core, *words],
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},  # noqa: TID251 - a tool's own edge
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.terminate()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def upstream(folder: Path) -> Iterator[str]:
    port = free_port()
    with process([sys.executable, "-m", "loadtests.upstream", "--port", str(port)], folder, "upstream", core=LOAD_CORE):
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def direct(upstream_url: str, _folder: Path) -> Iterator[Peer]:
    yield Peer("direct", f"{upstream_url}/v1/chat/completions", note="the fake upstream itself")


@contextmanager
def nginx(upstream_url: str, folder: Path) -> Iterator[Peer | None]:
    if shutil.which("nginx") is None:
        yield None
        return
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; keepalive_requests 1000000;\n"
        f"upstream up {{ server {upstream_url.removeprefix('http://')}; keepalive 128; keepalive_requests 1000000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    with process(["nginx", "-c", str(config), "-p", str(folder)], folder, "nginx") as pid:
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        yield Peer("nginx", f"http://127.0.0.1:{port}/v1/chat/completions", pids=[pid], note="proxy_pass, keep-alive")


@contextmanager
def litellm_proxy(upstream_url: str, folder: Path) -> Iterator[Peer | None]:
    program = CACHE / "litellm/bin/litellm"
    if not program.exists():
        yield None
        return
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: standard\n    litellm_params:\n      model: openai/standard\n"
        f"      api_base: {upstream_url}/v1\n      api_key: none\n"
    )
    env = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "NO_DOCS": "True",
        "LITELLM_MASTER_KEY": "sk-bench",
    }
    words = [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    with process(words, folder, "litellm", env=env) as pid:
        wait_for(f"http://127.0.0.1:{port}/health/liveliness", seconds=120)
        yield Peer(
            "litellm_proxy",
            f"http://127.0.0.1:{port}/v1/chat/completions",
            pids=[pid],
            headers={"authorization": "Bearer sk-bench"},
            note="master key only, no budget, no DB",
        )


@contextmanager
def portkey(upstream_url: str, folder: Path) -> Iterator[Peer | None]:
    server = CACHE / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    if not server.exists():
        yield None
        return
    port = free_port()
    with process(["node", str(server), f"--port={port}", "--headless"], folder, "portkey") as pid:
        wait_for(f"http://127.0.0.1:{port}/")
        yield Peer(
            "portkey",
            f"http://127.0.0.1:{port}/v1/chat/completions",
            headers={
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{upstream_url}/v1",
                "authorization": "Bearer none",
            },
            pids=[pid],
            note="no keys, no budget",
        )


@contextmanager
def tensorzero(upstream_url: str, folder: Path) -> Iterator[Peer | None]:
    python = CACHE / "tensorzero/bin/python"
    if not python.exists():
        print("tensorzero         not measured: its package is not installed")
        yield None
        return
    config = folder / "tensorzero.toml"
    config.write_text(
        "[gateway]\nobservability.enabled = false\n"
        '[models.standard]\nrouting = ["up"]\n[models.standard.providers.up]\ntype = "openai"\nmodel_name = "standard"\n'
        f'api_base = "{upstream_url}/v1/"\napi_key_location = "none"\n'
    )
    program = Path(__file__).with_name("tensorzero_gateway.py")
    with process([str(python), str(program), str(config)], folder, "tensorzero") as pid:
        deadline = time.monotonic() + 60
        address = None
        while address is None:
            assert time.monotonic() < deadline, (folder / "tensorzero.log").read_text()[-500:]
            time.sleep(0.1)
            address = re.search(r"^http://\S+$", (folder / "tensorzero.log").read_text(), re.MULTILINE)
        yield Peer(
            "tensorzero",
            f"{address.group()}/chat/completions",
            model="tensorzero::model_name::standard",
            pids=[pid],
            note="the gateway of its Python package; no keys, no budget",
        )


@contextmanager
def kumiai_sqlite(upstream_url: str, folder: Path, *, wait_ms: int = 0) -> Iterator[Peer | None]:
    env: dict[str, str] = {}
    if wait_ms:
        if shutil.which("cc") is None:
            print("kumiai_sqlite with a slower disk: not measured, no C compiler")
            yield None
            return
        env = {"LD_PRELOAD": str(_slow_sync(folder)), "BENCH_SYNC_DELAY_US": str(wait_ms * 1000)}
    with _kumiai(upstream_url, folder / f"kumiai-sqlite-{wait_ms}", env, "kumiai_sqlite") as peer:
        peer.note = "API key, durable budget on SQLite (synchronous=FULL)"
        yield peer


@contextmanager
def kumiai_sqlite_2ms(upstream_url: str, folder: Path) -> Iterator[Peer | None]:
    with kumiai_sqlite(upstream_url, folder, wait_ms=2) as peer:
        yield peer and replace(peer, name="kumiai_sqlite_2ms", note="the same, every fsync 2 ms longer")


@contextmanager
def kumiai_sqlite_10ms(upstream_url: str, folder: Path) -> Iterator[Peer | None]:
    with kumiai_sqlite(upstream_url, folder, wait_ms=10) as peer:
        yield peer and replace(peer, name="kumiai_sqlite_10ms", note="the same, every fsync 10 ms longer")


def _slow_sync(folder: Path) -> Path:
    """A library that makes every fsync of the process it is preloaded in take longer."""
    library = folder / "slow_sync.so"
    source = Path(__file__).with_name("slow_sync.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library


@contextmanager
def kumiai_postgres(
    upstream_url: str, folder: Path, *, wait_ms: int = 0, core: str = LOAD_CORE, name: str = "kumiai_postgres"
) -> Iterator[Peer]:
    """core: PostgreSQL's own processes. In a cluster they have a machine of their own."""
    from tenants.schema import LOGINS, bootstrap_postgres

    server = Postgres(folder / f"{name}-data", fsync=True)
    server.start()
    try:
        # What it starts later is on the same core.
        for process in [p for p in psutil.process_iter() if str(server.folder) in " ".join(_command(p))]:
            for one in [process, *process.children()]:
                one.cpu_affinity([int(core)])
        let_commits_wait(server, wait_ms * 1000)
        urls = bootstrap_postgres(server.access, "kumiai", dict.fromkeys(LOGINS, "bench"))
        env = {
            "KUMIAI_DATABASE_URL": urls.app,
            "KUMIAI_PLATFORM_DATABASE_URL": urls.platform,
            "KUMIAI_LEDGER_DATABASE_URL": urls.ledger,
            "KUMIAI_CONTENT_DATABASE_URL": urls.content,
            "KUMIAI_OWNER_DATABASE_URL": urls.owner,
        }
        with _kumiai(upstream_url, folder / name, env, name) as peer:
            peer.note = "API key, durable budget on PostgreSQL (fsync on), which runs on the load's core"
            yield peer
    finally:
        server.stop()


@contextmanager
def kumiai_postgres_one_core(upstream_url: str, folder: Path) -> Iterator[Peer]:
    with kumiai_postgres(upstream_url, folder, core=SERVER_CORE, name="kumiai_postgres_one_core") as peer:
        yield replace(peer, note="the same, PostgreSQL on the gateway's core")


@contextmanager
def kumiai_postgres_2ms(upstream_url: str, folder: Path) -> Iterator[Peer]:
    with kumiai_postgres(upstream_url, folder, wait_ms=2, name="kumiai_postgres_2ms") as peer:
        yield replace(peer, note="the same, every commit 2 ms later")


@contextmanager
def kumiai_postgres_10ms(upstream_url: str, folder: Path) -> Iterator[Peer]:
    with kumiai_postgres(upstream_url, folder, wait_ms=10, name="kumiai_postgres_10ms") as peer:
        yield replace(peer, note="the same, every commit 10 ms later")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def let_commits_wait(server: Postgres, delay_us: int) -> None:
    """As a slower disk would make them."""
    access = server.access
    with psycopg.connect(access.url("postgres", access.superuser, access.password), autocommit=True) as connection:
        for setting in (f"commit_delay = {delay_us}", "commit_siblings = 0"):
            connection.execute(f"alter system set {setting}")
        connection.execute("select pg_reload_conf()")


@contextmanager
def _kumiai(upstream_url: str, home: Path, env: dict[str, str], name: str) -> Iterator[Peer]:
    from loadtests.bench.town import MODEL, a_persons_token, prepare_towns, reserve_ms

    home.mkdir()
    port = free_port()
    with issuing() as issuer:
        env = env | {
            "KUMIAI_HOME": str(home),
            "KUMIAI_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "KUMIAI_ISSUER": issuer.url,
            "KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"{upstream_url}/v1",
            "KUMIAI_OPENAI_COMPATIBLE_MODEL": "standard",
            "KUMIAI_CATALOGUE_FILE": str(_catalogue(upstream_url, home)),
        }
        key, _ = asyncio.run(prepare_towns(env, 2, last_looks_for_names=True))
        a_reserve_ms = asyncio.run(reserve_ms(env))
        words = [sys.executable, "-m", "kumiai", "gateway", "--port", str(port)]
        with process(words, home, name, env=env) as pid:
            wait_for(f"http://127.0.0.1:{port}/health/ready")
            token = asyncio.run(a_persons_token(env, issuer))
            yield Peer(
                name,
                f"http://127.0.0.1:{port}/v1/chat/completions",
                model=MODEL,
                headers={"authorization": f"Bearer {key}", "kumiai-data-class": "1"},
                pids=[pid],
                names_headers={"authorization": f"Bearer {token}", "kumiai-data-class": "2"},
                metrics_url=f"http://127.0.0.1:{port}/metrics",
                worker_model="routed",
                reserve_ms=a_reserve_ms,
            )


def _catalogue(upstream_url: str, home: Path) -> Path:
    """The same upstream once more, by the third way: LiteLLM's Router in its worker."""
    open_fact = {"unconfirmed": True, "note": "a bench"}
    facts = ("retention_days", "abuse_monitoring_days", "trains_on_input", "ismap", "lgwan_asp", "subprocessors")
    entry = {
        "id": "bench/routed", "aliases": ["routed"], "vendor": "bench", "wire": "litellm_router",
        "model": "openai/standard", "base_url": f"{upstream_url}/v1", "key_file": str(home / "upstream.key"),
        "zone": "onprem", "owner": "shared", "country": "JP", "operator": "bench", "operations": ["chat/completions"],
        "max_input_tokens": 131_072, "max_output_tokens": 4_096,
        "price": {"currency": "JPY", "input_u_per_mtok": 0, "output_u_per_mtok": 0, "source": "bench", "checked": "2026-11-28"},
        **dict.fromkeys(facts, open_fact),
        "contract_expires_on": None, "retires_on": None, "successor": "", "verified": "bench",
    }  # fmt: skip
    (home / "upstream.key").write_text("any")
    path = home / "catalogue.yaml"
    path.write_text(yaml.safe_dump({"deployments": [entry]}))
    return path


if __name__ == "__main__":
    main()
