"""docs/howto/backup.md as it is written: PostgreSQL's own dump, the files and the keys bring a town back."""

import secrets
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from kumiai.local.postgres import Postgres
from tenants.audit import By, record
from tenants.audit.checkpoints import Signer
from tenants.audit.records import INTERVAL
from tenants.audit.verification import verify_chain
from tenants.blobs import Blobs, FolderStore
from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.documents import Documents
from tenants.keyfiles import KeyFile
from tenants.models import Tenant
from tenants.vault import ContentUnreadable, FileRootKeys, Vault


def _stores(urls: DatabaseUrls, folder: Path) -> tuple[Database, Vault, Documents, Blobs]:
    db = Database(urls)
    vault = Vault(db, FileRootKeys(KeyFile(folder / "keys" / "root", create=True)))
    return db, vault, Documents(db, vault), Blobs(db, vault, FolderStore(folder / "blobs"))


async def test_a_dump_the_files_and_the_keys_are_the_town(
    postgres_server: Postgres, migrated_postgres: DatabaseUrls, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    town, neighbour = TenantId(new_id()), TenantId(new_id())
    db, vault, documents, blobs = _stores(migrated_postgres, here)
    async with db.platform_session("test") as session:
        for id, alias in ((town, "t011011"), (neighbour, "t012025")):
            session.add(Tenant(id=id, name=alias, alias=alias))
            await session.flush()
            await record(session, id, By("command", "test"), "tenant.create", about=("tenant", id))
    document = await documents.of(TenantContext(town), app="chat", viewer=None).create("conversation", {"text": "水"})
    file = await blobs.of(TenantContext(town), app="chat", viewer=None).save("表.csv", "水,3".encode())
    await Signer(db, vault).checkpoint(town, INTERVAL)
    await db.close()

    source = migrated_postgres.owner.rsplit("/", 1)[1]
    admin = postgres_server.superuser_url.rsplit("/", 1)[0]
    dump = [postgres_server.program("pg_dump"), "--format=custom", f"--file={tmp_path / 'kumiai.dump'}", "--dbname"]
    refused = subprocess.run([*dump, migrated_postgres.owner.replace("+psycopg", "")], capture_output=True, check=False)
    assert b"row-level security" in refused.stderr
    subprocess.run([*dump, f"{admin}/{source}"], check=True, timeout=120)
    shutil.copytree(here / "blobs", there / "blobs")

    name = f"restored_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_server.superuser_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} owner kumiai_owner").format(sql.Identifier(name)))
    try:
        restore = [postgres_server.program("pg_restore"), "--exit-on-error", f"--dbname={admin}/{name}"]
        subprocess.run([*restore, str(tmp_path / "kumiai.dump")], check=True, timeout=120)
        fields = ("app", "platform", "ledger", "content", "owner")
        urls = replace(
            migrated_postgres, **{f: getattr(migrated_postgres, f).replace(f"/{source}", f"/{name}") for f in fields}
        )
        # Without the keys it is what it was in the dump: sealed.
        without, *_, sealed, _ = _stores(urls, tmp_path / "nowhere")
        with pytest.raises(ContentUnreadable):
            await sealed.of(TenantContext(town), app="chat", viewer=None).get(document.id)
        await without.close()
        shutil.copytree(here / "keys", there / "keys")
        db, vault, documents, blobs = _stores(urls, there)
        assert (await documents.of(TenantContext(town), app="chat", viewer=None).get(document.id)).body == {
            "text": "水"
        }
        assert await blobs.of(TenantContext(town), app="chat", viewer=None).read(file.id) == "水,3".encode()
        checked = await verify_chain(db, town)
        assert (checked.links, checked.checkpoints) == (1, 1)
        await db.close()
        with psycopg.connect(urls.content.replace("+psycopg", "")) as connection:
            for who, found in ((town, 1), (neighbour, 0)):
                connection.execute("select set_config('app.tenant_id', %s, true)", (str(who),))
                row = connection.execute("select count(*) from content.document").fetchone()
                assert row == (found,)
                connection.rollback()
    finally:
        with psycopg.connect(postgres_server.superuser_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
