"""Gives a new clone the bytecode of what Kumiai's start loads: from the folder an earlier one left, else made there.

Packages come as source, and every start of the demo and every reader of files would compile up to 1,400 of them. A
file of bytecode names the hash of its source (PEP 552), which Python compares at every import: one that does not fit is
not used.

Usage, in the project's folder: .venv/bin/python requirements/bytecode.py CACHE
"""

import hashlib
import importlib
import importlib.util
import marshal
import os
import shutil
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path

LOADED_AT_START = (
    "kumiai.__main__", "kumiai.commands", "kumiai.demo", "kumiai.front", "kumiai.seed", "kumiai.worker",
    "tenants.schema", "gateway.server.main", "gateway.reading.dispatch", "apps.host.main",
    "aiosqlite", "uvicorn.lifespan.on", "uvicorn.loops.uvloop", "uvicorn.protocols.http.httptools_impl",
)  # fmt: skip
_CHECKED_HASH = (0b11).to_bytes(4, "little")


def main(cache: Path) -> None:
    locked = Path("requirements/runtime.lock").read_bytes() + Path(__file__).read_bytes()
    kept = cache / f"bytecode-{sys.implementation.cache_tag}-{hashlib.sha256(locked).hexdigest()[:16]}"
    if not kept.exists():
        # Renamed in the end: an install beside this one finds all of it or nothing.
        draft = Path(tempfile.mkdtemp(prefix="new.", dir=cache))
        try:
            _compile(Path.cwd(), draft)
            draft.rename(kept)
        except OSError:
            if not kept.exists():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    for folder, _, names in os.walk(kept):
        there = Path.cwd() / Path(folder).relative_to(kept)
        if names and there.parent.exists():
            there.mkdir(exist_ok=True)
            for name in names:
                _take(Path(folder, name), there / name)


def _compile(project: Path, draft: Path) -> None:
    """Loads it all, and writes what came from the project's folder, packages included, as bytecode."""
    sys.dont_write_bytecode = False  # so that `get_code` below finds what the import has compiled
    for name in LOADED_AT_START:
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if not isinstance(loader, SourceFileLoader) or not Path(loader.path).is_relative_to(project):
            continue
        bytecode = draft / Path(importlib.util.cache_from_source(loader.path)).relative_to(project)
        bytecode.parent.mkdir(parents=True, exist_ok=True)
        source_hash = importlib.util.source_hash(Path(loader.path).read_bytes())
        code = marshal.dumps(loader.get_code(name))
        bytecode.write_bytes(importlib.util.MAGIC_NUMBER + _CHECKED_HASH + source_hash + code)


def _take(kept: Path, there: Path) -> None:
    """A second name of the same file where that can be had: Python replaces bytecode and never writes into it."""
    try:
        there.unlink(missing_ok=True)
        os.link(kept, there)
    except OSError:
        shutil.copyfile(kept, there)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
