"""The one PDF engine: typst, with the fonts that come as wheels, so that every machine prints the same page.

Templates are constants; what people wrote reaches them as JSON data and is set as text, never read as markup.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import noto_cjk_sans_jp_regular
import typst

from tenants.audit.certificate import COUNT_WORDS
from tenants.eras import wareki
from tenants.quota.windows import JST


@dataclass(frozen=True, slots=True)
class Slip:
    """One person's initial password. `full_login` is printed where the issuer asks for the town in the user name."""

    town: str
    section: str
    display_name: str = field(repr=False)
    login: str
    password: str = field(repr=False)
    entry_url: str
    full_login: str = ""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the operator hands to a new town's first administrator. `month_yen` is written as given.

    What is empty (name, sections, contact, full login) has no line on the paper.
    """

    product_name: str
    town: str
    code: str
    admin_login: str
    password: str = field(repr=False)
    entry_url: str
    sections: tuple[str, ...]
    month_yen: int
    made_on: date
    full_login: str = ""
    admin_name: str = field(default="", repr=False)
    contact: str = ""


def render_pdf(template: str, data: Mapping[str, Any], *, today: date) -> bytes:
    """A template with `data` as its `data` dictionary. Takes CPU: async callers use a thread.

    template: ours, never a person's. It finds the page styles of `_FRAME` and the fonts of the wheels only.
    """
    folder = Path(str(noto_cjk_sans_jp_regular.FONT_PATH)).parent
    printed: bytes = typst.compile(
        (_FRAME + template).encode(),
        format="pdf",
        font_paths=typst.Fonts(include_system_fonts=False, font_paths=[folder]),
        sys_inputs={"data": json.dumps(data, ensure_ascii=False)},
        # The document's own date, so that the same input gives the same bytes.
        timestamp=int(datetime(today.year, today.month, today.day, tzinfo=UTC).timestamp()),
    )
    return printed


def initial_password_slips(
    slips: Sequence[Slip], *, made_on: date, product_name: str = "Kumiai", contact: str = ""
) -> bytes:
    """Slips to cut and hand out in person, four on an A4 sheet, in the given order. At least one."""
    if not slips:
        raise ValueError("no slips to print")
    data = {
        "product": product_name,
        "contact": contact,
        "date": wareki(made_on),
        "town": slips[0].town,
        "slips": [asdict(slip) for slip in slips],
    }
    return render_pdf(_SLIPS, data, today=made_on)


def handover_sheet(handover: Handover) -> bytes:
    """The sheet a town's first administrator starts from, with the password in it: to be handed over in person."""
    data = {
        "product": handover.product_name,
        "town": handover.town,
        "code": handover.code,
        "login": handover.admin_login,
        "full_login": handover.full_login,
        "name": handover.admin_name,
        "password": handover.password,
        "entry_url": handover.entry_url,
        "sections": list(handover.sections),
        "month_yen": f"{handover.month_yen:,}円",
        "contact": handover.contact,
        "date": wareki(handover.made_on),
    }
    return render_pdf(_HANDOVER, data, today=handover.made_on)


def invoice_sheet(data: Mapping[str, Any], *, last_day: date) -> bytes:
    """An invoice with what a 適格請求書 needs, dated by its period. data: of `tenants.quota.invoice_forms.sheet_data`."""
    return render_pdf(_INVOICE, data, today=last_day)


def erasure_certificate(told: Mapping[str, Any], *, product_name: str) -> bytes:
    """The printable form of a certificate. told: of `tenants.audit.certificate.issue_certificate`."""
    at = datetime.fromisoformat(told["erased_at"]).astimezone(JST)
    by = {"command": "運用担当（命令）", "person": "運用担当（画面）"}.get(told["erased_by"][0], "運用担当")
    data = {
        "product": product_name,
        "town": told["name"],
        "code": told["code"],
        "tenant": told["tenant"],
        "at": f"{wareki(at.date())} {at:%H時%M分}",
        "by": by,
        "counts": [[COUNT_WORDS[name], f"{count:,}"] for name, count in told["counts"].items()],
        "keys": [[key["id"], key["destroyed_at"]] for key in told["destroyed_keys"]],
        "seq": f"{told['link']['seq']:,}",
        "hash": told["link"]["hash"],
        "key": told["key"],
        "signature": told["signature"],
    }
    return render_pdf(_CERTIFICATE, data, today=at.date())


