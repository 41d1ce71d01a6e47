"""A card with a My Number on it, as somebody photographs it: bent, dark, blurred, small. Drawn here; nobody has the number."""

import io
import random
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

_SIZE: Final = (860, 540)
_TABLE: Final = (90, 80, 70)


def card(number: str) -> Image.Image:
    """The side of an individual number card that has the number, about as it is laid out, in ten points at 250 dpi."""
    picture = Image.new("RGB", _SIZE, (232, 224, 240))
    draw = ImageDraw.Draw(picture)
    for x in range(0, _SIZE[0], 14):
        draw.line(((x, 0), (x + 180, _SIZE[1])), fill=(222, 214, 236), width=2)
    draw.rectangle((40, 60, 250, 330), fill=(210, 205, 215))
    for at, line in (
        (40, "氏名　見本　花子"),
        (100, "住所　見本県見本市本町"),
        (160, "平成元年３月３１日生　　　性別　女"),
        (240, "２０３３年３月３１日まで有効"),
    ):
        draw.text((290, at), line, font=_font(26), fill=(40, 40, 50))
    draw.text((250, 430), number, font=_font(46), fill=(30, 30, 40))
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(files("noto_cjk_sans_jp_regular") / "NotoSansCJKjp-Regular.otf"), size)


def _turned(degrees: float) -> Callable[[Image.Image, random.Random], Image.Image]:
    return lambda picture, rng: picture.rotate(degrees * rng.choice((-1, 1)), expand=True, fillcolor=_TABLE)


def _leaning(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Seen from a corner."""
    wide, high = picture.size
    lean = rng.uniform(0.05, 0.09)
    corners = (0, 0, wide * lean, high, wide * (1 - lean), high, wide, 0)
    on_table = Image.new("RGB", (wide + 200, high + 200), _TABLE)
    on_table.paste(picture.transform(picture.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC), (100, 100))
    return on_table


def _grainy(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = Image.effect_noise(picture.size, 70).convert("RGB")
    return Image.blend(ImageEnhance.Brightness(picture).enhance(0.6), noise, 0.2)


def _small(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.resize((picture.width * 2 // 5, picture.height * 2 // 5), Image.Resampling.BILINEAR)


def _shiny(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A lamp over part of the number."""
    light = Image.new("L", picture.size, 0)
    ImageDraw.Draw(light).ellipse((280, 380, 480, 520), fill=190)
    return Image.composite(Image.new("RGB", picture.size, "white"), picture, light.filter(ImageFilter.GaussianBlur(30)))


HANDLING: Final[dict[str, Callable[[Image.Image, random.Random], Image.Image]]] = {
    "laid straight": lambda picture, rng: picture,
    "turned by 5 degrees": _turned(5),
    "turned by 15 degrees": _turned(15),
    "turned by 90 degrees": _turned(90),
    "upside down": _turned(180),
    "seen from a corner": _leaning,
    "not sharp": lambda picture, rng: picture.filter(ImageFilter.GaussianBlur(2)),
    "dark and grainy": _grainy,
    "small (344 × 216)": _small,
    "under a lamp": _shiny,
    "black and white copy": lambda picture, rng: (
        picture.convert("L").point(lambda v: 255 if v > 130 else 0).convert("RGB")
    ),
}


def photograph(number: str, handling: str, seed: int) -> bytes:
    """JPEG of quality 70, as messengers make it."""
    rng = random.Random(f"{handling} {seed}")
    into = io.BytesIO()
    HANDLING[handling](card(number), rng).save(into, "JPEG", quality=70)
    return into.getvalue()
