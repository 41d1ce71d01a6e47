"""A server process of ours: its log, its end, and the end of what a killed parent left behind."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_S = 20


class Child:
    """One server of a folder. A second start in the same folder first ends what still runs from the one before."""

    def __init__(self, folder: Path, name: str, *, ends_by: signal.Signals = signal.SIGTERM) -> None:
        self.log = folder / f"{name}.log"
        self._mark = folder / f"{name}.pid"
        self._ends_by = ends_by
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, words: Sequence[object], *, environment: Mapping[str, str] | None = None) -> None:
        """Starts it in a session of its own, so that Ctrl-C reaches the parent alone."""
        self._end_leftover()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - programs of our own wheels and packages
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
            )
        self._mark.write_text(f"{self._process.pid} {_born(self._process.pid)}")

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """Ends it and all it started; does nothing when it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self._ends_by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._mark.unlink(missing_ok=True)

    def kill(self) -> None:
        """As a power cut would: without a word."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._mark.unlink(missing_ok=True)

    def tail(self) -> str:
        """The end of its log, for whoever must find out why it does not run."""
        return self.log.read_text(errors="replace")[-800:]

    def _end_leftover(self) -> None:
        try:
            pid, born = self._mark.read_text().split()
        except (OSError, ValueError):
            return
        # The number may belong to somebody else by now; the moment of birth does not.
        if born == "-" or _born(int(pid)) != born:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), self._ends_by)
        deadline = time.monotonic() + STOP_S
        while _born(int(pid)) == born and time.monotonic() < deadline:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid), signal.SIGKILL)


def _born(pid: int) -> str:
    """When a process started, in clock ticks since boot; `-` where the system does not tell (then nothing is ended)."""
    try:
        # The name in brackets may hold anything; the 20th word after it is the start (proc(5)).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"
