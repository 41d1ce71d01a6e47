"""Pages: one Jinja environment over the shell's and every app's templates, and Markdown made safe."""

from collections.abc import Mapping
from datetime import date, datetime
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Final

import nh3
from jinja2 import Environment, FileSystemLoader, PrefixLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from apps.sdk.dates import local, wareki, when

STATIC: Final = Path(__file__).parent / "static"
TEMPLATES: Final = Path(__file__).parent / "templates"

ZONE_WORDS: Final[Mapping[str, str]] = {"onprem": "庁内", "domestic": "国内", "overseas": "海外"}
CLASS_WORDS: Final[Mapping[str, str]] = {
    "1": "公開してよい",
    "2": "庁内だけ",
    "3C": "個人情報あり",
    "3B": "個人情報あり（重い）",
    "3A": "個人情報あり（最も重い）",
}
ROLE_WORDS: Final[Mapping[str, str]] = {
    "staff": "職員",
    "section_admin": "課長",
    "town_admin": "町の管理者",
    "operator": "運用担当",
    "auditor": "監査",
    "adviser": "外部支援者",
}
_ALLOWED_TAGS: Final = {
    "p", "br", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "hr",
    "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "div", "span",
}  # fmt: skip
_ALLOWED_ATTRIBUTES: Final = {
    "th": {"scope", "class"},
    "td": {"class"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "ol": {"start"},
    "p": {"class"},
}


def share_words(share: Fraction) -> str:
    """What is left in words: 約3分の2, わずか, なし."""
    if share <= 0:
        return "なし"
    if share < Fraction(1, 20):
        return "わずか"
    named = (
        (Fraction(1), "ほぼ全部"), (Fraction(3, 4), "約4分の3"), (Fraction(2, 3), "約3分の2"), (Fraction(1, 2), "約半分"),
        (Fraction(1, 3), "約3分の1"), (Fraction(1, 4), "約4分の1"), (Fraction(1, 5), "約5分の1"),
        (Fraction(1, 10), "約1割"),
    )  # fmt: skip
    return min(named, key=lambda n: abs(n[0] - share))[1]


def where_words(zone: str, zone_owner: str = "", country: str = "") -> str:
    """Where an answer was made, in one sentence."""
    if zone == "onprem":
        return "町の設備で処理しました。庁外に出ていません。" if zone_owner == "town" else "共同の設備で処理しました。"
    if zone == "domestic":
        return "国内の事業者のサーバーで処理しました。"
    if zone == "overseas":
        return "海外の事業者のサーバーで処理しました。"
    return ""


def yen(uyen: int) -> str:
    """Micro-yen as whole yen, rounded up: what was used is never shown as less."""
    return f"{-(-uyen // 1_000_000):,}円"


def yen_left(uyen: int) -> str:
    """Micro-yen as whole yen, rounded down: what is left is never shown as more, so that both add up to the limit."""
    return f"{uyen // 1_000_000:,}円"


@cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True}).enable(
        ["table", "strikethrough"]
    )
    # A link or an image in an answer could carry what was typed to somewhere else: both stay plain text.
    parser.disable(["image", "link", "autolink", "reference"])
    parser.add_render_rule("heading_open", _heading)
    parser.add_render_rule("heading_close", _heading)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    parser.add_render_rule("th_open", _cell)
    parser.add_render_rule("td_open", _cell)
    return parser


def _heading(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    """One level down: the page has its own h1."""
    level = min(int(tokens[index].tag[1]) + 1, 6)
    return f"<h{level}>" if tokens[index].nesting == 1 else f"</h{level}>\n"


def _table_open(_self: RendererHTML, _tokens: list[Token], _index: int, _options: Any, _env: Any) -> str:
    return '<div class="k-scroll" tabindex="0" role="group" aria-label="表"><table class="k-table p-answer__table">\n'


def _table_close(_self: RendererHTML, _tokens: list[Token], _index: int, _options: Any, _env: Any) -> str:
    return "</table></div>\n"


def _cell(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    token = tokens[index]
    right = "right" in str(token.attrs.get("style", ""))
    scope = ' scope="col"' if token.tag == "th" else ""
    return f"<{token.tag}{scope}" + (' class="k-right">' if right else ">")


def render_markdown(text: str) -> Markup:
    """An answer as safe HTML: no links, no images, no raw HTML, tables that scroll."""
    html = _markdown().render(text)
    clean = nh3.clean(html, tags=_ALLOWED_TAGS, attributes=_ALLOWED_ATTRIBUTES, url_schemes=set(), link_rel=None)
    return Markup(clean.replace("<table>", '<table class="k-table p-answer__table">'))  # noqa: S704 - nh3 cleaned it


def _date(value: date | datetime, *, weekday: bool = False) -> str:
    return wareki(local(value).date() if isinstance(value, datetime) else value, weekday=weekday)


def _time(value: datetime) -> str:
    return f"{local(value):%-H:%M}"


def create_environment(app_folders: Mapping[str, Path]) -> Environment:
    """app_folders: app id → its folder, whose `templates` are reached as `<id>/<name>`."""
    shell = FileSystemLoader(TEMPLATES)
    apps = {name: FileSystemLoader(folder / "templates") for name, folder in app_folders.items()}
    environment = Environment(
        loader=PrefixLoader({"ui": shell} | apps),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "wareki": _date,
        "time": _time,
        "when": when,
        "markdown": render_markdown,
        "share_words": share_words,
        "yen": yen,
        "yen_left": yen_left,
    }
    environment.globals |= {
        "zone_words": ZONE_WORDS,
        "class_words": CLASS_WORDS,
        "role_words": ROLE_WORDS,
        "where_words": where_words,
        "asset": asset,
    }
    return environment


@cache
def asset(name: str) -> str:
    """The URL of a static file with its content's hash, so that it can be cached for good."""
    import hashlib

    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]
    return f"/static/{name}?v={digest}"