# Noto has one weight here: headings are told apart by size and a hair of outline, not by a bold face.
_FRAME: Final = """
#let data = json(bytes(sys.inputs.data))
#let ink = rgb("#1a1a1c")
#let soft = rgb("#595959")
#let line-colour = rgb("#949494")
#let accent = rgb("#0017c1")
#set text(font: "Noto Sans CJK JP", size: 10pt, fill: ink, lang: "ja", region: "JP", cjk-latin-spacing: none)
#set par(leading: 0.72em, justify: false)
#let strong-text(body, size: 10pt) = text(size: size, stroke: 0.022em + ink, body)
#show strong: it => text(stroke: 0.022em + ink, it.body)
// As set, or made smaller as a whole when a long name would run over the edge.
#let fit(width, height, body) = context {
  let needed = measure(width: width, body).height
  let set-body = block(width: width, body)
  if needed <= height { set-body } else {
    scale(height / needed * 100%, origin: top + left, reflow: true, set-body)
  }
}
#let label(body) = text(size: 8pt, fill: soft, body)
// Latin letters that cannot be mistaken for each other.
#let mono(value, size: 10pt) = text(font: ("DejaVu Sans Mono", "Noto Sans CJK JP"), size: size, value)
// A link breaks at its slashes and still copies as one address.
#let address(value, size: 10pt) = text(font: ("DejaVu Sans Mono", "Noto Sans CJK JP"), size: size, link(value))
#let secret(value, size: 22pt) = text(
  font: ("DejaVu Sans Mono", "Noto Sans CJK JP"), size: size, hyphenate: false, tracking: 0.04em,
  box(value),
)
"""

_SLIPS: Final = """
#set document(title: data.town + "　初期パスワードのお知らせ", author: data.product)
#set page(
  paper: "a4",
  margin: (top: 0mm, bottom: 9mm, x: 0mm),
  footer-descent: 2mm,
  footer: context pad(x: 16mm, text(size: 7pt, fill: soft)[
    #data.town　初期パスワードのお知らせ　#data.date
    #h(1fr)
    #counter(page).display() / #counter(page).final().first() ページ
  ]),
)
#let slip(it) = block(width: 210mm, height: 72mm, breakable: false, inset: (x: 16mm, top: 7mm, bottom: 4mm))[
  #grid(columns: (1fr, auto), align: (left + bottom, right + bottom),
    strong-text(size: 12pt)[#it.town　初期パスワードのお知らせ],
    label[#data.product　#data.date],
  )
  #v(-2mm)
  #line(length: 100%, stroke: 0.8pt + accent)
  #v(-0.5mm)
  #grid(columns: (74mm, 1fr), column-gutter: 7mm,
    fit(74mm, 46mm)[
      #label[所属] \\
      #text(size: 10pt, it.section)
      #v(-0.5mm)
      #label[氏名] \\
      #text(size: 14pt, it.display_name)#h(0.5em)様
      #v(-0.5mm)
      #label[職員番号] \\
      #mono(it.login, size: 12pt)
      #if it.full_login != "" [
        #v(-0.5mm)
        #label[職員番号でサインインできないときのユーザー名] \\
        #mono(it.full_login, size: 9pt)
      ]
    ],
    fit(97mm, 50mm)[
      #block(width: 100%, stroke: 0.8pt + ink, radius: 1.5mm, inset: (x: 4mm, top: 3mm, bottom: 3.5mm))[
        #label[初期パスワード（有効なのは最初の1回だけ）]
        #v(-2.5mm)
        #secret(it.password, size: 22pt)
      ]
      #v(-1mm)
      #set text(size: 8.5pt)
      #set enum(spacing: 0.8em, indent: 0mm, body-indent: 1.5mm)
      + 入口を開きます。 \\ #address(it.entry_url, size: 8.5pt)
      + 職員番号と、上の初期パスワードでサインインします。
      + 新しいパスワードを自分で決めて、この紙を細断します。
      #if data.contact != "" [#label[困ったとき　#data.contact]]
    ],
  )
]
#let cut = line(length: 210mm, stroke: (paint: line-colour, thickness: 0.5pt, dash: "dashed"))
#for (i, it) in data.slips.enumerate() {
  if i > 0 and calc.rem(i, 4) == 0 { pagebreak() }
  block(spacing: 0pt, {
    slip(it)
    place(bottom + left, cut)
  })
}
"""

