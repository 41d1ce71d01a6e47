"""Letters in a picture, read by a process of its own: untrusted bytes, half a gigabyte of models, seconds of work.

`python -m gateway.reading.pictures` takes pictures on its standard input and tells what stands in them on its standard
output, one after the other, until the input ends. It has none of the caller's environment, connections or secrets.
The models lie in the wheel of the reader, whose hash is locked; nothing is fetched.
"""

import importlib.util
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from gateway.reading.confinement import serve_confined

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD: Final = struct.Struct(">I")
# What a camera makes; more is a bomb.
MAX_PIXELS: Final = 50_000_000
# The reader's own limit for a side; what is longer than twice its width is read in pieces, or small letters are lost.
SIDE: Final = 2_000
_SHARED: Final = 200
_MAX_PIECES: Final = 8
# Of a long one as it goes on: a screen that was scrolled.
_LONG_SIDE: Final = 4 * SIDE
# Below this the reader itself doubts what it read; half a number still counts, and noise does no harm.
_SURE: Final = 0.4


@dataclass(frozen=True, slots=True)
class NotRead(Exception):
    """Why a picture cannot be read, in a clerk's words."""

    words: str


def is_available() -> bool:
    """Whether `make install-pictures` was run here."""
    return importlib.util.find_spec("rapidocr") is not None


def read_picture(data: bytes) -> str:
    """Every line of letters in a picture, and what its metadata says. Raises `NotRead`."""
    lines, told = letters_in(data)
    return "\n".join([*lines, *told])


def letters_in(data: bytes) -> tuple[list[str], list[str]]:
    """The lines of letters in a picture, and apart from them what its metadata says. Raises `NotRead`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise NotRead("画像が大きすぎます。小さくしてください。")
            if getattr(opened, "n_frames", 1) > 1:
                raise NotRead("動く画像です。1枚の画像にしてください。")
            # A profile of colours is a table of numbers.
            said = [value for name, value in opened.info.items() if name != "icc_profile"]
            told = [str(v) for v in (*said, *opened.getexif().values()) if isinstance(v, str | bytes)]
            upright = ImageOps.exif_transpose(opened)
            lines = [line for seen in _as_seen(upright) for piece in _pieces(seen) for line in _lines(piece)]
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise NotRead("画像として開けません。PNGかJPEGで保存し直してください。") from error
    return lines, told


def rewritten(data: bytes) -> bytes:
    """A picture that `letters_in` has read as it may go on: a JPEG, upright, on white, no larger than it was read, and
    without what its metadata says, such as where it was taken."""
    from PIL import Image, ImageOps

    into = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF")) as opened:
        seen = next(_as_seen(ImageOps.exif_transpose(opened)))
    most = SIDE if max(seen.size) <= 2 * min(seen.size) else _LONG_SIDE
    seen.thumbnail((most, most))
    seen.save(into, "JPEG", quality=85)
    return into.getvalue()


def _as_seen(picture: "Image") -> "Iterator[Image]":
    """On white and, where something shines through, on black: who else looks at it may choose either."""
    from PIL import Image

    if not picture.has_transparency_data:
        yield picture.convert("RGB")
        return
    clear = picture.convert("RGBA")
    for ground in ("white", "black"):
        yield Image.alpha_composite(Image.new("RGBA", clear.size, ground), clear).convert("RGB")


def _pieces(picture: "Image") -> "Iterator[Image]":
    long, short = max(picture.size), min(picture.size)
    if long <= 2 * short:
        picture.thumbnail((SIDE, SIDE))
        yield picture
        return
    shrunk = min(1.0, SIDE / 2 / short)
    picture = picture.resize((max(1, round(picture.width * shrunk)), max(1, round(picture.height * shrunk))))
    long = max(picture.size)
    starts = range(0, max(1, long - _SHARED), SIDE - _SHARED)
    if len(starts) > _MAX_PIECES:
        raise NotRead("画像が細長すぎます。分けてください。")
    for start in starts:
        end = min(long, start + SIDE)
        is_wide = picture.width == long
        yield picture.crop((start, 0, end, picture.height) if is_wide else (0, start, picture.width, end))


def _lines(picture: "Image") -> list[str]:
    import numpy

    return lines_in(numpy.asarray(picture)[:, :, ::-1])


def lines_in(pixels: Any) -> list[str]:
    """The lines of letters in an array of rows of pixels, blue first, each side of at most 2,000."""
    return [str(text) for text in _reader()(pixels).txts or ()]


@cache
def _reader() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.text_score": _SURE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def serve(into: BinaryIO, out: BinaryIO) -> None:
    """Reads pictures until the input ends."""
    while len(head := into.read(HEAD.size)) == HEAD.size:
        data = into.read(HEAD.unpack(head)[0])
        try:
            answer = {"text": read_picture(data)}
        except NotRead as why:
            answer = {"problem": why.words}
        except MemoryError:
            answer = {"problem": "画像が大きすぎます。小さくしてください。"}
        told = json.dumps(answer).encode()
        out.write(HEAD.pack(len(told)) + told)
        out.flush()


if __name__ == "__main__":
    serve_confined(serve)
