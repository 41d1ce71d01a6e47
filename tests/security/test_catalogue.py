"""What PostgreSQL's own catalogue says about isolation: asked of a migrated database, not of our source."""

from dataclasses import dataclass

import psycopg
import pytest

from tenants.db import DatabaseUrls
from tenants.models import TENANT_TABLES, Tenant
from tenants.schema import LOGINS

pytestmark = pytest.mark.real

# They hold nothing of one town: prices, rates, who probes, the region's pool, keys that sign, our own list of what no longer counts,
# counters of failures.
SHARED = {
    "public.alembic_version", "public.audit_key", "public.config_generation", "public.deployment_probe", "public.fx_rate", "public.platform_setting",
    "public.pool", "public.price", "public.throttle",
}  # fmt: skip
LEDGER = {"account", "attempt", "budget", "call", "correction", "grant", "idempotency"}
RUNTIME_LOGINS = tuple(login for login in LOGINS if login != "kumiai_owner")


@dataclass(frozen=True)
class Relation:
    """One table as the catalogue describes it. `policies`: names of those that bind every login."""

    name: str
    schema: str
    columns: frozenset[str]
    enabled: bool
    forced: bool
    policies: frozenset[str]
    is_partition: bool
    owner: str

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Catalogue:
    relations: tuple[Relation, ...]
    rows: psycopg.Connection

    def ask(self, query: str, *values: object) -> list[tuple[object, ...]]:
        return self.rows.execute(query, values).fetchall()  # type: ignore[arg-type]  # our own constants

    def owned(self) -> list[Relation]:
        """Every table that carries a tenant, `tenant` itself included."""
        return [r for r in self.relations if "tenant_id" in r.columns or r.full_name == "public.tenant"]


@pytest.fixture
def catalogue(migrated_postgres: DatabaseUrls, postgres_server):  # type: ignore[no-untyped-def]  # a generator of one
    database = migrated_postgres.app.rsplit("/", 1)[1]
    url = postgres_server.superuser_url.rsplit("/", 1)[0] + f"/{database}"
    with psycopg.connect(url) as connection:
        found = connection.execute(
            """select c.relname, n.nspname, array_agg(a.attname::text), c.relrowsecurity, c.relforcerowsecurity,
                      array(select p.polname::text from pg_policy p where p.polrelid = c.oid and p.polroles = '{0}'),
                      c.relispartition, pg_get_userbyid(c.relowner)
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
               join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
               where c.relkind in ('r', 'p') and n.nspname not in ('pg_catalog', 'information_schema')
               group by c.oid, n.nspname"""
        ).fetchall()
        relations = tuple(
            Relation(name, schema, frozenset(columns), enabled, forced, frozenset(policies), partition, owner)
            for name, schema, columns, enabled, forced, policies, partition, owner in found
        )
        yield Catalogue(relations, connection)


def test_the_catalogue_was_found(catalogue: Catalogue) -> None:
    names = {r.full_name for r in catalogue.owned()}
    declared = {f"{getattr(t.__table__, 'schema', None) or 'public'}.{t.__table__.name}" for t in TENANT_TABLES}
    assert declared | {"public.tenant"} <= names
    assert {"public.person", "public.call", "content.document", "content.tenant_key", "public.call_default"} <= names
    assert Tenant.__table__.name == "tenant"


def test_every_table_of_a_tenant_has_a_forced_policy(catalogue: Catalogue) -> None:
    without = [
        r.full_name
        for r in catalogue.owned()
        if not (r.enabled and r.forced and r.policies == frozenset({"own_tenant"}))
    ]
    assert without == []


def test_the_policy_compares_with_the_transactions_tenant(catalogue: Catalogue) -> None:
    told = catalogue.ask(
        """select pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) from pg_policy
           where polname = 'own_tenant'"""
    )
    assert len(told) == len(catalogue.owned())
    for using, check in told:
        assert using == check
        assert "= (NULLIF(current_setting('app.tenant_id'::text, true), ''::text))::uuid" in str(using)


def test_a_table_without_tenant_is_one_of_the_known(catalogue: Catalogue) -> None:
    assert {r.full_name for r in catalogue.relations} - {r.full_name for r in catalogue.owned()} == SHARED


@pytest.mark.parametrize("login", RUNTIME_LOGINS)
def test_a_login_may_neither_bypass_nor_own_nor_become_another(catalogue: Catalogue, login: str) -> None:
    [facts] = catalogue.ask(
        """select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolcanlogin
           from pg_roles where rolname = %s""",
        login,
    )
    assert facts == (False, False, False, False, False, True)
    assert catalogue.ask("select roleid::regrole from pg_auth_members where member = %s::regrole", login) == []
    assert login not in {r.owner for r in catalogue.relations}
    for kind, owner in (("pg_namespace", "nspowner"), ("pg_proc", "proowner"), ("pg_database", "datdba")):
        assert catalogue.ask(f"select 1 from {kind} where {owner} = %s::regrole", login) == []


