"""A hold keeps what it covers, whatever would remove it; and retention removes the rest, and says so in the chain."""

from datetime import timedelta

import pytest
from sqlmodel import col, select

from observability.problems import InvalidInput, NotFound
from tenants.blobs import Blob
from tenants.context import Actor, PersonId, TenantId, new_id
from tenants.holds import Held, Holds
from tenants.models import Audit
from tenants.policy import KeepFor, Policy, save_policy
from tenants.retention import Retention
from tests.integration.content.conftest import Content

clerk, colleague, admin = PersonId(new_id()), PersonId(new_id()), PersonId(new_id())
REASON = "開示請求 令和8年第12号"


def _holds(content: Content) -> Holds:
    return Holds(content.db, content.vault)


def _admin(content: Content) -> Actor:
    return Actor(content.town.tenant_id, admin, None)


async def _hold(content: Content, *, app: str = "", person: PersonId | None = None) -> object:
    return await _holds(content).place(_admin(content), app=app, person_id=person, reason=REASON, now=content.clock.now)


async def _facts(content: Content, action: str) -> list[tuple[str, dict[str, object]]]:
    async with content.db.platform_session("test", read_only=True) as session:
        rows = await session.exec(
            select(Audit).where(col(Audit.tenant_id) == content.town.tenant_id, col(Audit.action) == action)
        )
        return [(r.object_id, r.facts) for r in rows]


async def test_what_is_held_is_not_removed_by_any_duty_and_goes_when_it_is_released(content: Content) -> None:
    mine = content.documents_of(clerk)
    talk = await mine.create("c", {})
    line = await mine.create("m", {"text": "残す"}, parent=talk.id)
    await mine.delete(talk.id)
    elsewhere = await content.documents_of(clerk, town=content.other_town).create("c", {})
    await content.documents_of(clerk, town=content.other_town).delete(elsewhere.id)
    hold_id = await _hold(content)
    content.clock.pass_days(400)
    assert await content.documents.purge_due(content.town) == 0
    assert await content.documents.expire(content.town, app="chat", older_than=content.clock.now) == 0
    assert await content.documents.expiring(content.town, app="chat", older_than=content.clock.now) == 0
    with pytest.raises(Held):
        await mine.purge(talk.id)
    with pytest.raises(Held):
        await content.documents.erase_person(content.town, clerk)
    assert (await mine.get(line.id, deleted=True)).body == {"text": "残す"}
    assert await content.documents.purge_due(content.other_town) == 1

    await _holds(content).release(_admin(content), hold_id, content.clock.now)  # type: ignore[arg-type]
    assert await content.documents.purge_due(content.town) == 2


async def test_a_hold_on_one_person_or_one_app_leaves_the_rest(content: Content) -> None:
    theirs = await content.documents_of(clerk).create("c", {})
    others = await content.documents_of(colleague).create("c", {})
    drafts = await content.documents_of(colleague, app="drafting").create("d", {})
    await _hold(content, person=clerk)
    await _hold(content, app="drafting")
    content.clock.pass_days(400)
    for app in ("chat", "drafting"):
        await content.documents.expire(content.town, app=app, older_than=content.clock.now)
    assert (await content.documents_of(clerk).get(theirs.id)).id == theirs.id
    assert (await content.documents_of(colleague, app="drafting").get(drafts.id)).id == drafts.id
    with pytest.raises(NotFound):
        await content.documents_of(colleague).get(others.id)


async def test_a_tree_stays_whole_when_something_in_it_is_held(content: Content) -> None:
    town = content.documents.of(content.town, app="chat", viewer=None)
    shared = await content.documents_of(colleague).create("c", {}, of_town=True)
    own = await content.documents_of(clerk).create("m", {}, parent=shared.id)
    beside = await content.documents_of(colleague).create("m", {}, parent=shared.id)
    free = await content.documents_of(colleague).create("c", {})
    await _hold(content, person=clerk)
    content.clock.pass_days(400)
    assert await content.documents.expire(content.town, app="chat", older_than=content.clock.now) == 1
    for kept in (shared, own, beside):
        assert (await town.get(kept.id)).id == kept.id
    with pytest.raises(NotFound):
        await town.get(free.id)


