"""Japanese as a machine speaks it: Open JTalk with the voice of its wheel."""

import functools
import importlib.util
import io
import wave
from typing import Final

from tests.servers import not_available

RATE_HZ: Final = 48_000


@functools.cache
def spoken(text: str) -> bytes:
    """A WAV file in which somebody says `text`. Skips where there is no voice."""
    if importlib.util.find_spec("pyopenjtalk") is None:
        not_available("pyopenjtalk not installed: requirements/install.sh models")
    import numpy
    import pyopenjtalk

    samples, rate = pyopenjtalk.tts(text)
    return recorded(numpy.clip(samples, -32_768, 32_767).astype("<i2").tobytes(), rate)


def silence(seconds: float) -> bytes:
    """A WAV file in which nobody says anything."""
    return recorded(bytes(round(seconds * RATE_HZ) * 2), RATE_HZ)


def recorded(samples: bytes, rate: int) -> bytes:
    """A WAV file of 16-bit samples of one channel."""
    into = io.BytesIO()
    with wave.open(into, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
    return into.getvalue()
