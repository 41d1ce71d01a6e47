"""`kumiai keys`: the installation's own keys."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from tenants.commands.common import AsJson, by_command, print_json, run_command
from tenants.db import Database
from tenants.quota.windows import JST
from tenants.settings import Settings

_KEY_WORDS = {
    "root": "根の鍵",
    "tenant": "町の鍵",
    "pepper": "ペッパー",
    "session": "サインインの鍵",
    "delegation": "代理の鍵",
    "signing": "署名の鍵",
}


def keys_rotate(
    kind: Annotated[
        Literal["all", "root", "tenant", "pepper", "session", "delegation", "signing"],
        typer.Argument(help="Which key; all of them."),
    ],
) -> None:
    """Let a new version of a key take over; what older ones wrapped is wrapped anew. Interrupted, run it again.

    Running processes notice by themselves. Older versions stay until `keys retire`.
    """

    async def work(settings: Settings, db: Database) -> None:
        from tenants.rotation import KINDS, Keys

        for done in await Keys(settings, db).rotate(KINDS if kind == "all" else (kind,), by=by_command()):
            version = f"版 {done.version}" if done.version else "新しい鍵"
            print(f"{_KEY_WORDS[done.kind]}を{version}に替えました。包み直した町の鍵など {done.changed:,}件")

    run_command(work)


def keys_show(as_json: AsJson = False) -> None:
    """Show which version of each key is in use, and what still needs an older one."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.rotation import Keys

        told = await Keys(settings, db).in_use()
        if as_json:
            print_json([asdict(one) for one in told])
            return
        for one in told:
            parts = [f"版 {one.version}"] if one.version else []
            parts += [f"版 {n} が要るもの {count:,}件" for n, count in one.kept.items() if count is not None]
            parts += [f"版 {n} も残っています" for n, count in one.kept.items() if count is None and n != one.version]
            if one.since is not None:
                parts.append(f"{one.since.astimezone(JST):%Y-%m-%d %H:%M}から")
            if one.fingerprint:
                parts.append(one.fingerprint)
            if one.is_unfinished:
                parts.append(f"取り替えの途中（kumiai keys rotate {one.kind}）")
            print(f"{_KEY_WORDS[one.kind]}　{'、'.join(parts)}")

    run_command(work)


def keys_retire(
    kind: Annotated[Literal["root", "pepper", "session", "delegation"], typer.Argument(help="Which key.")],
) -> None:
    """Remove older versions of a key file for good, if nothing needs them any more.

    A backup made before a rotation of the root key can then no longer be read.
    """

    async def work(settings: Settings, db: Database) -> None:
        from tenants.rotation import Keys

        removed = await Keys(settings, db).retire(kind, by=by_command())
        print(
            f"{_KEY_WORDS[kind]}の版 {'、'.join(map(str, removed))} を消しました。"
            if removed
            else "前の版はありません。"
        )

    run_command(work)


COMMANDS = {"rotate": keys_rotate, "show": keys_show, "retire": keys_retire}
