"""The howtos name buttons and headings that exist, commands that exist and pictures that are there."""

import re
import shlex
from pathlib import Path

import pytest

from kumiai.__main__ import main

ROOT = Path(__file__).parents[3]
HOWTOS = [ROOT / "docs" / "howto" / f"{name}.md" for name in ("operator", "town-administrator")]
ISOLATION = ROOT / "docs" / "howto" / "isolation-report.md"
# Emphasis that is a sentence, not the name of something on a page.
SENTENCE = re.compile("。")


def pages() -> str:
    files = [*ROOT.glob("apps/*/templates/*.html"), *ROOT.glob("apps/sdk/ui/templates/*.html")]
    files += [*ROOT.glob("apps/console/*.py"), *ROOT.glob("apps/host/*.py"), *ROOT.glob("apps/sdk/ui/render.py")]
    return "\n".join(f.read_text("utf-8") for f in files)


@pytest.mark.parametrize("howto", HOWTOS, ids=lambda p: p.stem)
def test_what_is_named_in_bold_stands_on_a_page(howto: Path) -> None:
    named = [w for w in re.findall(r"\*\*(.+?)\*\*", howto.read_text("utf-8")) if not SENTENCE.search(w)]
    assert len(named) > 10
    text = pages()
    assert [w for w in named if w not in text] == []


def test_what_an_auditor_is_told_to_look_at_stands_in_the_report() -> None:
    report = (ROOT / "kumiai" / "isolation" / "report.html").read_text("utf-8")
    headings = re.findall("<h2>(.+?)</h2>", report)
    assert len(headings) > 5
    text = ISOLATION.read_text("utf-8")
    assert set(re.findall(r"\*\*(.+?)\*\*", text)) == set(headings)
    said = report + (ROOT / "kumiai" / "commands.py").read_text("utf-8")
    quoted = set(re.findall("「(.+?)」", text)) - {"監査の記録"}
    assert len(quoted) > 4
    for words in quoted:
        assert all(part in said for part in words.split("…")), words


def test_the_commands_for_an_isolation_report_are_read_as_they_are_printed() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", ISOLATION.read_text("utf-8"), re.DOTALL)
    shown = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert len(shown) == 2
    for words in shown:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0, words


@pytest.mark.parametrize("howto", [*HOWTOS, ISOLATION], ids=lambda p: p.stem)
def test_pictures_and_pages_it_leads_to_are_there(howto: Path) -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", howto.read_text("utf-8"))
    assert linked
    for target in linked:
        file = howto.parent / target
        assert file.exists(), target
        assert file.suffix != ".png" or file.stat().st_size <= 250 * 1024


def test_the_commands_it_shows_are_commands() -> None:
    shown = set(re.findall(r"`kumiai (\w+(?: \w+)?)[ `]", HOWTOS[0].read_text("utf-8")))
    assert len(shown) >= 8
    for words in shown:
        with pytest.raises(SystemExit) as ended:
            main([*(w for w in words.split() if w.isascii()), "--help"])
        assert ended.value.code == 0, words
