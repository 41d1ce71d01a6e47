"""The certificate of an erasure: true, signed, the same each time, and checked with nothing but the file."""

import json
from pathlib import Path
from typing import Any

import pypdfium2
import pytest

from observability.problems import Conflict, InvalidInput
from tenants.audit.certificate import issue_certificate, verify_certificate
from tenants.audit.checkpoints import Signer
from tenants.audit.verification import AuditBroken
from tenants.context import TenantContext
from tenants.printing import erasure_certificate
from tests.integration.tenants.test_erasure import NAME, NOW, Region, region

__all__ = ["region"]

Told = dict[str, Any]


async def certificate(region: Region) -> Told:
    return await issue_certificate(region.db, region.content.vault, region.town.id)


def written(told: Told, folder: Path) -> Path:
    path = folder / "certificate.json"
    path.write_text(json.dumps(told, ensure_ascii=False))
    return path


async def test_it_says_what_was_destroyed_and_when(region: Region, tmp_path: Path) -> None:
    await region.content.vault.rotate(region.town.id)
    keys = [key.id for key in await region.content.vault.keys(region.town.id)]
    await region.erase((await region.export()).path)
    told = await certificate(region)
    assert [key["id"] for key in told["destroyed_keys"]] == [str(id) for id in keys]
    assert {key["destroyed_at"] for key in told["destroyed_keys"]} == {NOW.isoformat()}
    assert told["counts"] == {"people": 2, "documents": 1, "files": 2}
    certified = verify_certificate(written(told, tmp_path))
    assert (certified.name, certified.tenant_id, certified.erased_at) == ("みどり町", region.town.id, NOW)
    assert certified.destroyed_keys == 2


async def test_it_can_be_issued_again_and_says_the_same(region: Region, tmp_path: Path) -> None:
    await region.erase((await region.export()).path)
    first = await certificate(region)
    assert await certificate(region) == first
    # Also by a later key, which the first one vouches for.
    await Signer(region.db, region.content.vault).rotate()
    later = await certificate(region)
    assert later["key"] != first["key"]
    assert verify_certificate(written(later, tmp_path), key=first["key"]).destroyed_keys == 1


async def test_what_is_changed_in_it_is_found(region: Region, tmp_path: Path) -> None:
    await region.erase((await region.export()).path)
    told = await certificate(region)
    assert verify_certificate(written(told, tmp_path)).keys == (told["key"],)
    forgeries: list[Told] = [
        told | {field: value}
        for field, value in (
            ("name", "あおば町"), ("code", "012025"), ("erased_at", "2020-01-01T00:00:00+00:00"), ("erased_by", ["person", ""]),
            ("destroyed_keys", []), ("counts", {}), ("link", {"seq": 1, "hash": ""}), ("tenant", str(region.neighbour.id)),
            ("signing_keys", []), ("key", "0" * 32), ("signature", "00" * 64), ("format", 2), ("more", 1),
        )
    ]  # fmt: skip
    forgeries += [{k: v for k, v in told.items() if k != field} for field in told if field != "kumiai"]
    for forged in forgeries:
        with pytest.raises(AuditBroken):
            verify_certificate(written(forged, tmp_path))
    with pytest.raises(AuditBroken, match="控えてある鍵"):
        verify_certificate(written(told, tmp_path), key="0" * 32)
    for other in ("", "[]", "{}", "\u0000"):
        (tmp_path / "other.json").write_text(other)
        with pytest.raises(InvalidInput):
            verify_certificate(tmp_path / "other.json")


async def test_a_town_that_is_not_erased_gets_none(region: Region) -> None:
    with pytest.raises(Conflict, match="消去していません"):
        await certificate(region)


async def test_a_key_that_came_back_is_noticed(region: Region) -> None:
    """As after a restored backup of the content's database."""
    [kept] = await region.content.vault.keys(region.town.id)
    wrapped = kept.wrapped
    await region.erase((await region.export()).path)
    async with region.db.content_session(TenantContext(region.town.id)) as session:
        row = await session.get_one(type(kept), kept.id)
        row.wrapped, row.destroyed_at = wrapped, None
        session.add(row)
    with pytest.raises(Conflict, match="鍵が残っています"):
        await certificate(region)


async def test_the_paper_says_the_same(region: Region) -> None:
    await region.erase((await region.export()).path)
    told = await certificate(region)
    document = pypdfium2.PdfDocument(erasure_certificate(told, product_name="共同AI"))
    text = "".join(page.get_textpage().get_text_bounded() for page in document)
    document.close()
    for words in ("消去の証明書", "みどり町", "令和9年3月31日", told["destroyed_keys"][0]["id"]):
        assert words in text
    assert told["signature"] in "".join(text.split()).replace("\u200b", "")
    assert NAME not in text