async def test_a_held_file_goes_from_sight_and_stays_on_the_disk(content: Content) -> None:
    files = content.blobs_of(clerk)
    blob: Blob = await files.save("a.pdf", b"%PDF-1.7", media_type="application/pdf")
    hold_id = await _hold(content, person=clerk)
    await files.delete(blob.id)
    with pytest.raises(NotFound):
        await files.get(blob.id)
    assert await content.blobs.sweep(content.town) == 0
    stored = [f for f in content.blob_dir.rglob("*") if f.is_file()]
    assert len(stored) == 1
    await _holds(content).release(_admin(content), hold_id, content.clock.now)  # type: ignore[arg-type]
    assert await content.blobs.sweep(content.town) == 1
    assert not [f for f in content.blob_dir.rglob("*") if f.is_file()]


async def test_what_is_written_over_under_a_hold_stays_readable(content: Content) -> None:
    mine = content.documents_of(clerk)
    draft = await mine.create("d", {"text": "前の文"})
    await mine.update(draft.id, {"text": "止める前の文"}, version=1)
    await _hold(content, person=clerk)
    await mine.update(draft.id, {"text": "いまの文"}, version=2)
    assert await mine.versions(draft.id) == (3, 2)
    assert await mine.version(draft.id, 2) == {"text": "止める前の文"}


async def test_the_reason_is_sealed_and_the_chain_knows_who_and_when(content: Content) -> None:
    hold_id = await _hold(content, person=clerk)
    [hold] = await _holds(content).all_of(content.town)
    assert (hold.reason, hold.person_id, hold.placed_by) == (REASON, clerk, admin)
    assert await _holds(content).all_of(content.other_town) == []
    [(about, facts)] = await _facts(content, "hold.place")
    assert about == str(hold_id)
    assert REASON not in str(facts)
    await _holds(content).release(_admin(content), hold.id, content.clock.now)
    assert len(await _facts(content, "hold.release")) == 1
    with pytest.raises(NotFound):
        await _holds(content).release(_admin(content), hold.id, content.clock.now)
    assert len(await _facts(content, "hold.release")) == 1
    with pytest.raises(InvalidInput):
        await _holds(content).place(_admin(content), app="", person_id=None, reason=" ", now=content.clock.now)


async def test_another_town_cannot_release_it(content: Content) -> None:
    hold_id = await _hold(content)
    stranger = Actor(content.other_town.tenant_id, admin, None)
    with pytest.raises(NotFound):
        await _holds(content).release(stranger, hold_id, content.clock.now)  # type: ignore[arg-type]
    [hold] = await _holds(content).all_of(content.town)
    assert hold.released_at is None


async def test_retention_follows_the_towns_rule_and_writes_how_many_went(content: Content) -> None:
    tenant_id = TenantId(content.town.tenant_id)
    async with content.db.platform_session("test") as session:
        await save_policy(session, tenant_id, Policy(keep={"chat": KeepFor(days=30)}), version=0, by=None)
    await content.documents_of(clerk).create("c", {})
    await content.documents_of(clerk, app="drafting").create("d", {})
    duty = Retention(content.db, content.documents, {"chat": 365, "drafting": 365, "gallery": None})
    assert await duty.expire(tenant_id, content.clock.now + timedelta(days=29)) == 0
    assert await duty.expire(tenant_id, content.clock.now + timedelta(days=31)) == 1
    assert await _facts(content, "retention.expire") == [("chat", {"documents": 1, "days": 30, "fiscal_years": None})]
    assert await duty.expire(tenant_id, content.clock.now + timedelta(days=366)) == 1


async def test_more_than_a_statement_can_name_is_removed(content: Content) -> None:
    mine = content.documents_of(clerk)
    for _ in range(45):
        talk = await mine.create("c", {})
        await mine.create("m", {}, parent=talk.id)
    content.clock.pass_days(400)
    assert await content.documents.expire(content.town, app="chat", older_than=content.clock.now) == 90
