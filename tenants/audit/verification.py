"""Checks a chain: every hash, every Merkle root, every signature; the first record that does not hold is named.

`verify_export` needs the file alone: no database, no network, and of this product only these pure forms.
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlmodel import select

from observability.problems import InvalidInput, Problem
from tenants.audit.lines import CHECKPOINTS, KEYS, LINKS, checkpoint_lines, key_lines, link_pages
from tenants.audit.records import (
    EXPORT,
    SEGMENT,
    canonical,
    checkpoint_message,
    fingerprint,
    key_message,
    link_hash,
    merkle_root,
)
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import AuditHead

_TOLD: Final = ("seq", "at", "actor", "action", "object", "facts")
_LINK: Final = frozenset({*_TOLD, "previous_hash", "hash"})
_CHECKPOINT: Final = frozenset({"number", "seq", "hash", "at", "purpose", "key", "signature"})
_KEY: Final = frozenset({"number", "public_key", "since", "signature", "endorsement"})


class AuditBroken(Problem):
    """A record was changed, taken out, put in or moved. The detail names the first one and where it stands."""

    type = "urn:problem:tenants:audit-broken"
    status = HTTPStatus.CONFLICT
    title = "監査の記録が正しくつながっていません"


@dataclass(frozen=True, slots=True)
class Checked:
    """What holds. `signed_at`, `signed_seq`: of the last checkpoint. `keys`: their fingerprints, oldest first."""

    tenant_id: UUID
    links: int
    calls: int
    checkpoints: int
    signed_seq: int
    signed_at: str
    keys: tuple[str, ...]


class Keyring:
    """The public keys that a file carries, oldest first; each but the first is signed by the one before."""

    def __init__(self) -> None:
        self._keys: dict[str, Ed25519PublicKey] = {}

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def add(self, line: str) -> None:
        """Raises `AuditBroken` when the key does not follow the last."""
        number = len(self._keys) + 1
        where = f"{KEYS} の {number} 行目（署名の鍵）"
        told = _parsed(line, _KEY, where)
        raw = _bytes(told["public_key"], where)
        try:
            public = Ed25519PublicKey.from_public_bytes(raw)
            message = key_message(told["number"], raw, datetime.fromisoformat(told["since"]))
        except (ValueError, TypeError) as error:
            raise AuditBroken(f"{where}を読めません。") from error
        if told["number"] != number:
            raise AuditBroken(f"{where}の番号が続いていません。")
        _check(public, told["signature"], message, where)
        if number == 1 and told["endorsement"]:
            raise AuditBroken(f"{where}より前の鍵がありません。")
        if number > 1:
            _check(self._keys[self.fingerprints[-1]], told["endorsement"], message, where)
        self._keys[fingerprint(raw)] = public

    def check(self, key: str, signature: object, message: bytes, where: str) -> None:
        """key: the fingerprint of the one that signed."""
        public = self._keys.get(key)
        if public is None:
            raise AuditBroken(f"{where}に署名した鍵が、ファイルの中にありません。")
        _check(public, signature, message, where)


class Verifier:
    """Takes keys, then checkpoints, then links, line by line in their order; `end` says what holds."""

    def __init__(self, tenant_id: UUID) -> None:
        self._tenant_id = tenant_id
        self._keys = Keyring()
        self._checkpoints: list[dict[str, Any]] = []
        self._reached = 0
        self._seq = 0
        self._hash = ""
        self._calls = 0

    def key(self, line: str) -> None:
        self._keys.add(line)

    def checkpoint(self, line: str) -> None:
        number = len(self._checkpoints) + 1
        where = f"{CHECKPOINTS} の {number} 行目（署名）"
        told = _parsed(line, _CHECKPOINT, where)
        if told["number"] != number:
            raise AuditBroken(f"{where}の番号が続いていません。")
        try:
            datetime.fromisoformat(told["at"])
        except (ValueError, TypeError) as error:
            raise AuditBroken(f"{where}の日時を読めません。") from error
        signed = {name: value for name, value in told.items() if name != "signature"}
        self._keys.check(told["key"], told["signature"], checkpoint_message(self._tenant_id, signed), where)
        if self._checkpoints and told["seq"] < self._checkpoints[-1]["seq"]:
            raise AuditBroken(f"{where}が、前の署名より短い記録を指しています。")
        self._checkpoints.append(told)
        self._compare()

    def link(self, line: str) -> None:
        where = f"通番 {self._seq + 1}（{LINKS} の {self._seq + 1} 行目）"
        told = _parsed(line, _LINK, where, optional="leaves")
        if told["seq"] != self._seq + 1:
            raise AuditBroken(f"{where}があるはずのところに、通番 {told['seq']} があります。")
        if told["previous_hash"] != self._hash:
            raise AuditBroken(f"{where}が、前の記録につながりません。")
        if told["hash"] != link_hash(self._hash, {name: told[name] for name in _TOLD}):
            raise AuditBroken(f"{where}が、書かれた後に変えられています。")
        leaves = told.get("leaves", [])
        if told["action"] == SEGMENT:
            self._segment(told["facts"], leaves, where)
        elif leaves:
            raise AuditBroken(f"{where}に、あるはずのない呼び出しが付いています。")
        self._seq, self._hash = told["seq"], told["hash"]
        self._compare()

    def _segment(self, facts: dict[str, Any], leaves: object, where: str) -> None:
        if not isinstance(leaves, list) or not all(isinstance(text, str) for text in leaves):
            raise AuditBroken(f"{where}の呼び出しを読めません。")
        if len(leaves) != facts["count"]:
            raise AuditBroken(f"{where}の呼び出しは {facts['count']:,} 件のはずですが、{len(leaves):,} 件あります。")
        if merkle_root(leaves) != facts["root"]:
            raise AuditBroken(f"{where}の呼び出しのどれかが、封じた後に変えられています。")
        self._calls += len(leaves)

    def _compare(self) -> None:
        """Holds the chain against the checkpoints that point where it has come to."""
        while self._reached < len(self._checkpoints):
            told = self._checkpoints[self._reached]
            if told["seq"] > self._seq:
                return
            if told["seq"] < self._seq or told["hash"] != self._hash:
                raise AuditBroken(
                    f"通番 {told['seq']} までの記録が、署名したとき（{CHECKPOINTS} の {self._reached + 1} 行目）と違います。"
                )
            self._reached += 1

    def end(self, *, is_export: bool) -> Checked:
        """is_export: the last checkpoint must be the one that closes an export."""
        last = self._checkpoints[-1] if self._checkpoints else None
        if self._reached < len(self._checkpoints):
            told = self._checkpoints[self._reached]
            raise AuditBroken(f"通番 {told['seq']} まで署名されていますが、記録は通番 {self._seq} で終わっています。")
        if is_export and (last is None or last["purpose"] != EXPORT):
            raise AuditBroken(f"{CHECKPOINTS} の最後に、書き出したときの署名がありません。")
        if is_export and last is not None and last["seq"] != self._seq:
            raise AuditBroken(f"通番 {last['seq'] + 1} からの記録は、書き出したときの署名の後に足されています。")
        if is_export and last is not None and last["key"] != self._keys.fingerprints[-1]:
            raise AuditBroken(f"{KEYS} の最後の鍵は、書き出したときの鍵ではありません。")
        return Checked(
            self._tenant_id,
            self._seq,
            self._calls,
            len(self._checkpoints),
            last["seq"] if last else 0,
            last["at"] if last else "",
            self._keys.fingerprints,
        )

    def refuse_other_end(self, seq: int, hash: str) -> None:
        """For the database, which also keeps where the chain ends."""
        if (seq, hash) != (self._seq, self._hash):
            raise AuditBroken(f"記録は通番 {seq} で終わるはずですが、通番 {self._seq} で終わっています。")


def verify_export(path: Path, *, key: str = "") -> Checked:
    """Checks the chain in an export, with nothing but the file.

    key: a fingerprint noted earlier, which must be among the keys. Without it the file is only shown to agree with
    itself. Raises `AuditBroken`, naming the first record that does not hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            verifier = Verifier(UUID(json.loads(archive.read("manifest.json"))["tenant_id"]))
            for name, take in ((KEYS, verifier.key), (CHECKPOINTS, verifier.checkpoint), (LINKS, verifier.link)):
                for line in _lines(archive, name):
                    take(line)
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} がありません。", field="file") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise AuditBroken(f"{path} を、書き出したファイルとして読めません（{type(error).__name__}）。") from error
    checked = verifier.end(is_export=True)
    if key and key not in checked.keys:
        raise AuditBroken(f"控えてある鍵 {key} で署名されていません。")
    return checked


