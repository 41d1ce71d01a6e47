"""Pictures in a call: what is written in them counts as if it had been typed, and what cannot be read is not sent."""

import base64
import importlib.util
import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.policy import GuardPolicy, Policy
from tests.contract.api.conftest import ONPREM, OVERSEAS
from tests.contract.api.test_guard import ask, outcome
from tests.contract.api.test_models import known
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.servers import not_available

if TYPE_CHECKING:
    from PIL.Image import Image

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("onprem", "overseas")]

# Its check digit is right; nobody has it.
NUMBER = "1234 5678 9018"


@pytest.fixture(autouse=True)
def reader() -> None:
    if importlib.util.find_spec("rapidocr") is None:
        not_available("rapidocr not installed: requirements/install.sh pictures")


def card(number: str, *, turned: float = 0.0) -> "Image":
    """A card as somebody photographs it: a little turned, on a dark table, not quite sharp."""
    from PIL import Image, ImageDraw, ImageFilter

    picture = Image.new("RGB", (860, 540), (235, 225, 240))
    draw = ImageDraw.Draw(picture)
    for at, line in ((40, "カード"), (110, "氏名　見本 花子"), (180, "見本市本町")):
        draw.text((60, at), line, font=font(34), fill=(40, 40, 40))
    draw.text((190, 380), number, font=font(50), fill=(30, 30, 30))
    turned_picture = picture.rotate(turned, expand=True, fillcolor=(90, 80, 70))
    return turned_picture.filter(ImageFilter.GaussianBlur(1))


def font(size: int) -> Any:
    from importlib.resources import files

    from PIL import ImageFont

    return ImageFont.truetype(str(files("noto_cjk_sans_jp_regular") / "NotoSansCJKjp-Regular.otf"), size)


