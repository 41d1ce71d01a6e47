"""A server of ours ends when told to, and what a killed parent left behind ends at the next start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kumiai.local.child import Child

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = """
import sys, time
from pathlib import Path
from kumiai.local.child import Child
Child(Path(sys.argv[1]), "server").start([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _pid(folder: Path) -> int:
    return int((folder / "server.pid").read_text().split()[0])


def test_a_server_whose_parent_was_killed_ends_at_the_next_start(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    orphan = _pid(tmp_path)
    assert _runs(orphan)
    child = Child(tmp_path, "server")
    child.start(SLEEPER)
    assert not _runs(orphan)
    assert not child.has_ended
    child.stop()
    assert child.has_ended


def test_a_process_that_got_the_number_later_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(SLEEPER, start_new_session=True)
    (tmp_path / "server.pid").write_text(f"{stranger.pid} 1")
    child = Child(tmp_path, "server")
    child.start(SLEEPER)
    child.stop()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_what_the_server_started_ends_with_it(tmp_path: Path) -> None:
    inner = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(p.pid, flush=True); p.wait()"
    child = Child(tmp_path, "server")
    child.start([sys.executable, "-c", inner])
    deadline = time.monotonic() + 10
    while not child.log.read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.02)
    grandchild = int(child.log.read_text())
    assert _runs(grandchild)
    child.stop()
    deadline = time.monotonic() + 5
    while _runs(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(grandchild)
    assert os.getpid() != grandchild
