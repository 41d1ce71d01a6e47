"""`kumiai apps`: which apps this installation has, and what each answers for."""

import json
from typing import Annotated

import typer

from apps.sdk.app import installed_manifests


def register(app: typer.Typer) -> None:
    """Adds the group `apps`."""
    group = typer.Typer(no_args_is_help=True, help="The apps of this installation.")
    group.command("list")(list_apps)
    app.add_typer(group, name="apps")


def list_apps(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List apps with owner, weight of data and retention."""
    found = installed_manifests()
    if as_json:
        print(json.dumps([m.model_dump(mode="json") for m in found], ensure_ascii=False, indent=2))
        return
    for m in found:
        kept = "消すまで保存" if m.retention_days is None else f"保存{m.retention_days}日"
        print(f"{m.id:<16}{m.title}　{m.owner}　機密性{m.data_class}　{kept}")