_HANDOVER: Final = """
#set document(title: data.town + "　引き継ぎ書", author: data.product)
#set page(
  paper: "a4",
  margin: (top: 24mm, bottom: 22mm, x: 22mm),
  header: [
    #set text(size: 8pt, fill: soft)
    #data.product
    #h(1fr)
    #data.town　引き継ぎ書
    #v(-2.5mm)
    #line(length: 100%, stroke: 0.4pt + line-colour)
  ],
  footer: context [
    #set text(size: 8pt, fill: soft)
    #data.date 発行　取扱注意
    #h(1fr)
    #counter(page).display() / #counter(page).final().first() ページ
  ],
)
#let section(body) = block(above: 7mm, below: 3mm, sticky: true)[
  #strong-text(size: 12pt, body)
]
#strong-text(size: 19pt)[#data.town　引き継ぎ書]
#v(-1mm)
この紙には、最初の管理者のパスワードが書いてあります。手渡しで受け取り、サインインが済んだら、パスワードの欄を切り取って細断してください。

#section[最初のサインイン]
#block(width: 100%, stroke: 0.8pt + ink, radius: 1.5mm, inset: 5mm, breakable: false)[
  #grid(columns: (1fr, 1fr), column-gutter: 6mm, row-gutter: 4.5mm,
    ..if data.name != "" { ([#label[管理者] \\ #text(size: 12pt, data.name)],) },
    grid.cell(colspan: if data.name == "" { 2 } else { 1 })[#label[管理者の職員番号] \\ #mono(data.login, size: 12pt)],
    grid.cell(colspan: 2)[#label[初期パスワード（有効なのは最初の1回だけ）] \\ #secret(data.password, size: 22pt)],
    grid.cell(colspan: 2)[#label[入口のアドレス] \\ #address(data.entry_url, size: 11pt)],
    ..if data.full_login != "" {
      (grid.cell(colspan: 2)[
        #label[職員番号でサインインできないときのユーザー名] \\ #mono(data.full_login, size: 10pt)
      ],)
    },
  )
]

#section[登録した内容]
#table(
  columns: (38mm, 1fr),
  stroke: (x, y) => (bottom: 0.4pt + line-colour, top: if y == 0 { 0.4pt + line-colour }),
  inset: (x: 2mm, y: 2.4mm),
  label[団体名], [#data.town],
  label[団体コード], mono(data.code),
  label[1か月の予算], [#data.month_yen],
  ..if data.sections.len() > 0 {
    (label[課], [#data.sections.map(name => box(name)).join([、])#h(1em)（#data.sections.len()課）])
  },
)

#section[最初の1週間にすること]
#set enum(spacing: 1.1em, body-indent: 2.5mm)
+ *サインインする。*入口を開き、職員番号と初期パスワードを入れて、新しいパスワードを決めます。
+ *もう1人、管理者を決める。*「職員」の画面で、異動や休みのときに代わる人を管理者にします。
+ *職員を読み込む。*「職員」の画面で、職員番号・氏名・所属を書いたCSVを選びます。取り込む前に、追加・異動・退職を確かめられます。
+ *初期パスワードの紙を配る。*印刷して切り分け、本人に手渡します。
+ *課ごとの利用枠を決める。*決めない課は、町全体の枠の中で使えます。
+ *使えるデータと生成AIの範囲を確かめる。*町の情報セキュリティポリシーに合わせて、「設定」の画面で直します。
+ *職員に知らせる。*できること、入れてはいけない情報、困ったときの連絡先を伝えます。

#section[困ったとき]
#if data.contact != "" [#data.contact] else [共同利用の事務局に問い合わせてください。] \\
画面に「問合せ番号」が出ていたら、その番号を伝えてください。

"""

