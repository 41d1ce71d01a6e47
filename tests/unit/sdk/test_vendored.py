"""What others wrote is carried along byte for byte, and named with its licence in NOTICE."""

import hashlib
from pathlib import Path

VENDOR = Path(__file__).parents[3] / "apps/sdk/ui/static/vendor"

# SHA-256 of dist/htmx.min.js and dist/tokens.css as their npm packages have them.
HASHES = {
    "dads-tokens-1.1.9.css": "ec3fb5b1e881d1bdf076feff29fe15a32269353c7a9cef40194f1eff0c3d7a90",
    "htmx-4.0.1.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
}


def test_vendored_files_are_unmodified_and_none_is_unknown() -> None:
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in VENDOR.iterdir()}
    assert found == HASHES


def test_every_vendored_file_is_named_in_notice() -> None:
    notice = (VENDOR.parents[4] / "NOTICE").read_text()
    assert [name for name in HASHES if name not in notice] == []
