"""`kumiai …` as a process of its own that need not load its code: forked from one that has, each test process its own.

An interpreter takes seconds of a small machine to load what a gateway is made of, and tests start hundreds. What is
started this way is all the same but for that; `tests/integration/demo` starts from nothing.
"""

import atexit
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

from kumiai.forking import Child, fork
from kumiai.loading import load_parts

ROOT: Final = Path(__file__).resolve().parents[1]
# A request's size; the variables of a process are most of it.
REQUEST: Final = 1 << 18
LOADED: Final = b"loaded"
# A pid, then an exit code.
NUMBER: Final = struct.Struct("i")


Ran = subprocess.CompletedProcess[str]


class Process(Child):
    """One of them. Its parent is the one that forked it, which tells how it ended."""

    def __init__(self, pid: int, ended: int) -> None:
        super().__init__(pid)
        # Brings the exit code, once.
        self._ended = ended

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._ended, selectors.EVENT_READ)
                if selector.select(timeout):
                    # Nothing: the one who would tell is gone.
                    told = os.read(self._ended, NUMBER.size)
                    self.returncode = NUMBER.unpack(told)[0] if told else -signal.SIGKILL
                    os.close(self._ended)
        return self.returncode


def start(
    *words: str,
    env: Mapping[str, str],
    stdout: IO[Any],
    stderr: IO[Any] | None = None,
    stdin: IO[Any] | None = None,
    cwd: Path = ROOT,
    pass_fds: Collection[int] = (),
) -> Process:
    """Starts `kumiai words…`. stderr: None: where stdout goes; stdin: None: nothing to read."""
    with open(os.devnull, "rb") as nothing:
        files = [stdin or nothing, stdout, stderr or stdout]
        heard, told = os.pipe()
        request = {"words": words, "environment": dict(env), "cwd": str(cwd), "keep": list(pass_fds)}
        server = _server(os.getpid())
        socket.send_fds(server, [json.dumps(request).encode()], [told, *(f.fileno() for f in files), *pass_fds])
        os.close(told)
    pid = os.read(heard, NUMBER.size)
    assert pid, "the process that forks others has ended"
    return Process(NUMBER.unpack(pid)[0], heard)


def run(*words: str, env: Mapping[str, str], cwd: Path = ROOT, stdin: str = "", timeout: float = 60) -> Ran:
    """As `subprocess.run` with captured text."""
    with TemporaryFile() as typed, TemporaryFile() as out, TemporaryFile() as err:
        typed.write(stdin.encode())
        typed.seek(0)
        process = start(*words, env=env, stdin=typed, stdout=out, stderr=err, cwd=cwd)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return Ran(["kumiai", *words], code, out.read().decode(), err.read().decode())


@cache
def _server(_of: int) -> socket.socket:
    """The way to the one who forks, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.warm import serve; serve({theirs.fileno()})"],
            cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
        )  # fmt: skip

    def end_it() -> None:
        ours.close()
        process.wait()

    atexit.register(end_it)
    assert ours.recv(16) == LOADED
    return ours


@dataclass
class _Served:
    """What the forking process knows: whom to tell when which child has ended."""

    tell: dict[int, int] = field(default_factory=dict)

    def reap(self) -> None:
        for pid in list(self.tell):
            if (code := Child(pid).poll()) is not None:
                told = self.tell.pop(pid)
                os.write(told, NUMBER.pack(code))
                os.close(told)


def serve(descriptor: int) -> None:
    """Forks whatever the socket asks for, until its other end is gone."""
    load_parts("kumiai.demo", "apps.sdk.commands", "tenants.commands.registration")
    from kumiai.__main__ import main

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, woken = socket.socketpair()
    wake.settimeout(0)
    woken.settimeout(0)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asked = socket.socket(fileno=descriptor)
    asked.send(LOADED)
    served = _Served()
    with selectors.DefaultSelector() as selector:
        selector.register(asked, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if wake in ready:
                wake.recv(4096)
                served.reap()
            if asked in ready:
                message, (told, *files), _, _ = socket.recv_fds(asked, REQUEST, 16)
                if not message:
                    return
                _fork(served, json.loads(message), told, files, main)


def _fork(served: _Served, request: dict[str, Any], told: int, files: list[int], main: Any) -> None:
    words: list[str] = request["words"]

    def work() -> None:
        sys.argv = ["kumiai", *words]
        main(words)

    pid = fork(
        work,
        environment=request["environment"],
        files=dict(zip([0, 1, 2, *request["keep"]], files, strict=True)),
        title=f"kumiai {words[0]}",
        cwd=request["cwd"],
    )
    served.tell[pid] = told
    os.write(told, NUMBER.pack(pid))
    for file in files:
        os.close(file)