_CERTIFICATE: Final = """
#set document(title: data.town + "　消去の証明書", author: data.product)
#set page(
  paper: "a4",
  margin: (top: 24mm, bottom: 22mm, x: 22mm),
  header: [
    #set text(size: 8pt, fill: soft)
    #data.product
    #h(1fr)
    #data.town　消去の証明書
    #v(-2.5mm)
    #line(length: 100%, stroke: 0.4pt + line-colour)
  ],
  footer: context [
    #set text(size: 8pt, fill: soft)
    #data.town　#data.at
    #h(1fr)
    #counter(page).display() / #counter(page).final().first() ページ
  ],
)
#let section(body) = block(above: 7mm, below: 3mm, sticky: true)[
  #strong-text(size: 12pt, body)
]
#let rule(x, y) = (bottom: 0.4pt + line-colour, top: if y == 0 { 0.4pt + line-colour })
#let facts(..cells) = table(columns: (52mm, 1fr), stroke: rule, inset: (x: 2mm, y: 2.2mm), ..cells)
// A long number breaks anywhere and still copies as one.
#let digits(value) = mono(size: 8pt, value.clusters().join(sym.zws))
#strong-text(size: 19pt)[消去の証明書]
#v(1mm)
#data.town の内容を封じた鍵をすべて破棄し、保存していた文書とファイル、職員の氏名と職員番号を消去しました。鍵がないため、消去より前の内容を読むことはできません。

#facts(
  label[団体], [#data.town],
  label[団体コード], mono(data.code),
  label[消去した日時], [#data.at],
  label[消去した者], [#data.by],
)

#section[消去したもの]
#facts(..data.counts.map(it => (label(it.at(0)), [#it.at(1)])).flatten())

#section[破棄した鍵]
#table(columns: (1fr, 72mm), stroke: rule, inset: (x: 2mm, y: 2.2mm),
  table.header(label[鍵の番号], label[破棄した日時（協定世界時）]),
  ..data.keys.flatten().map(it => mono(size: 8.5pt, it)),
)

#section[残るもの]
利用と金額の記録、監査の記録は、名前のない形で残ります。消去より前に取ったバックアップには、包まれた鍵が残っています。バックアップの保存期限が過ぎると、それも無くなります。

#section[署名]
#facts(
  label[監査の記録の通番], [#data.seq],
  label[その記録のハッシュ], digits(data.hash),
  label[署名の鍵], digits(data.key),
  label[署名（Ed25519）], digits(data.signature),
)
この紙と対になるJSONのファイルを `kumiai audit verify --file` に渡すと、書かれたことが後から変えられていないかを、つながっていない機械でも確かめられます。
"""

_INVOICE: Final = """
#set document(title: "請求書 " + data.number + "　" + data.town, author: data.issuer)
#set page(
  paper: "a4",
  margin: (top: 24mm, bottom: 22mm, x: 22mm),
  header: [
    #set text(size: 8pt, fill: soft)
    #data.product
    #h(1fr)
    #data.town　請求書 #data.number
    #v(-2.5mm)
    #line(length: 100%, stroke: 0.4pt + line-colour)
  ],
  footer: context [
    #set text(size: 8pt, fill: soft)
    #data.issuer　#data.month;分
    #h(1fr)
    #counter(page).display() / #counter(page).final().first() ページ
  ],
)
#let section(body) = block(above: 7mm, below: 3mm, sticky: true)[
  #strong-text(size: 12pt, body)
]
#let rule(x, y) = (bottom: 0.4pt + line-colour, top: if y == 0 { 0.4pt + line-colour })
#let right-columns(first) = (x, y) => if x >= first { right + top } else { left + top }
#let headed(columns, first, heads, rows) = table(
  columns: columns,
  stroke: rule,
  inset: (x: 2mm, y: 2.2mm),
  align: right-columns(first),
  table.header(..heads.map(label)),
  ..rows.flatten().map(cell => [#cell]),
)
#grid(columns: (1fr, auto), align: (left + bottom, right + bottom),
  strong-text(size: 19pt)[請求書],
  if data.open != "" { box(stroke: 0.8pt + ink, radius: 1mm, inset: 2mm, strong-text(data.open)) },
)
#v(1mm)
#grid(columns: (1fr, 76mm), column-gutter: 6mm,
  [
    #label[交付先] \\
    #text(size: 14pt, data.town)#h(0.5em)御中 \\
    #label[団体コード　#data.code]
  ],
  [
    #label[発行者] \\
    #text(size: 11pt, data.issuer) \\
    #if data.address != "" [#text(size: 9pt, data.address) \\ ]
    #label[登録番号]#h(0.6em)#if data.registration != "" { mono(data.registration) } else [なし]
  ],
)
#v(1mm)
#block(width: 100%, stroke: 0.8pt + ink, radius: 1.5mm, inset: 5mm, breakable: false)[
  #grid(columns: (1fr, auto), align: (left + horizon, right + horizon),
    [#label[請求額（税込み）] \\ #data.month;分　#data.kind],
    strong-text(size: 22pt, data.total),
  )
]
#table(
  columns: (38mm, 1fr),
  stroke: rule,
  inset: (x: 2mm, y: 2.2mm),
  label[取引年月日], [#data.period],
  label[請求の根拠], [#data.basis],
)

#section[取引内容]
#headed((1fr, 24mm, 36mm), 1, ("内容", "適用税率", "金額（税抜き）"), data.lines)

#section[税率ごとの合計]
#headed((1fr, 40mm, 36mm), 1, ("区分", "対価の額（税抜き）", "消費税額"), data.taxes)
#v(1mm)
#for note in data.notes [#text(size: 8.5pt, note) \\ ]

#if data.sections.len() > 0 [
  #section[課ごとの内訳]
  #text(size: 8.5pt, data.sections_words)
  #headed((1fr, 40mm), 1, ("課", "金額"), data.sections)
]
"""
