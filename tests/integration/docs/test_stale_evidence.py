"""`.ci/stale-evidence` tells which pages of evidence were made on other code than is here, and never fails."""

import hashlib
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / ".ci" / "stale-evidence"


def _git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.jp", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _told(folder: Path) -> list[str]:
    done = subprocess.run([SCRIPT], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_page_is_told_from_the_day_its_code_changes(tmp_path: Path) -> None:
    pages = tmp_path / "docs" / "evidence"
    pages.mkdir(parents=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "code")
    state = hashlib.sha256(f"{_git(tmp_path, 'ls-files', '-s', 'code')}\n".encode()).hexdigest()[:16]
    made = _git(tmp_path, "rev-parse", "HEAD")
    page = pages / "page.md"
    page.write_text(f"# Page\n\n- commit: {made}\n- covers: code\n- state of these paths: {state}\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "evidence")
    assert _told(tmp_path) == []
    (tmp_path / "code" / "a.py").write_text("a = 2\n")
    _git(tmp_path, "commit", "-qam", "other code")
    assert _told(tmp_path) == ["evidence: docs/evidence/page.md is older than its code (1 commits to: code)"]
    page.write_text("# Page\n")
    assert _told(tmp_path) == ["evidence: docs/evidence/page.md does not say which code it covers"]
