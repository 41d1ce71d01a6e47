"""From a clean clone to the first words of an answer, as a newcomer and a clerk see it.

`.venv/bin/python -m loadtests.first_answer`: `git clone` of this repository's commit, `make demo`, sign in, ask. The
browser is open before, as a person's is. `--empty` gives the run a cache folder of its own, with nothing in it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

from apps.sdk.testing import DemoPerson
from tests.browsers import CHROMIUM_FLAGS, find_chromium, sign_in
from tests.e2e.chat_page import ChatPage

ROOT = Path(__file__).parents[1]
LIMIT_S = 300
QUESTION = "防災訓練のお知らせを書いてください"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--empty", action="store_true", help="an empty package cache")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--of", type=Path, default=ROOT, help="another repository or worktree to clone")
    given = options.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_FLAGS))
        for _ in range(given.runs):
            folder = Path(tempfile.mkdtemp(prefix="kumiai-first-"))
            try:
                _run(browser, given.of, folder, is_empty=given.empty)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        browser.close()


def _run(browser: Browser, repository: Path, folder: Path, *, is_empty: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KUMIAI_") and "API_KEY" not in k}  # noqa: TID251 - what a shell has
    if is_empty:
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
    clone = folder / "kumiai"
    load = os.getloadavg()[0]
    began = time.monotonic()
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    demo = subprocess.Popen(
        ["make", "-s", "demo", "PORT=0"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert demo.stdout is not None
        installed = 0.0
        for line in demo.stdout:
            if "用意しています" in line:
                installed = time.monotonic() - began
            if "同じ内容は" in line:
                break
        ready = time.monotonic() - began
        facts = json.loads((clone / ".kumiai" / "demo.json").read_text())
        clerk = next(DemoPerson(**p) for p in facts["people"] if p["role"] == "staff")
        page = browser.new_context(base_url=facts["base_url"], locale="ja-JP").new_page()
        sign_in(page, clerk.tenant, clerk.login, clerk.password)
        chat = ChatPage(page).open()
        chat.box.fill(QUESTION)
        chat.send.click()
        expect(page.locator(".is-coming")).not_to_be_empty(timeout=LIMIT_S * 1000)
        answered = time.monotonic() - began
        resident = _resident_mb(demo.pid)
        page.context.close()
    finally:
        os.killpg(demo.pid, signal.SIGINT)
        demo.wait(LIMIT_S)
    print(
        f"installed {installed:.1f} s, demo ready {ready:.1f} s, first answer {answered:.1f} s; "
        f"{resident[0]:.0f} MB resident, {resident[1]:.0f} MB proportional; load before {load:.1f}",
        flush=True,
    )


def _resident_mb(group: int) -> tuple[float, float]:
    """Of the demo's Python processes: the sum of resident memory, and with shared pages counted once."""
    totals = {"Rss:": 0, "Pss:": 0}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and b"kumiai" in (process / "cmdline").read_bytes() and _is_of(process, group):
                for line in (process / "smaps_rollup").read_text().splitlines():
                    word, _, rest = line.partition(" ")
                    if word in totals:
                        totals[word] += int(rest.split()[0])
        except OSError:
            continue
    return totals["Rss:"] / 1024, totals["Pss:"] / 1024


def _is_of(process: Path, ancestor: int) -> bool:
    pid = int(process.name)
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    main()