async def verify_chain(db: Database, tenant_id: TenantId) -> Checked:
    """Checks a town's chain in the database. Raises `AuditBroken`."""
    verifier = Verifier(tenant_id)
    # Checkpoints may come while they are read, by a key that comes too.
    signed = await checkpoint_lines(db, tenant_id)
    for line in await key_lines(db):
        verifier.key(line)
    for line in signed:
        verifier.checkpoint(line)
    # What is added from here on is not looked at; what was signed before lies within.
    async with db.platform_session("audit read", read_only=True) as session:
        head = (await session.exec(select(AuditHead).where(AuditHead.tenant_id == tenant_id))).first()
    end = (head.seq, head.hash) if head else (0, "")
    async for page in link_pages(db, tenant_id, until=end[0]):
        for line in page:
            verifier.link(line)
    verifier.refuse_other_end(*end)
    return verifier.end(is_export=False)


def _lines(archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    with archive.open(name) as member, TextIOWrapper(member, "utf-8", newline="\n") as text:
        for line in text:
            if not line.endswith("\n"):
                raise AuditBroken(f"{name} の最後の行が途中で切れています。")
            yield line[:-1]


def _parsed(line: str, fields: frozenset[str], where: str, *, optional: str = "") -> dict[str, Any]:
    """Only the one canonical form is accepted, so that no byte can be changed unseen."""
    try:
        told = json.loads(line)
        is_whole = isinstance(told, dict) and set(told) - {optional} == fields and canonical(told) == line
    except ValueError as error:
        raise AuditBroken(f"{where}を読めません。") from error
    if not is_whole:
        raise AuditBroken(f"{where}が、書かれた後に変えられています。")
    return dict(told)


def _bytes(text: object, where: str) -> bytes:
    try:
        return bytes.fromhex(str(text))
    except ValueError as error:
        raise AuditBroken(f"{where}を読めません。") from error


def _check(public: Ed25519PublicKey, signature: object, message: bytes, where: str) -> None:
    try:
        public.verify(_bytes(signature, where), message)
    except InvalidSignature as error:
        raise AuditBroken(f"{where}の署名が合いません。") from error
