"""A region of many towns on one PostgreSQL: how calls/s grows with gateway processes.

Every process has a load of its own, which takes its towns in turn. Three series: as the machine is, where processes
share its cores; with commits that wait (`commit_delay`), where a process idles between its commits and only rows that
several of them lock keep a second one from adding as much as the first; and the same where each process has towns of
its own, so that only a row of the whole region could.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kumiai.local.postgres import Postgres, free_port
from loadtests.bench.__main__ import BODY, let_commits_wait, process, upstream, wait_for
from loadtests.bench.town import MODEL, prepare_towns
from tenants.schema import LOGINS, bootstrap_postgres

TOWNS = 60
PROCESSES = (1, 2, 4)
CONNECTIONS = 16
COMMIT_DELAY_US = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--towns", type=int, default=TOWNS)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing (Debian: apt-get install wrk)")
    folder = Path(tempfile.mkdtemp(prefix="kumiai-region-"))
    folder.chmod(0o711)
    server = Postgres(folder / "pg", fsync=True)
    server.start()
    try:
        urls = bootstrap_postgres(server.access, "kumiai", dict.fromkeys(LOGINS, "bench"))
        with upstream(folder) as upstream_url:
            env = {
                "KUMIAI_HOME": str(folder),
                "KUMIAI_PUBLIC_URL": "http://127.0.0.1",
                "KUMIAI_DATABASE_URL": urls.app,
                "KUMIAI_PLATFORM_DATABASE_URL": urls.platform,
                "KUMIAI_LEDGER_DATABASE_URL": urls.ledger,
                "KUMIAI_CONTENT_DATABASE_URL": urls.content,
                "KUMIAI_OWNER_DATABASE_URL": urls.owner,
                "KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"{upstream_url}/v1",
                "KUMIAI_OPENAI_COMPATIBLE_MODEL": MODEL,
                "KUMIAI_LOG_LEVEL": "WARNING",
            }
            keys = asyncio.run(prepare_towns(env, options.towns))
            print(f"{options.towns} towns, {CONNECTIONS} connections to each process, {options.seconds} s each\n")
            print("| commits | towns | processes | calls/s | of one process |\n|---|---|---|---|---|")
            for delay_us, apart in ((0, False), (COMMIT_DELAY_US, False), (COMMIT_DELAY_US, True)):
                let_commits_wait(server, delay_us)
                first = 0.0
                for count in PROCESSES:
                    rate = measure(count, keys, env, folder, options.seconds, apart=apart)
                    first = first or rate
                    words = f"wait {delay_us / 1000:.0f} ms" if delay_us else "as they are"
                    whose = "of one process each" if apart else "of all processes"
                    print(f"| {words} | {whose} | {count} | {rate:.0f} | {rate / first:.2f} |", flush=True)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measure(count: int, keys: list[str], env: dict[str, str], folder: Path, seconds: int, *, apart: bool) -> float:
    """Calls/s of all processes together; apart: no two of them serve the same town. Raises when a call failed."""
    with ExitStack() as stack:
        ports = [stack.enter_context(_gateway(env, folder, number)) for number in range(count)]
        for port in ports:
            _warm_up(port, keys)
        loads = [_load(port, keys[n::count] if apart else keys, folder, seconds) for n, port in enumerate(ports)]
        outputs = [load.communicate()[0] for load in loads]
    rates = 0.0
    for output in outputs:
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        if "Non-2xx" in output or found is None:
            raise RuntimeError(output)
        rates += float(found[1])
    return rates


@contextmanager
def _gateway(env: dict[str, str], folder: Path, number: int) -> Iterator[int]:
    port = free_port()
    words = [sys.executable, "-m", "kumiai", "gateway", "--port", str(port)]
    every_core = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    with process(words, folder, f"gateway-{number}", core=every_core, env=env):
        wait_for(f"http://127.0.0.1:{port}/health/ready")
        yield port


def _warm_up(port: int, keys: list[str]) -> None:
    """Every key once, so that the first lookups are not what is measured."""
    for key in keys:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(BODY | {"model": MODEL}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {key}"},
        )
        urllib.request.urlopen(request, timeout=30).close()


def _load(port: int, keys: list[str], folder: Path, seconds: int) -> subprocess.Popen[str]:
    script = folder / f"load-{port}.lua"
    listed = ", ".join(f'"Bearer {key}"' for key in keys)
    body = json.dumps(BODY | {"model": MODEL})
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = [==[{body}]==]\nwrk.headers["content-type"] = "application/json"\n'
        f"local keys = {{{listed}}}\nlocal turn = 0\n"
        'request = function()\n  turn = turn % #keys + 1\n  wrk.headers["authorization"] = keys[turn]\n'
        "  return wrk.format()\nend\n"
    )
    return subprocess.Popen(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script),
         f"http://127.0.0.1:{port}/v1/chat/completions"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