def sent(picture: "Image | bytes", model: str = ONPREM, kind: str = "jpeg", **saved: Any) -> dict[str, Any]:
    if not isinstance(picture, bytes):
        into = io.BytesIO()
        picture.save(into, kind.upper(), **saved)
        picture = into.getvalue()
    url = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    parts = [{"type": "text", "text": "何ですか"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": model, "messages": [{"role": "user", "content": parts}]}


def test_a_photographed_card_goes_nowhere(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    refused = ask(gateway, town, sent(card(NUMBER, turned=4)))
    assert outcome(refused) == (403, "my_number_found")
    assert onprem.seen()["calls"] == 0
    # The same card with another number is a card.
    assert outcome(ask(gateway, town, sent(card("A-12", turned=4)))) == (200, "onprem")
    assert onprem.seen()["calls"] == 1


def test_a_card_goes_nowhere_though_a_digit_was_read_wrongly(
    gateway: RunningGateway, town: Town, onprem: RunningUpstream
) -> None:
    from tests.evaluation.guard.cards import photograph

    refused = ask(gateway, town, sent(photograph("1234 5678 9011", "laid straight", 1)))
    assert outcome(refused) == (403, "my_number_found")
    assert onprem.seen()["calls"] == 0


def test_what_is_written_in_a_picture_counts_as_if_typed(gateway: RunningGateway, region: Region, town: Town) -> None:
    answered = ask(gateway, town, sent(card("090-1234-5678")))
    assert outcome(answered) == (200, "onprem")
    assert answered.headers["kumiai-guard"] == "phone=1"
    strict = region.make_town(policy=Policy(default_class=DataClass.C1, guard=GuardPolicy(ng_words=("見本市",))))
    eventually(lambda: known(gateway, strict))
    assert outcome(ask(gateway, strict, sent(card("A-12")))) == (403, "ng_word_found")


def test_a_picture_stays_personal_data_whatever_was_read(
    gateway: RunningGateway, town: Town, overseas: RunningUpstream
) -> None:
    refused = ask(gateway, town, sent(card("A-12"), OVERSEAS))
    assert outcome(refused) == (403, "zone_refused")
    assert "画像" in refused.json()["error"]["message"]
    assert overseas.seen()["calls"] == 0


def test_letters_at_the_end_of_a_long_picture_are_read(gateway: RunningGateway, town: Town) -> None:
    from PIL import Image, ImageDraw

    long = Image.new("RGB", (600, 3_000), "white")
    ImageDraw.Draw(long).text((40, 2_900), "090-1234-5678", font=font(22), fill="black")
    assert ask(gateway, town, sent(long, kind="png")).headers.get("kumiai-guard") == "phone=1"


@pytest.mark.parametrize("colour", ["white", "black"])
def test_letters_on_nothing_are_read_whatever_colour_they_have(
    gateway: RunningGateway, town: Town, colour: str
) -> None:
    from PIL import Image, ImageDraw

    clear = Image.new("RGBA", (500, 300), (255, 255, 255, 0))
    ImageDraw.Draw(clear).text((60, 120), "090-1234-5678", font=font(40), fill=colour)
    assert ask(gateway, town, sent(clear, kind="png")).headers.get("kumiai-guard") == "phone=1"


def test_what_stands_beside_a_picture_is_read(gateway: RunningGateway, town: Town) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_itxt("Comment", "連絡先 090-1234-5678")
    plain = Image.new("RGB", (80, 80), "white")
    assert ask(gateway, town, sent(plain, kind="png", pnginfo=told)).headers.get("kumiai-guard") == "phone=1"
    assert "kumiai-guard" not in ask(gateway, town, sent(plain, kind="png")).headers


def hostile() -> Iterator[tuple[str, bytes, str]]:
    from PIL import Image

    yield "damaged", b"\x89PNG\r\n\x1a\n junk", "png"
    frames = io.BytesIO()
    first = Image.new("RGB", (60, 60), "white")
    first.save(frames, "GIF", save_all=True, append_images=[Image.new("RGB", (60, 60), "black")])
    yield "moving", frames.getvalue(), "gif"
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1_000_000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    yield "bomb", b"\x89PNG\r\n\x1a\n" + b"".join(parts), "png"
    yield "thread", _png(Image.new("1", (40, 40_000))), "png"


def _png(picture: "Image") -> bytes:
    into = io.BytesIO()
    picture.save(into, "PNG")
    return into.getvalue()


def test_what_cannot_be_read_is_not_sent(gateway: RunningGateway, town: Town, onprem: RunningUpstream) -> None:
    for name, picture, kind in hostile():
        refused = ask(gateway, town, sent(picture, kind=kind))
        assert outcome(refused) == (400, "picture_unread"), name
    many = sent(card("A-12"))
    many["messages"][0]["content"] *= 9
    assert outcome(ask(gateway, town, many)) == (400, "invalid_request")
    assert onprem.seen()["calls"] == 0


def test_a_reader_that_dies_takes_no_call_along(gateway: RunningGateway, town: Town) -> None:
    assert outcome(ask(gateway, town, sent(card("A-12")))) == (200, "onprem")
    [process] = [
        p
        for p in psutil.Process(gateway.process.pid).children(recursive=True)
        if "gateway.reading.pictures" in p.cmdline()
    ]
    # Nothing of the gateway's secrets is given to it.
    assert set(process.environ()) == {"PATH", "LANG", "OMP_NUM_THREADS"}
    process.kill()
    process.wait(20)
    assert outcome(ask(gateway, town, sent(card(NUMBER)))) == (403, "my_number_found")


def test_without_a_reader_a_picture_goes_only_where_personal_data_may(
    region: Region, town: Town, onprem: RunningUpstream, overseas: RunningUpstream
) -> None:
    with region.gateway(KUMIAI_GATEWAY_PICTURES="off") as blind:
        eventually(lambda: known(blind, town))
        assert outcome(ask(blind, town, sent(card(NUMBER)))) == (200, "onprem")
        refused = ask(blind, town, sent(card("A-12"), OVERSEAS))
    assert outcome(refused) == (403, "zone_refused")
    assert "画像" in refused.json()["error"]["message"]
    assert overseas.seen()["calls"] == 0
