"""Text out of files: pure, synchronous functions that never stay silent about what they could not read.

`read_file` is CPU work on untrusted bytes; run it in a worker process with a time limit (`apps.sdk.intake` does).
"""

from gateway.reading.problems import CannotReadFile
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark, Table, TableRow

__all__ = [
    "CannotReadFile",
    "Kind",
    "Limits",
    "Part",
    "PartState",
    "Reading",
    "Remark",
    "Table",
    "TableRow",
    "read_file",
]


def read_file(name: str, data: bytes, *, limits: Limits | None = None, reads_pictures: bool = False) -> Reading:
    """`gateway.reading.dispatch.read_file`. The libraries of all the formats are loaded where a file is read, and in no
    other process."""
    from gateway.reading import dispatch

    return dispatch.read_file(name, data, limits=limits, reads_pictures=reads_pictures)
