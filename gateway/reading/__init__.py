"""Text out of files: pure, synchronous functions that never stay silent about what they could not read.

`read_file` is CPU work on untrusted bytes; run it in a worker process with a time limit (`apps.sdk.intake` does).
"""

from gateway.reading.dispatch import read_file
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
