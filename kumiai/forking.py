"""Processes made from one that has loaded their code, which takes longer than all else they do to start."""

import atexit
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

WAIT_STEP_S: Final = 0.02
# Of <malloc.h>.
M_ARENA_MAX: Final = -8
# Of <sys/prctl.h>.
PR_SET_NAME: Final = 15


def fork(
    run: Callable[[], object],
    *,
    environment: Mapping[str, str],
    files: Mapping[int, int],
    title: str,
    cwd: str | None = None,
    new_session: bool = False,
) -> int:
    """Starts a process that has loaded all that this one has, and returns its pid. The caller must have no other thread.

    run: what it does; its `SystemExit` is the exit code as ever. environment: all the variables it gets. files: all the
    descriptors it gets, its number → ours; standard input may be missing. title: what `ps` calls it, 15 bytes at most.
    The rest is as in `subprocess.Popen`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _become(environment, files, title)
        if new_session:
            os.setsid()
        if cwd is not None:
            os.chdir(cwd)
        code = _exit_code(run)
    except BaseException:  # noqa: BLE001 - nothing of the child may go on with the parent's work
        traceback.print_exc()
    finally:
        _end(code)
    raise AssertionError("unreachable")


def _become(environment: Mapping[str, str], files: Mapping[int, int], title: str) -> None:
    """Takes off what was the parent's alone: its signals, descriptors and variables."""
    for told in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(told, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)
    _hold_only({0: os.open(os.devnull, os.O_RDONLY)} | dict(files))
    os.environ.clear()  # noqa: TID251 - `Settings` reads them next
    os.environ.update(environment)  # noqa: TID251 - as above
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # text files both
    # Not with every C library.
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.prctl(PR_SET_NAME, title.encode(), 0, 0, 0)
        # Read from the variable when a program starts, which this one does not.
        if arenas := environment.get("MALLOC_ARENA_MAX"):
            library.mallopt(M_ARENA_MAX, int(arenas))


def _hold_only(files: Mapping[int, int]) -> None:
    """Leaves these descriptors open, each at its number, and no other."""
    # First all out of the way: one may bear a number that another is to get.
    above = max(files) + 1
    aside = {number: fcntl.fcntl(source, fcntl.F_DUPFD, above) for number, source in files.items()}
    for number, source in aside.items():
        os.dup2(source, number)
    held = [*sorted(files), os.sysconf("SC_OPEN_MAX")]
    for one, next_one in pairwise(held):
        os.closerange(one + 1, next_one)


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 128 + signal.SIGINT
    return 0


def _end(code: int) -> None:
    """As the interpreter does at its end, but past the frames of the parent that lie below."""
    try:
        # Neither has another name.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Child:
    """A forked process, in the words of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(WAIT_STEP_S)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
