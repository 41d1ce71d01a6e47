"""Limits that a process takes on before it reads untrusted files."""

import resource
from typing import Final

MAX_MEMORY_BYTES: Final = 2 * 1024 * 1024 * 1024


def confine(max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
    """Caps the memory of this process for good, and leaves no dump of a file's content behind when it crashes."""
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
