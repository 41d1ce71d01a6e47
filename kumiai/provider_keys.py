"""`kumiai provider-key`: a town's own keys for model providers.

It stands here because it needs both the gateway's catalogue, to know what a key can be for, and the town's vault.
"""

from typing import Annotated

import typer

from gateway.server.providers.catalogue import load_catalogue
from gateway.server.settings import ProviderSettings
from observability.problems import InvalidInput
from tenants.commands.common import AsJson, Town, by_command, find_town, print_json, read_secret, run_command
from tenants.db import Database
from tenants.provider_keys import clean_key, list_provider_keys, remove_provider_key, set_provider_key
from tenants.settings import Settings
from tenants.vault import FileRootKeys, Vault

Provider = Annotated[str, typer.Option(help="All deployments of a provider: what stands before the / of their ids.")]
DeploymentId = Annotated[str, typer.Option(help="One deployment, by its id in the catalogue.")]

# The deployments behind KUMIAI_OPENAI_COMPATIBLE_BASE_URL are named by the gateway's own settings.
_COMPATIBLE = "compatible"


def provider_key_set(town: Town, provider: Provider = "", deployment: DeploymentId = "") -> None:
    """Keep a town's own key, read from standard input. The town's calls use it within seconds, and nobody else's.

    The provider bills the town; here these calls cost nothing. The region's key is not used in its stead, also when it
    is refused.
    """
    target = _target(provider, deployment)
    key = clean_key(read_secret("鍵"))

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        vault = Vault(db, FileRootKeys(settings.key_file("root")))
        known = await set_provider_key(db, vault, tenant_id, target, key, by=by_command())
        done = "入れ替えました" if known else "置きました"
        print(f"{tenant.name}：{target} の鍵（…{key[-4:]}）を{done}。数秒で使われます。")

    run_command(work)


def provider_key_list(town: Town, as_json: AsJson = False) -> None:
    """List a town's own keys by their last four characters."""

    async def work(_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command", read_only=True) as session:
            rows = await list_provider_keys(session, tenant_id)
        if as_json:
            print_json([{"target": r.target, "ending": r.ending, "set_at": r.set_at} for r in rows])
            return
        for row in rows:
            print(f"{row.target:<32} …{row.ending}")
        if not rows:
            print(f"{tenant.name}が自分で置いた鍵はありません。")

    run_command(work)


def provider_key_remove(town: Town, provider: Provider = "", deployment: DeploymentId = "") -> None:
    """Forget a town's own key. From then on its calls use the region's, where there is one."""
    target = _target(provider, deployment, is_known=True)

    async def work(_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        await remove_provider_key(db, tenant_id, target, by=by_command())
        print(f"{tenant.name}：{target} の鍵を消しました。")

    run_command(work)


def _target(provider: str, deployment: str, *, is_known: bool = False) -> str:
    """is_known: it need not be in the catalogue any more."""
    if bool(provider) == bool(deployment):
        raise InvalidInput("--provider か --deployment の、どちらか1つを指定してください。", field="provider")
    if is_known:
        return provider or deployment
    entries = [e.id for e in load_catalogue(ProviderSettings().kumiai_catalogue_file) if e.wire != "demo"]
    providers = sorted({_COMPATIBLE, *(id.partition("/")[0] for id in entries)})
    if provider and provider not in providers:
        raise InvalidInput(
            f"「{provider[:64]}」という事業者はありません。次のどれかです：{'、'.join(providers)}", field="provider"
        )
    if deployment and deployment not in entries and not deployment.startswith(f"{_COMPATIBLE}/"):
        raise InvalidInput(
            f"「{deployment[:64]}」はカタログにありません。次のどれかです：{'、'.join(entries)}"
            "（自分のカタログのものは KUMIAI_CATALOGUE_FILE を渡してください）",
            field="deployment",
        )
    return provider or deployment


COMMANDS = {"set": provider_key_set, "list": provider_key_list, "remove": provider_key_remove}
