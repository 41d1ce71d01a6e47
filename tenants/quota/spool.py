"""Settles that wait on disk while the database is away, one file per process, locked for as long as it lives.

A process that starts takes over what the dead of its folder left. The lock tells them from the living, who go on
writing theirs.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger("ledger")

_PATTERN = "settles-*.jsonl"


class Spool:
    """Used by the writer's thread alone; the file is there only while something is in it."""

    def __init__(self, folder: Path, epoch: str) -> None:
        self._folder = folder
        self._path = folder / f"settles-{epoch}.jsonl"
        self._file: int | None = None

    def keep(self, records: Iterable[Mapping[str, object]]) -> None:
        """Durable when it returns."""
        text = "".join(json.dumps(record, default=str) + "\n" for record in records)
        if not text:
            return
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, text.encode())
        os.fsync(self._file)

    def clear(self) -> None:
        """Everything in it has been committed."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Leaves what is in it to the next process."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take_over(self) -> list[dict[str, Any]]:
        """What the dead left, kept in this process's own file from here on."""
        taken: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob(_PATTERN)):
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_nlink:
                    records = _records(path)
                    self.keep(records)
                    taken += records
                    path.unlink()
            except BlockingIOError:
                # Its process lives, or another one is taking it over.
                continue
            finally:
                os.close(file)
        return taken


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            log.error("ledger_spool_line_unreadable", file=path.name)
    return records
