"""`kumiai audit`: check and export the audit chain."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from observability.problems import InvalidInput
from tenants.commands.common import AsJson, Town, by_command, find_town, print_json, run_command, tell_export
from tenants.db import Database
from tenants.quota.windows import JST
from tenants.settings import Settings


def audit_verify(
    town: Annotated[str, typer.Argument(help="団体コード (6 digits) or name.")] = "",
    file: Annotated[
        Path | None,
        typer.Option(help="An export, or a certificate of erasure, to check with nothing but the file."),
    ] = None,
    key: Annotated[str, typer.Option(help="With --file: the fingerprint of a signing key noted earlier.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check that no record of a town's audit chain was changed, taken out, put in or moved.

    A file is checked without a database and without a network; one that ends in .json is a certificate of erasure.
    """
    from tenants.audit.certificate import verify_certificate
    from tenants.audit.verification import Checked, verify_chain, verify_export

    def show(name: str, checked: Checked) -> None:
        if as_json:
            print_json(asdict(checked))
            return
        print(f"{name}: {checked.links:,}件すべて正しくつながっています（封じた呼び出し {checked.calls:,}件）。")
        if checked.checkpoints:
            at = datetime.fromisoformat(checked.signed_at).astimezone(JST)
            print(f"  署名 {checked.checkpoints:,}件、最後は通番 {checked.signed_seq:,}（{at:%Y-%m-%d %H:%M}）")
            print(f"  署名の鍵 {'、'.join(checked.keys)}")
        if file is not None and not key:
            print("  鍵の番号を、控えてある番号と見比べてください（--key で確かめられます）。")

    if bool(town) == (file is not None):
        raise InvalidInput("団体か --file の、どちらか1つを書いてください。", field="town")
    if file is not None and file.suffix == ".json":
        certified = verify_certificate(file, key=key)
        if as_json:
            print_json(asdict(certified))
            return
        print(f"{certified.name}（{certified.code}）の消去の証明書は、署名されたままです。")
        print(f"  {certified.erased_at.astimezone(JST):%Y-%m-%d %H:%M}、破棄した鍵 {certified.destroyed_keys:,}個")
        print(f"  署名の鍵 {'、'.join(certified.keys)}")
        return
    if file is not None:
        show(str(file), verify_export(file, key=key))
        return
    if key:
        raise InvalidInput("--key は --file と一緒に使います。", field="key")

    async def work(command_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        show(tenant.name, await verify_chain(db, tenant_id))

    run_command(work)


def audit_export(
    town: Town, to: Annotated[Path, typer.Option(help="The ZIP file to write (mode 0600).")], as_json: AsJson = False
) -> None:
    """Write a town's audit chain alone, for an auditor: no content and no names."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.erasure import export_chain, open_content

        tenant, tenant_id = await find_town(db, town)
        report = await export_chain(db, open_content(settings, db), tenant_id, to, by=by_command())
        said = f"{tenant.name}の監査の記録 {report.counts['監査の記録']:,}件を {to} に書き出しました。"
        tell_export(report, said, as_json=as_json)

    run_command(work)


def audit_keys(as_json: AsJson = False) -> None:
    """Show the keys that sign checkpoints, oldest first: a town notes the fingerprint, by which it checks its exports."""

    async def work(command_settings: Settings, db: Database) -> None:
        from tenants.audit.checkpoints import public_keys
        from tenants.audit.records import fingerprint

        async with db.platform_session("command", read_only=True) as session:
            keys = await public_keys(session)
        if as_json:
            told = [{"fingerprint": fingerprint(k.public_key), "public_key": k.public_key.hex()} for k in keys]
            print_json([one | {"since": k.created_at} for one, k in zip(told, keys, strict=True)])
            return
        for k in keys:
            print(f"{fingerprint(k.public_key)}  {k.created_at.astimezone(JST):%Y-%m-%d %H:%M}から")
        if not keys:
            print("まだ署名していません。後の仕事（worker）が動くと、10分ごとに署名します。")

    run_command(work)


COMMANDS = {"verify": audit_verify, "export": audit_export, "keys": audit_keys}
