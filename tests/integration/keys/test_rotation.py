"""Every key is replaced while what older versions made goes on working, also when the command is killed anywhere."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlmodel import col, select

from apps.host.sessions import Seal
from observability.problems import Conflict
from tenants.audit import By
from tenants.audit.checkpoints import Signer, newest_key
from tenants.audit.records import EXPORT
from tenants.audit.verification import verify_chain
from tenants.context import PersonId, TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.documents import Documents, Viewer
from tenants.identity.api_keys import Peppers, create_key, load_peppers, parse_key
from tenants.identity.delegation import Delegation, mint, verify
from tenants.models import ApiKey, Audit, AuditKey, Tenant, TenantKey
from tenants.provider_keys import list_provider_keys, open_provider_key, set_provider_key
from tenants.rotation import IN_FILES, KINDS, InUse, Keys, Kind
from tenants.settings import Settings
from tenants.vault import ContentUnreadable, FileRootKeys, Vault
from tests.servers import DATABASES

BY = By("command", "test")
WORDS = "昨年の議事録"
PROVIDER_KEY = "a-key-of-the-town-s-own"


@dataclass
class Site:
    """Two towns with a document each, a signed-in browser's tokens, an API key and a delegation, all of the first keys."""

    settings: Settings
    db: Database
    towns: list[TenantId]
    documents: dict[TenantId, UUID]
    person: PersonId
    sealed: bytes
    token: str
    api_key: str

    @property
    def keys(self) -> Keys:
        return Keys(self.settings, self.db)

    def vault(self) -> Vault:
        """Of a process that has just started."""
        return Vault(self.db, FileRootKeys(self.settings.key_file("root")))

    async def is_whole(self) -> bool:
        """Whether all of it still works, for a process that starts now."""
        documents = Documents(self.db, self.vault())
        for town, id in self.documents.items():
            reader = documents.of(TenantContext(town), app="chat", viewer=Viewer(self.person))
            assert (await reader.get(id)).body == {"text": WORDS}
        async with self.db.platform_session("test", read_only=True) as session:
            [provider_key] = await list_provider_keys(session)
        assert await open_provider_key(self.vault(), provider_key) == PROVIDER_KEY
        assert Seal(self.settings.key_file("session")).open(self.sealed, "row") == {"id_token": "t"}
        assert verify(self.settings.key_file("delegation").newest_first(), self.token)[0].app == "chat"
        peppers: Peppers = load_peppers(self.settings)
        parsed = parse_key(self.api_key)
        assert parsed is not None
        async with self.db.platform_session("test", read_only=True) as session:
            row = (await session.exec(select(ApiKey).where(ApiKey.key_id == parsed[1]))).one()
        assert peppers.verify(parsed[2], row.pepper_version, row.secret_hash)
        for town in self.towns:
            await Signer(self.db, self.vault()).checkpoint(town, EXPORT)
            await verify_chain(self.db, town)
        return True

    async def told(self) -> list[str]:
        """The rotations in the first town's chain."""
        return [kind for kind, _ in await self.links(self.towns[0], "key.rotate")]

    async def links(self, town: TenantId, action: str) -> list[tuple[str, dict[str, object]]]:
        """Key and facts of what stands in a town's chain."""
        async with self.db.platform_session("test", read_only=True) as session:
            found = await session.exec(
                select(Audit.object_id, Audit.facts)
                .where(col(Audit.tenant_id) == town, Audit.action == action)
                .order_by(col(Audit.seq))
            )
            return list(found.all())

    async def in_use(self) -> dict[Kind, InUse]:
        return {used.kind: used for used in await self.keys.in_use()}


