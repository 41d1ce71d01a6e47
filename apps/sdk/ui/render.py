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
from markupsafe import Markup, escape

from apps.sdk.dates import local, wareki, wareki_month, when

STATIC: Final = Path(__file__).parent / "static"
TEMPLATES: Final = Path(__file__).parent / "templates"

ZONE_WORDS: Final[Mapping[str, str]] = {"onprem": "庁内", "domestic": "国内", "overseas": "海外"}
CLASS_WORDS: Final[Mapping[str, str]] = {
    "1": "公開してよい",
    "2": "庁内だけ",
    "3C": "個人情報あり",
    "3B": "個人情報あり（重い）",
    "3A": "秘密文書にあたる",
}
_OWNER_WORDS: Final[Mapping[str, str]] = {"town": "町の設備", "shared": "共同の設備"}
# Countries that vendors of models are of.
_COUNTRY_WORDS: Final[Mapping[str, str]] = {
    "JP": "日本", "US": "米国", "CA": "カナダ", "CN": "中国", "DE": "ドイツ", "FR": "フランス", "GB": "英国", "IL": "イスラエル",
    "KR": "韓国", "SG": "シンガポール", "TW": "台湾",
}  # fmt: skip
ROLE_WORDS: Final[Mapping[str, str]] = {
    "staff": "職員",
    "section_admin": "課長",
    "town_admin": "町の管理者",
    "operator": "運用担当",
    "auditor": "監査",
    "adviser": "外部支援者",
}
# The models every town knows, in the order they are offered.
MODEL_WORDS: Final[Mapping[str, str]] = {"fast": "速い", "standard": "標準", "onprem": "庁内専用"}
_ALLOWED_TAGS: Final = {
    "p", "br", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "hr",
    "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "div", "span",
}  # fmt: skip
_ALLOWED_ATTRIBUTES: Final = {
    "th": {"scope", "class"},
    "td": {"class"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "ol": {"start"},
    "table": {"class"},
    "p": {"class"},
    "tr": {"class"},
    "pre": {"tabindex", "role", "aria-label"},
}
_TOTALS: Final = ("合計", "総計", "計", "小計")


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
    """Where an answer was made and whose the machines are, in one sentence; what is not known is not said."""
    if not zone:
        return ""
    owner = owner_words(zone, zone_owner, country)
    if zone == "onprem":
        stayed = "庁外に出ていません。" if zone_owner == "town" else ""
        return f"{owner or ZONE_WORDS[zone]}で処理しました。{stayed}"
    return f"{ZONE_WORDS[zone]}のサーバーで処理しました{f'（{owner}）' if owner else ''}。"


def owner_words(zone: str, zone_owner: str, country: str) -> str:
    """Whose the machines of a model are: 町の設備 or 共同の設備 in the house, else the vendor's country (ISO 3166), such
    as 米国の事業者; empty where that is not known."""
    if zone == "onprem":
        return _OWNER_WORDS.get(zone_owner, "")
    return f"{_COUNTRY_WORDS.get(country, '外国')}の事業者" if country else ""


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
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    for name in ("th_open", "td_open", "th_close", "td_close"):
        parser.add_render_rule(name, _cell)
    parser.add_render_rule("tr_open", _row)
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    return parser


def _level(tokens: list[Token], above: list[int]) -> None:
    """Headings below the page's own h1, one level at a time whatever the answer skips.

    above: the written levels that stand open; it goes on from one part of an answer to the next.
    """
    for token in tokens:
        if token.type == "heading_open":
            written = int(token.tag[1])
            while above and above[-1] >= written:
                above.pop()
            above.append(written)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(len(above) + 1, 6)}"


# What fits a phone without scrolling sideways.
_NARROW_COLUMNS: Final = 3


