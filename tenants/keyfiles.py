"""Key material in files: made once with mode 0600, read by every process."""

import base64
import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final

# A folder's time of change moves in steps of milliseconds: what was read so soon after a change is read once more.
_SETTLED_NS: Final = 1_000_000_000


class KeyFileError(RuntimeError):
    """A key file is missing or not what it should be; the message names the file, never its content."""


def read_key(path: Path, *, length: int = 32) -> bytes:
    """Reads a base64url key of `length` bytes."""
    try:
        key = base64.urlsafe_b64decode(path.read_text("ascii").strip().encode())
    except (OSError, ValueError) as error:
        raise KeyFileError(f"cannot read key file {path}") from error
    if len(key) != length:
        raise KeyFileError(f"key file {path} has {len(key)} bytes, not {length}")
    return key


def ensure_key(path: Path, *, length: int = 32) -> bytes:
    """Reads the key, making it first if there is none; two processes racing end with the same key."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written aside and linked into place: whoever comes second finds a whole key, and a crash leaves none.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(base64.urlsafe_b64encode(secrets.token_bytes(length)).decode())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    return read_key(path, length=length)


class KeyFile:
    """A key and its later versions: `NAME` is version 1, `NAME.2` the next. The newest is used, all still open.

    Versions that appear or go while a process runs are noticed when they are asked for.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        """create: make the first version when there is none (demo and tests). Raises `KeyFileError`."""
        self._path = path
        self._stamp = -1
        self._known: dict[int, bytes] = {}
        if create and not self._numbers():
            ensure_key(path)
        self.versions()

    def versions(self) -> dict[int, bytes]:
        """Number → key, newest first. Raises `KeyFileError` when there is none."""
        try:
            stamp = self._path.parent.stat().st_mtime_ns
        except OSError as error:
            raise KeyFileError(f"cannot read key file {self._path}") from error
        if stamp != self._stamp:
            self._known = {n: read_key(self._place(n)) for n in self._numbers()}
            self._stamp = stamp if time.time_ns() - stamp > _SETTLED_NS else -1
        if not self._known:
            raise KeyFileError(f"cannot read key file {self._path}")
        return self._known

    @property
    def newest(self) -> tuple[int, bytes]:
        return next(iter(self.versions().items()))

    def newest_first(self) -> list[bytes]:
        return list(self.versions().values())

    def add(self, number: int) -> None:
        """Makes a version; one that is there already stays as it is."""
        ensure_key(self._place(number))

    def age_s(self, number: int) -> float:
        """For how many seconds a version has been there."""
        return time.time() - self._place(number).stat().st_mtime

    def remove(self, number: int) -> None:
        """For good. The caller knows that nothing is left which only this version opens."""
        self._place(number).unlink()

    def _place(self, number: int) -> Path:
        return self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number}")

    def _numbers(self) -> list[int]:
        later = (f.name.removeprefix(f"{self._path.name}.") for f in self._path.parent.glob(f"{self._path.name}.*"))
        found = [int(number) for number in later if number.isascii() and number.isdigit() and int(number) > 1]
        return sorted([*found, *([1] if self._path.exists() else [])], reverse=True)