@pytest.fixture(params=["sqlite", "postgresql"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[request.param])
    settings = Settings(
        env="test", home=tmp_path, database_url=urls.app, platform_database_url=urls.platform,
        ledger_database_url=urls.ledger, content_database_url=urls.content,
    )  # type: ignore[arg-type]  # pydantic makes secrets of texts  # fmt: skip
    db = Database(settings.urls)
    towns, person = [TenantId(new_id()), TenantId(new_id())], PersonId(new_id())
    async with db.platform_session("test") as session:
        for n, town in enumerate(towns):
            session.add(Tenant(id=town, name=f"{n}町", alias=f"t{n}"))
        api_key = await create_key(session, towns[0], load_peppers(settings), env="test", label="連携")
    vault = Vault(db, FileRootKeys(settings.key_file("root")))
    await set_provider_key(db, vault, towns[0], "azure", PROVIDER_KEY, by=BY)
    documents = Documents(db, vault)
    made = {}
    for town in towns:
        writer = documents.of(TenantContext(town), app="chat", viewer=Viewer(person))
        made[town] = (await writer.create("conversation", {"text": WORDS})).id
    token = mint(settings.key_file("delegation").newest[1], Delegation(towns[0], None, None, "chat"))
    sealed = Seal(settings.key_file("session")).seal({"id_token": "t"}, "row")
    site = Site(settings, db, towns, made, person, sealed, token, api_key.text)
    assert await site.is_whole()
    yield site
    await db.close()


async def test_all_keys_are_replaced_and_what_they_made_still_works(site: Site) -> None:
    before = await site.in_use()
    done = await site.keys.rotate(KINDS, by=BY)
    assert [(one.kind, one.version) for one in done] == [
        ("root", 2), ("tenant", 0), ("pepper", 2), ("session", 2), ("delegation", 2), ("signing", 2)
    ]  # fmt: skip
    after = await site.in_use()
    # Each town's first key and its new one, and the key that signs.
    assert (before["root"].kept, after["root"].kept) == ({1: 3}, {2: 5, 1: 0})
    assert after["signing"].fingerprint != before["signing"].fingerprint
    assert after["tenant"].since > before["tenant"].since  # type: ignore[operator]  # there are towns
    assert await site.is_whole()
    assert sorted(await site.told()) == sorted(KINDS)


async def test_what_is_written_afterwards_is_of_the_new_keys(site: Site) -> None:
    await site.keys.rotate(KINDS, by=BY)
    async with site.db.platform_session("test") as session:
        plain = await create_key(session, site.towns[0], load_peppers(site.settings), env="test", label="新しい")
    async with site.db.platform_session("test", read_only=True) as session:
        row = (await session.exec(select(ApiKey).where(ApiKey.key_id == plain.key_id))).one()
        signing = await newest_key(session)
        retired = (await session.exec(select(AuditKey).where(AuditKey.number == 1))).one()
    assert row.pepper_version == 2
    assert signing is not None
    assert (signing.wrapped is not None, retired.wrapped) == (True, None)
    document = site.documents[site.towns[0]]
    writer = Documents(site.db, site.vault()).of(TenantContext(site.towns[0]), app="chat", viewer=Viewer(site.person))
    await writer.update(document, {"text": WORDS}, version=1, keep_version=True)
    async with site.db.content_session(TenantContext(site.towns[0]), read_only=True) as session:
        newest = (await session.exec(select(TenantKey).order_by(col(TenantKey.created_at).desc()))).first()
    ring = await site.vault().ring(site.towns[0])
    assert newest is not None
    assert ring.keys[0].id == newest.id


async def test_running_processes_follow_without_a_restart(site: Site) -> None:
    """Objects made before the rotation, as a portal and a gateway hold them."""
    vault, seal = site.vault(), Seal(site.settings.key_file("session"))
    delegation, peppers = site.settings.key_file("delegation"), load_peppers(site.settings)
    assert (seal.open(site.sealed, "row"), peppers.newest) == ({"id_token": "t"}, 1)
    await site.keys.rotate(KINDS, by=BY)
    newer = Seal(site.settings.key_file("session")).seal({"id_token": "u"}, "row")
    assert seal.open(newer, "row") == {"id_token": "u"}
    token = mint(site.settings.key_file("delegation").newest[1], Delegation(site.towns[0], None, None, "drafting"))
    assert verify(delegation.newest_first(), token)[0].app == "drafting"
    assert peppers.newest == 2
    fresh = await vault.ring(site.towns[0], fresh=True)
    assert len(fresh.keys) == 2


KILLER = """
import asyncio, itertools, os, signal, sys
from contextlib import asynccontextmanager
from tenants.audit import By
from tenants.db import Database
from tenants.rotation import KINDS, Keys
from tenants.settings import Settings

def attempt(limit):
    opened, real = 0, Database._session
    @asynccontextmanager
    async def counted(self, *rest):
        nonlocal opened
        opened += 1
        if opened > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        async with real(self, *rest) as session:
            yield session
    Database._session = counted
    async def work():
        settings = Settings()
        db = Database(settings.urls)
        await Keys(settings, db).rotate(KINDS, by=By("command", "test"))
        await db.close()
    asyncio.run(work())

def is_killed(limit):
    child = os.fork()
    if child == 0:
        try:
            attempt(limit)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

for rounds, limit in enumerate(itertools.count(step=int(sys.argv[1])), 1):
    if not is_killed(limit):
        break
    assert not is_killed(10**9)
print(rounds)
"""

# It is killed once in so many transactions; 1: at every one.
STEP = int(os.environ.get("KUMIAI_ROTATION_STEP", "1"))  # noqa: TID251 - a switch of the test run itself


@pytest.mark.timeout(300)
async def test_killed_between_any_two_transactions_it_goes_on_where_it_was(site: Site) -> None:
    """Each round is killed some transactions later than the one before, and then run to its end."""
    urls = site.settings.urls
    environment = {
        "KUMIAI_ENV": "test", "KUMIAI_HOME": str(site.settings.home), "KUMIAI_DATABASE_URL": urls.app,
        "KUMIAI_PLATFORM_DATABASE_URL": urls.platform, "KUMIAI_LEDGER_DATABASE_URL": urls.ledger,
        "KUMIAI_CONTENT_DATABASE_URL": urls.content,
    }  # fmt: skip
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-c", KILLER, str(STEP)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    )
    assert done.returncode == 0, done.stderr
    rounds = int(done.stdout)
    assert rounds > 20 // STEP
    # However often it was killed, a round is one rotation of each key, told once.
    used = await site.in_use()
    assert {kind: used[kind].version for kind in IN_FILES} == dict.fromkeys(IN_FILES, rounds + 1)
    assert used["signing"].version == rounds + 1
    assert sorted(await site.told()) == sorted([*KINDS] * rounds)
    assert not any(one.is_unfinished for one in used.values())
    assert sum(count or 0 for version, count in used["root"].kept.items() if version <= rounds) == 0
    assert await site.is_whole()


async def test_an_old_root_key_goes_when_nothing_needs_it(site: Site) -> None:
    await site.keys.rotate(["root"], by=BY)
    assert await site.keys.retire("root", by=BY) == [1]
    assert not site.settings.key_path("root").exists()
    assert (await site.in_use())["root"].kept == {2: 5 - 2}
    assert await site.is_whole()


async def test_a_retired_key_stands_in_every_town_s_chain(site: Site) -> None:
    await site.keys.rotate(["root"], by=BY)
    await site.keys.rotate(["root"], by=BY)
    assert await site.keys.retire("root", by=BY) == [2, 1]
    for town in site.towns:
        assert await site.links(town, "key.retire") == [("root", {"version": 2}), ("root", {"version": 1})]
    assert await site.keys.retire("root", by=BY) == []
    assert len(await site.links(site.towns[0], "key.retire")) == 2
    assert await site.is_whole()


async def test_an_old_key_that_is_needed_stays(site: Site) -> None:
    await site.keys.rotate(KINDS, by=BY)
    for kind, words in (("pepper", "1件"), ("session", "600分"), ("delegation", "5分")):
        with pytest.raises(Conflict, match=words):
            await site.keys.retire(kind, by=BY)
    assert await site.links(site.towns[0], "key.retire") == []
    assert await site.is_whole()
    # A root key that a town has not been moved away from, as after a rotation that was begun.
    site.settings.key_file("root").add(3)
    with pytest.raises(Conflict, match="まだ5件"):
        await site.keys.retire("root", by=BY)


async def test_without_the_root_key_nothing_opens(site: Site) -> None:
    """So that opening it elsewhere means something."""
    path = site.settings.key_path("root")
    path.rename(path.with_name("away"))
    with pytest.raises(ContentUnreadable):
        await Vault(site.db, FileRootKeys(site.settings.key_file("root"))).ring(site.towns[0])


async def test_keys_retire_after_their_time(site: Site) -> None:
    await site.keys.rotate(["delegation"], by=BY)
    newest = site.settings.key_path("delegation").with_name("delegation.2")
    long_ago = (datetime.now(UTC) - timedelta(minutes=6)).timestamp()
    os.utime(newest, (long_ago, long_ago))
    assert await site.keys.retire("delegation", by=BY) == [1]
    assert list(site.settings.key_file("delegation").versions()) == [2]
