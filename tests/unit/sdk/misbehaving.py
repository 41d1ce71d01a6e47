"""Readers that misbehave the way a library can on a hostile file; they run in the reading process."""

import ctypes
import os
import time
from typing import NoReturn

from gateway.reading import Reading, read_file


def hang(name: str, data: bytes, **_: object) -> NoReturn:
    while True:
        time.sleep(1)


def hang_on_text(name: str, data: bytes, **_: object) -> Reading:
    """Hangs on txt, reads the rest."""
    return hang(name, data) if name.endswith(".txt") else read_file(name, data)


def crash(name: str, data: bytes, **_: object) -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError


def eat_memory(name: str, data: bytes, **_: object) -> NoReturn:
    bytearray(3 * 1024 * 1024 * 1024)
    raise AssertionError


def tell_process(name: str, data: bytes, **_: object) -> int:
    return os.getpid()
