"""What a second copy does to the tail of embeddings, when one of two servers stops now and then.

`.venv/bin/python -m loadtests.hedging`: a gateway process on SQLite before two processes of the fake model, once without
`hedge` in its catalogue and once with it. Calls come at their times, whoever has been answered; a run whose calls left
late is void.
"""

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from kumiai.local.postgres import free_port
from tenants.db import DatabaseUrls
from tenants.schema import migrate
from tests.gateways import Region

# Every so often the first server stands still for so long, as one does that loads, compacts or swaps.
STOPS_EVERY_S, STOPS_FOR_S = 10.0, 0.4
ANSWERS_AFTER_MS = 20
TEXTS = ("query: 保育園の申込期限を教えてください", "passage: " + "申込書は役場の窓口か出張所で受け取れます。" * 8)
MAX_LAG_S = 0.05
# As many calls tell the gateway what is usual.
WARM_UP = 200


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=1000)
    options.add_argument("--per-second", type=float, default=20.0)
    given = options.parse_args()
    print("| hedge | calls | p50 ms | p95 ms | p99 ms | longest ms | second copies | of them answered first |")
    print("|---|---|---|---|---|---|---|---|")
    with _server() as (first, process), _server() as (second, _):
        for hedge in (False, True):
            print(_measured(first, second, process, given.calls, given.per_second, hedge=hedge), flush=True)


def _measured(
    first: str, second: str, process: subprocess.Popen[bytes], calls: int, per_second: float, *, hedge: bool
) -> str:
    with tempfile.TemporaryDirectory(prefix="kumiai-hedging-") as folder:
        home = Path(folder)
        urls = DatabaseUrls(f"sqlite:///{home / 'kumiai.sqlite3'}")
        migrate(urls)
        catalogue = home / "catalogue.yaml"
        entries = [_entry(name, url, hedge=hedge) for name, url in (("first", first), ("second", second))]
        catalogue.write_text(yaml.safe_dump({"deployments": entries}, allow_unicode=True))
        region = Region(
            home, urls, KUMIAI_CATALOGUE_FILE=str(catalogue), KUMIAI_LOG_LEVEL="WARNING",
            # As it is outside tests.
            KUMIAI_GATEWAY_RETRY_SHARE="0.1",
        )  # fmt: skip
        town = region.make_town(month_yen=1)
        with region.gateway() as gateway:
            asyncio.run(_load(gateway.url, town.key, WARM_UP, per_second))
            with _stopping_now_and_then(process):
                took_s = sorted(asyncio.run(_load(gateway.url, town.key, calls, per_second)))
        region.settled(town, calls)
        counted = Counter((a.number, a.problem) for a in region.attempts(town))
    shown = [f"{1000 * took_s[min(int(len(took_s) * share), len(took_s) - 1)]:.0f}" for share in (0.5, 0.95, 0.99, 1)]
    sent = sum(n for (number, _), n in counted.items() if number == 2)
    return f"| {'yes' if hedge else 'no'} | {calls} | {' | '.join(shown)} | {sent} | {counted[2, '']} |"


async def _load(url: str, key: str, calls: int, per_second: float) -> list[float]:
    """How long each call took, from when it was to leave."""
    headers = {"authorization": f"Bearer {key}"}
    lags: list[float] = []

    async def one(client: httpx.AsyncClient, number: int, at: float) -> float:
        await asyncio.sleep(at - time.monotonic())
        lags.append(time.monotonic() - at)
        body = {"model": "embedding", "input": TEXTS[number % len(TEXTS)]}
        answer = await client.post(f"{url}/v1/embeddings", json=body, headers=headers)
        answer.raise_for_status()
        return time.monotonic() - at

    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        # What a client does once, at its first call.
        (await client.get(f"{url}/health/ready")).raise_for_status()
        began = time.monotonic() + 0.5
        took = await asyncio.gather(*(one(client, n, began + n / per_second) for n in range(calls)))
    if calls > WARM_UP and (lag := sorted(lags)[len(lags) * 99 // 100]) > MAX_LAG_S:
        sys.exit(f"void: calls left {lag * 1000:.0f} ms late")
    return list(took)


@contextlib.contextmanager
def _stopping_now_and_then(process: subprocess.Popen[bytes]) -> Iterator[None]:
    words = f"while sleep {STOPS_EVERY_S - STOPS_FOR_S}; do kill -STOP {process.pid}; sleep {STOPS_FOR_S}; kill -CONT {process.pid}; done"  # fmt: skip
    stopper = subprocess.Popen(["sh", "-c", words])
    try:
        yield
    finally:
        stopper.terminate()
        stopper.wait()
        process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.upstream", "--port", str(port), "--delay-ms", str(ANSWERS_AFTER_MS)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).raise_for_status()
                break
            time.sleep(0.1)
        else:
            sys.exit("the fake model did not start")
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.terminate()
        process.wait()


def _entry(name: str, url: str, *, hedge: bool) -> dict[str, object]:
    fact = {"unconfirmed": True, "note": "見本"}
    facts = ("retention_days", "abuse_monitoring_days", "trains_on_input", "ismap", "lgwan_asp", "subprocessors")
    return {
        "id": f"trial/{name}", "aliases": ["embedding"], "vendor": "見本", "wire": "openai_wire", "model": "m",
        "base_url": url, "zone": "onprem", "owner": "shared", "country": "JP", "operator": "見本",
        "operations": ["embeddings"], "max_input_tokens": 512, "max_output_tokens": 0, "hedge": hedge,
        "price": {"currency": "JPY", "input_u_per_mtok": 0, "output_u_per_mtok": 0, "source": "見本",
                  "checked": "2026-11-28"},
        **dict.fromkeys(facts, fact),
        "contract_expires_on": None, "retires_on": None, "successor": "", "verified": "見本",
    }  # fmt: skip


if __name__ == "__main__":
    main()