def _table_open(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    head = next(i for i in range(index, len(tokens)) if tokens[i].type == "tr_close")
    is_wide = sum(t.type == "th_open" for t in tokens[index:head]) > _NARROW_COLUMNS
    return (
        f'<div class="k-tablebox{" is-wide" if is_wide else ""}">'
        + ('<p class="k-scrollhint">横に動かすと続きが見られます</p>' if is_wide else "")
        + '<div class="k-scroll" tabindex="0" role="group" aria-label="表"><table class="k-table p-answer__table">\n'
    )


def _table_close(_self: RendererHTML, _tokens: list[Token], _index: int, _options: Any, _env: Any) -> str:
    return "</table></div></div>\n"


def _row(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    """A total stands apart from what it adds up."""
    first = next((t.content for t in tokens[index:] if t.type == "inline"), "")
    return '<tr class="is-total">' if first.strip(" *") in _TOTALS else "<tr>"


def _cell(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    """The first cell of a row says what the row is about."""
    token = tokens[index]
    is_opening = token.nesting == 1
    row = next(i for i in range(index, -1, -1) if tokens[i].type == "tr_open")
    names_row = token.tag == "td" and not any(t.type == "td_close" for t in tokens[row : index + is_opening - 1])
    if not is_opening:
        return "</th>" if token.tag == "th" or names_row else "</td>"
    right = ' class="k-right"' if "right" in str(token.attrs.get("style", "")) else ""
    if token.tag == "th":
        return f'<th scope="col"{right}>'
    return f'<th scope="row"{right}>' if names_row else f"<td{right}>"


def _code(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    """Long lines scroll, so the keyboard must get there."""
    return f'<pre tabindex="0" role="group" aria-label="コード"><code>{escape(tokens[index].content)}</code></pre>\n'


def render_markdown(text: str) -> Markup:
    """An answer as safe HTML: no links, no images, no raw HTML, tables that scroll."""
    tokens = _markdown().parse(text)
    _level(tokens, [])
    return Markup(_safe(_render(tokens)))  # noqa: S704 - nh3 cleaned it


class GrowingMarkdown:
    """An answer while it comes: only what changed is rendered and given, however long it gets.

    Blocks that two others have followed never change again, so they are forgotten here. Rendered block by block the
    whole reads as `render_markdown` would make it: blocks know nothing of each other, as links by reference are off.
    """

    def __init__(self) -> None:
        self._tail = ""
        self._settled = 0
        self._above: list[int] = []
        self._shown: list[str] = []

    def add(self, text: str) -> None:
        self._tail += text

    def changed(self) -> tuple[int, list[str]]:
        """The number of the first block that is new or different, and the HTML of all from there on."""
        tokens = _markdown().parse(self._tail)
        starts = [i for i, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
        ends = [*starts[1:], len(tokens)]
        above = [list(self._above)]
        blocks = []
        for a, b in zip(starts, ends, strict=True):
            above.append(list(above[-1]))
            _level(tokens[a:b], above[-1])
            blocks.append(_safe(_render(tokens[a:b])))
        same = next(
            (i for i, (old, new) in enumerate(zip(self._shown, blocks, strict=False)) if old != new),
            min(len(self._shown), len(blocks)),
        )
        first = self._settled + same
        if len(blocks) > 2:
            line = tokens[starts[-2]].map
            assert line is not None
            self._tail = "".join(self._tail.splitlines(keepends=True)[line[0] :])
            self._settled += len(blocks) - 2
            self._above = above[-3]
            self._shown = blocks[-2:]
        else:
            self._shown = blocks
        return first, blocks[same:]


def _render(tokens: list[Token]) -> str:
    parser = _markdown()
    return str(parser.renderer.render(tokens, parser.options, {}))


def _safe(html: str) -> str:
    return nh3.clean(html, tags=_ALLOWED_TAGS, attributes=_ALLOWED_ATTRIBUTES, url_schemes=set(), link_rel=None)


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
        "wareki_month": wareki_month,
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
        "model_words": MODEL_WORDS,
        "where_words": where_words,
        "owner_words": owner_words,
        "asset": asset,
    }
    return environment


@cache
def asset(name: str) -> str:
    """The URL of a static file with its content's hash, so that it can be cached for good."""
    import hashlib

    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]
    return f"/static/{name}?v={digest}"
