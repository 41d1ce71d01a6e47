"""`kumiai keycloak | db`: prepare the servers the platform stands on."""

import secrets
import shlex
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import psycopg
import typer

from observability.problems import Conflict, InvalidInput, Unavailable
from tenants.commands.common import by_command, command_settings, run_command
from tenants.db import Database
from tenants.identity.directories import realm_spec
from tenants.schema import LOGINS, PostgresServer, bootstrap_postgres
from tenants.schema import migrate as migrate_schema
from tenants.settings import Settings


def keycloak_up() -> None:
    """Bring Keycloak's realm, clients, organizations and accounts in line with our database, and link what is new."""
    from tenants.identity.linking import bring_in_line

    async def work(settings: Settings, db: Database) -> None:
        done = await bring_in_line(db, realm_spec(settings), settings, by=by_command())
        for line in done.lines:
            print(f"  {line}")
        print(f"Keycloakへの書き込み {done.writes}件、つなぎ直した団体 {done.towns}・職員 {done.people}")
        if done.without_password:
            print(
                f"パスワードのないアカウント {done.without_password}件。町の管理者が初期パスワードを発行してください。"
            )

    run_command(work)


def db_bootstrap(
    server: Annotated[str, typer.Argument(help="postgresql://superuser@host:port of the server.")],
    password: Annotated[str, typer.Option(envvar="PGPASSWORD", help="Of the superuser; better by PGPASSWORD.")] = "",
    database: Annotated[str, typer.Option(help="The database to create.")] = "kumiai",
    env_file: Annotated[Path, typer.Option(help="Where the logins' addresses go (mode 0600).")] = Path("kumiai.env"),
) -> None:
    """Create the five logins and an empty database on a PostgreSQL server, and write their addresses to a file."""
    parts = urlsplit(server)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username:
        raise InvalidInput("サーバーは postgresql://利用者@ホスト:ポート の形で書いてください。", field="server")
    if env_file.exists():
        raise Conflict(f"{env_file} があります。そこに書かれたパスワードが要らなければ、消してからやり直してください。")
    access = PostgresServer(
        parts.hostname, parts.port or 5432, unquote(parts.username), password or unquote(parts.password or "")
    )
    env_file.touch(mode=0o600)
    try:
        urls = bootstrap_postgres(access, database, {login: secrets.token_urlsafe(24) for login in LOGINS})
    except psycopg.Error as error:
        env_file.unlink()
        raise Unavailable(f"PostgreSQL に接続できないか、権限が足りません（{type(error).__name__}）。") from error
    names = {"DATABASE_URL": urls.app} | {
        f"{name.upper()}_DATABASE_URL": getattr(urls, name) for name in ("platform", "ledger", "content", "owner")
    }
    env_file.write_text("".join(f"KUMIAI_{name}={shlex.quote(url)}\n" for name, url in names.items()))
    print(f"{database} を用意し、つなぎ先を {env_file} に書きました。次の手順:")
    print(f"  set -a; . {shlex.quote(str(env_file.resolve()))}; set +a")
    print("  kumiai db migrate")
    print("KUMIAI_OWNER_DATABASE_URL は db migrate だけが使います。入口・アプリ・後の仕事には渡さないでください。")


def db_migrate() -> None:
    """Bring the database schema to this version."""
    migrate_schema(command_settings().urls)
    print("done")


KEYCLOAK = {"up": keycloak_up}
DB = {"bootstrap": db_bootstrap, "migrate": db_migrate}