def test_the_owner_is_bound_too(catalogue: Catalogue) -> None:
    assert {r.owner for r in catalogue.relations} == {"kumiai_owner"}
    [facts] = catalogue.ask("select rolsuper, rolbypassrls, rolcreaterole from pg_roles where rolname = 'kumiai_owner'")
    assert facts == (False, False, False)


def _rights(catalogue: Catalogue, login: str) -> dict[str, set[str]]:
    """Table → verbs that this login has by grant, public or membership."""
    rights: dict[str, set[str]] = {}
    for relation in catalogue.relations:
        for verb in ("select", "insert", "update", "delete", "truncate", "references", "trigger"):
            quoted = f'{relation.schema}."{relation.name}"'
            if catalogue.ask("select has_table_privilege(%s, %s, %s)", login, quoted, verb) == [(True,)]:
                rights.setdefault(relation.full_name, set()).add(verb)
    return rights


def test_content_is_reached_by_its_own_login_only(catalogue: Catalogue) -> None:
    assert {t for t in _rights(catalogue, "kumiai_content") if t.startswith("content.")} == {
        r.full_name for r in catalogue.relations if r.schema == "content"
    }
    assert {t for t in _rights(catalogue, "kumiai_content") if t.startswith("public.")} == set()
    for login in ("kumiai_app", "kumiai_platform", "kumiai_ledger"):
        assert {t for t in _rights(catalogue, login) if t.startswith("content.")} == set()
        assert catalogue.ask("select has_schema_privilege(%s, 'content', 'usage')", login) == [(False,)]


def test_no_policy_lets_anybody_across_tenants_in_content(catalogue: Catalogue) -> None:
    across = catalogue.ask(
        """select c.relname from pg_policy p join pg_class c on c.oid = p.polrelid
           join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'content' and p.polname <> 'own_tenant'"""
    )
    assert across == []


def test_the_ledgers_login_reaches_the_ledgers_tables_only(catalogue: Catalogue) -> None:
    rights = _rights(catalogue, "kumiai_ledger")
    # A closed call is told to the sealer, and nothing is read back.
    assert rights.pop("public.seal_queue") == {"insert"}
    # So is a town that runs low to the worker.
    assert rights.pop("public.grant_wanted") == {"insert"}
    # What a town may spend is decided elsewhere; a new window's account is checked against it.
    assert rights.pop("public.pool_share") == {"select"}
    assert set(rights) == {f"public.{t}" for t in LEDGER}
    assert {t for t, verbs in rights.items() if "delete" in verbs} == {"public.idempotency"}


def test_money_and_identity_are_only_read_by_the_tenants_own_login(catalogue: Catalogue) -> None:
    rights = _rights(catalogue, "kumiai_app")
    for table in (
        *LEDGER,
        "agreement",
        "invoice",
        "pool_move",
        "pool_share",
        "tenant",
        "tenant_code",
        "tenant_identity",
        "tenant_policy",
        "api_key",
    ):
        assert rights[f"public.{table}"] == {"select"}, table
    assert "public.pool" not in rights
    assert "public.portal_session" not in rights
    assert "public.revocation" not in rights
    assert {"select", "insert", "update"} <= rights["public.person"]


@pytest.mark.parametrize("login", RUNTIME_LOGINS)
def test_nobody_changes_or_removes_an_audit_row(catalogue: Catalogue, login: str) -> None:
    rights = _rights(catalogue, login)
    assert rights.get("public.audit", set()) <= {"select", "insert"}
    assert rights.get("public.audit_checkpoint", set()) <= {"select", "insert"}
    assert "delete" not in rights.get("public.audit_head", set())


@pytest.mark.parametrize("login", RUNTIME_LOGINS)
def test_nobody_reaches_a_partition_past_its_parent(catalogue: Catalogue, login: str) -> None:
    partitions = {r.full_name for r in catalogue.relations if r.is_partition}
    assert "public.audit_default" in partitions
    assert partitions & set(_rights(catalogue, login)) == set()


def test_nobody_but_the_owner_makes_tables(catalogue: Catalogue) -> None:
    for login in RUNTIME_LOGINS:
        for schema in ("public", "content"):
            assert catalogue.ask("select has_schema_privilege(%s, %s, 'create')", login, schema) == [(False,)]


def test_of_the_owners_functions_only_the_worker_calls_one(catalogue: Catalogue) -> None:
    ours = [
        str(name)
        for (name,) in catalogue.ask(
            """select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
               where n.nspname in ('public', 'content')"""
        )
    ]
    assert "ensure_month_partitions(date,integer)" in ours
    callers = {
        (name, login)
        for name in ours
        for login in RUNTIME_LOGINS
        if catalogue.ask("select has_function_privilege(%s, %s, 'execute')", login, name) == [(True,)]
    }
    assert callers == {("ensure_month_partitions(date,integer)", "kumiai_platform")}
