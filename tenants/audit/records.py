"""The forms in which the chain is hashed, sealed and signed; pure, so that an export can be checked without us.

A text is hashed in one canonical JSON. Links form a chain; the calls of a segment are the leaves of a Merkle tree as
in RFC 6962 (leaves and nodes begin with different bytes, so neither can pass for the other); checkpoints say by
Ed25519 how far the chain reached, and are numbered, so that none can be left out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

# The link that seals calls; its facts carry `count` and `root`, its leaves the calls as they were then.
SEGMENT: Final = "call.segment"
# What a leaf says of a call, in this order; numbers, ids and names of things, never content.
LEAF_COLUMNS: Final = (
    "created_at", "id", "state", "person_id", "section_id", "api_key_id", "app", "operation", "alias", "deployment",
    "zone", "data_class", "streamed", "hold_uyen", "cost_uyen", "prompt_tokens", "completion_tokens", "usage_source",
    "finish_reason", "problem", "first_byte_ms", "total_ms", "settled_at",
)  # fmt: skip
EXPORT: Final = "export"
INTERVAL: Final = "interval"


def canonical(value: object) -> str:
    """One text per value: sorted keys, no spaces, letters as they are."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def link_hash(previous: str, told: Mapping[str, Any]) -> str:
    """told: `seq`, `at`, `actor`, `action`, `object`, `facts`."""
    return hashlib.sha256(f"{previous}\n{canonical(told)}".encode()).hexdigest()


def leaf(values: Sequence[object]) -> str:
    """values: as `LEAF_COLUMNS` names them."""
    told = [instant(v) if isinstance(v, datetime) else v if isinstance(v, int | None) else str(v) for v in values]
    return canonical(told)


def merkle_root(leaves: Sequence[str]) -> str:
    """The root of at least one leaf, as hex."""
    level = [hashlib.sha256(b"\x00" + text.encode()).digest() for text in leaves]
    while len(level) > 1:
        pairs = [
            hashlib.sha256(b"\x01" + level[n] + level[n + 1]).digest() if n + 1 < len(level) else level[n]
            for n in range(0, len(level), 2)
        ]
        level = pairs
    return level[0].hex()


def fingerprint(public_key: bytes) -> str:
    """The name of a signing key: what a town notes and compares."""
    return hashlib.sha256(b"kumiai audit key" + public_key).hexdigest()[:32]


def key_message(number: int, public_key: bytes, since: datetime) -> bytes:
    """What a signing key signs about itself, and its predecessor about it."""
    return canonical(
        {"kumiai": "audit-key", "number": number, "public_key": public_key.hex(), "since": instant(since)}
    ).encode()


def checkpoint_message(tenant_id: object, told: Mapping[str, Any]) -> bytes:
    """told: `number`, `seq`, `hash`, `at`, `purpose`, `key`."""
    return canonical({"kumiai": "audit-checkpoint", "tenant": str(tenant_id), **told}).encode()
