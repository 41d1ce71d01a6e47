"""Every app is a folder that knows the SDK and nobody else: read from its imports, so that a new one needs no list."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.sdk.app import load_manifest

APPS = Path(__file__).parents[3] / "apps"
FOLDERS = sorted(m.parent for m in APPS.glob("*/app.toml"))
OURS = ("apps", "gateway", "kumiai", "observability", "tenants", "loadtests")


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def test_the_folders_were_found() -> None:
    assert "chat" in {f.name for f in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_an_app_imports_the_sdk_and_itself(folder: Path) -> None:
    allowed = ("apps.sdk", f"apps.{folder.name}")
    found = {(file.name, name) for file in folder.rglob("*.py") for name in imported(file)}
    assert any(name.startswith("apps.sdk") for _, name in found)
    for file, name in found:
        if name.split(".")[0] in OURS:
            assert name in allowed or name.startswith(tuple(f"{a}." for a in allowed)), f"{file} imports {name}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_an_app_has_a_manifest_and_pages(folder: Path) -> None:
    manifest = load_manifest(folder)
    assert manifest.title
    assert manifest.risk.human_decision
    assert list((folder / "templates").glob("*.html"))
