"""Key material in files: made once with mode 0600, read by every process."""

import base64
import contextlib
import os
import secrets
from pathlib import Path


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
