"""What was tried and what became of it, as a page that a town can hand to its auditor: HTML, PDF, and JSON for machines."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kumiai.isolation.rows import Wall
from kumiai.isolation.tokens import KINDS
from tenants.eras import wareki
from tenants.printing import render_pdf
from tenants.quota.windows import JST

_FOLDER: Final = Path(__file__).parent

# Where the ids of another town stood.
_WAYS: Final[Mapping[str, str]] = {
    "path": "アドレスの中の番号を、別の町のものにする",
    "field": "送る欄や検索の条件（会話、ファイル、職員、課などの番号）を、別の町のものにする",
    "header": "要求の見出しと目印（ヘッダーとCookie）で、別の町を名乗る",
    "body": "APIの本文に、別の町の番号を書く",
    "idempotency-key": "別の町が使った二重送信を防ぐ番号（Idempotency-Key）を使う",
    "afterwards": "すべて試した後で、町のデータを照らし合わせる",
}
WALLS: Final[Mapping[Wall, str]] = {
    "row-level security": "データベースの行レベルセキュリティだけ（プログラムの条件なし）",
    "filters": "プログラムの条件だけ（行レベルセキュリティなし）",
}
# Who a finding is by when a credential was accepted.
FORGED: Final = "偽の証明"
NOT_COVERED: Final = (
    "この試験は、同じ版のシステムを別に立ち上げて行います。運用中の設定やデータそのものは試しません。",
    "サインインは同梱の発行者で試します。Keycloakや町の認証基盤では、偽の証明の試験をしていません。",
    "サーバーを管理し、かつ大もとの鍵（ルート鍵）を持つ人からは守れません。",
    "応答にかかる時間の差や、画面の見た目の差から推し量ることは試していません。",
    "大量に送って使えなくすること（妨害）は試していません。",
    "AIの提供者に送った後の扱いは、契約によるもので、ここでは試せません。",
    "同じ中身の署名を別の書き方にしたもの（楕円曲線署名の性質）は、偽の証明に数えていません。持ち主と期限は変わりません。",
    "名前が団体ごとに変わる入力欄（予算の表の金額の欄）は、事務局だけの画面にあり、入れ替えを試していません。",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that got through: by whom, where, how, what happened."""

    who: str
    where: str
    how: str
    what: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one trial. Counters are by the engine's own slugs; `findings` empty: all was refused.

    `alone`: tries of every address by one wall, by the wall; `control`: how many there were by neither, and how many of
    them got through; `reaches`: tries of every table by one wall, by the wall.
    """

    began: datetime
    ended: datetime
    version: str
    machine: str
    database: str
    pages: int
    calls: int
    uncovered: tuple[str, ...]
    people: Mapping[str, str]
    tried_by: Counter[str]
    ways: Counter[str]
    tokens: Counter[str]
    by_wire: int
    alone: Counter[Wall]
    control: tuple[int, int]
    reaches: Counter[Wall]
    tables: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def is_good(self) -> bool:
        """Everything was tried, and refused."""
        return not self.findings and not self.uncovered

    def facts(self) -> dict[str, Any]:
        """In words and numbers, as all three forms tell it."""
        began = self.began.astimezone(JST)
        minutes = max(1, round((self.ended - self.began).total_seconds() / 60))
        ways = Counter({k: n for k, n in self.ways.items() if k in _WAYS})
        ways["field"] += sum(n for k, n in self.ways.items() if k not in _WAYS and k != "footprint")
        total = self.tried_by.total() + self.tokens.total() + self.alone.total() + self.reaches.total()
        walls = [[w, self.alone[wall], self.reaches[wall]] for wall, w in WALLS.items() if self.reaches[wall]]
        missing = [] if self.reaches["row-level security"] else [
            "この機械にPostgreSQLがないため、行レベルセキュリティは試していません。守りを1つにした試験は、表についてだけしました。"
        ]  # fmt: skip
        return {
            "at": f"{wareki(began.date())} {began:%H時%M分}",
            "minutes": minutes,
            "version": self.version,
            "machine": self.machine,
            "database": self.database,
            "is_good": self.is_good,
            "total": total,
            "pages": self.pages,
            "calls": self.calls,
            "people": [[title, self.tried_by[name]] for name, title in self.people.items()],
            "ways": [[words, ways[way]] for way, words in _WAYS.items()],
            "tokens": [[words, self.tokens[kind]] for kind, (words, _, _) in KINDS.items()],
            "tokens_total": self.tokens.total(),
            "accepted": sum(f.who == FORGED for f in self.findings),
            "past_walls": sum(f.who in WALLS.values() for f in self.findings),
            "by_wire": self.by_wire,
            "tables": self.tables,
            "control": self.control[0],
            "control_through": self.control[1],
            "walls": walls,
            "not_covered": [*missing, *NOT_COVERED],
            "uncovered": list(self.uncovered),
            "findings": [[f.who, f.where, f.how, f.what] for f in self.findings],
        }

    def write(self, folder: Path) -> list[Path]:
        """isolation-report.html, .pdf and .json in a folder, which is made."""
        facts = self.facts()
        environment = Environment(
            loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        html = environment.get_template("report.html").render(facts)
        words = facts | {k: [_printed(row) for row in facts[k]] for k in ("people", "ways", "tokens", "walls")}
        words |= {k: f"{facts[k]:,}" for k in ("total", "tokens_total", "by_wire")}
        pdf = render_pdf((_FOLDER / "report.typ").read_text(), words, today=self.began.astimezone(JST).date())
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"isolation-report.{kind}" for kind in ("html", "pdf", "json")]
        files[0].write_text(html)
        files[1].write_bytes(pdf)
        files[2].write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
        return files


def _printed(row: list[Any]) -> list[str]:
    return [f"{cell:,}" if isinstance(cell, int) else cell for cell in row]
