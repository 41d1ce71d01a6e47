"""What a forked process has of its parent, and what it has not. The parent is a process of its own: it has one thread."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PARENT = """
import json, os, signal, sys, time
from kumiai.forking import Child, fork

def child():
    {child}

out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.environ["OF_THE_PARENT"] = "1"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
secret = open("/dev/null")
pid = fork(child, environment={{"GIVEN": "2"}}, files={{1: out, 2: out, 9: out}}, title="a new name", cwd="/")
one = Child(pid)
{parent}
print(json.dumps({{"pid": pid, "code": one.wait(20)}}))
"""


def forked(tmp_path: Path, child: str, parent: str = "") -> tuple[dict[str, Any], str]:
    """What the parent tells, and what the child wrote."""
    wrote = tmp_path / "wrote"
    done = subprocess.run(
        [sys.executable, "-c", PARENT.format(child=child, parent=parent), str(wrote)], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), wrote.read_text()


def test_it_has_what_it_was_given_and_no_more(tmp_path: Path) -> None:
    child = (
        'print(json.dumps({"environment": dict(os.environ), "files": sorted(map(int, os.listdir("/proc/self/fd"))), '
        '"title": open("/proc/self/comm").read(), "in": sys.stdin.read(), "cwd": os.getcwd(), '
        '"term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL}))'
    )
    told, wrote = forked(tmp_path, child)
    assert told["code"] == 0
    own = json.loads(wrote)
    # The last is the list's own.
    assert own.pop("files") in ([0, 1, 2, 3, 9], [0, 1, 2, 9, 10])
    assert own == {"environment": {"GIVEN": "2"}, "title": "a new name\n", "in": "", "cwd": "/", "term": True}


@pytest.mark.parametrize(("child", "code", "words"), [
    ("sys.exit(3)", 3, ""),
    ("sys.exit('said plainly')", 1, "said plainly\n"),
    ("raise ValueError('broken')", 1, "ValueError: broken"),
    ("import atexit; atexit.register(print, 'last words')", 0, "last words\n"),
    ("import threading; threading.Timer(0.2, print, ['from a thread']).start()", 0, "from a thread\n"),
    ("os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
], ids=["a code", "a word", "an error", "at its end", "a thread", "a signal"])  # fmt: skip
def test_it_ends_as_an_interpreter_does(tmp_path: Path, child: str, code: int, words: str) -> None:
    told, wrote = forked(tmp_path, child)
    assert told["code"] == code
    assert words in wrote


def test_it_is_waited_for_and_stopped_as_any_process(tmp_path: Path) -> None:
    parent = (
        "import subprocess\n"
        "assert one.poll() is None\n"
        "try: one.wait(0.1)\n"
        "except subprocess.TimeoutExpired: one.terminate()"
    )
    told, _ = forked(tmp_path, "time.sleep(60)", parent)
    assert told["code"] == -15
    with pytest.raises(ProcessLookupError):
        os.kill(told["pid"], 0)
