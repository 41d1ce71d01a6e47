"""The app of docs/howto/app-developer.md, written to disk block by block, installed beside Kumiai and used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "app-developer.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blocks as files, and what an installer would note about them."""
    root = tmp_path_factory.mktemp("package")
    blocks = re.findall(r"^`([\w./]+)`\n```\w+\n(.*?)^```", HOWTO.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert {name for name, _ in blocks} >= {"plain_words/app.toml", "plain_words/router.py", "pyproject.toml"}
    for name, text in blocks:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    entry = re.search(r'kumiai\.apps"\]\n(.+)\n', (root / "pyproject.toml").read_text())
    assert entry is not None
    installed = root / "plain_words-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-words\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[kumiai.apps]\n" + entry[1].replace('"', "") + "\n")
    return root


def run(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # The app as installed, and Kumiai itself where no installer has put it.
    path = os.pathsep.join([str(package), str(HOWTO.parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}  # noqa: TID251 - a child of the test run
    return subprocess.run(
        [sys.executable, *words], cwd=package, env=environment, text=True, capture_output=True,
        timeout=240, check=False,
    )  # fmt: skip


def test_the_app_is_listed_with_its_owner_and_retention(package: Path) -> None:
    listed = run(package, "-m", "kumiai", "apps", "list")
    assert listed.returncode == 0, listed.stderr
    line = next(line for line in listed.stdout.splitlines() if line.startswith("plain_words"))
    for told in ("やさしい言葉", "住民課", "機密性1", "保存90日"):
        assert told in line


def test_the_apps_own_test_passes_on_the_running_product(package: Path) -> None:
    done = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "plain_words/tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
