"""Limits that a process takes on before it reads untrusted files."""

import os
import resource
import sys
from collections.abc import Callable
from typing import BinaryIO, Final

MAX_MEMORY_BYTES: Final = 2 * 1024 * 1024 * 1024
# With a reader's or a listener's models in it.
_WITH_MODELS_BYTES: Final = 4 * 1024 * 1024 * 1024


def confine(max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
    """Caps the memory of this process for good, and leaves no dump of a file's content behind when it crashes."""
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve_confined(serve: Callable[[BinaryIO, BinaryIO], None]) -> None:
    """All that a process of its own does which reads what people send: orders on its input, answers on its output."""
    # Beside calls that wait for words, files can wait.
    os.nice(10)
    confine(_WITH_MODELS_BYTES)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a library prints must not stand between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)
