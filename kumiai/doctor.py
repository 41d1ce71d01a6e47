"""`kumiai doctor`: is this installation ready, and if not, what is to be done."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from gateway.reading.scanning import scanner_of
from kumiai.demo import DemoHome
from tenants.db import Database
from tenants.keyfiles import KeyFile, KeyFileError
from tenants.quota.slots import SlotsGap, slots_gaps
from tenants.schema import pending_migrations
from tenants.settings import Settings


def examine(settings: Settings) -> int:
    """Prints one line per check; 0 when all hold."""
    checks: list[tuple[str, Callable[[Settings], str]]] = [
        ("database", _database),
        ("keys", _keys),
        ("issuer", _issuer),
        ("gateway", _gateway),
        ("scanner", _scanner),
    ]
    settings = _at_the_demo(settings)
    failed = set()
    for name, check in checks:
        problem = check(settings)
        if problem:
            failed.add(name)
        print(f"{'NG' if problem else 'OK'}  {name:<10}{problem}")
    if "database" not in failed:
        gaps = asyncio.run(_slots(settings))
        if any(not gap.is_falling for gap in gaps):
            failed.add("slots")
        print(f"{'NG' if 'slots' in failed else 'OK'}  slots")
        for gap in gaps:
            print(f"    {gap.town}（{gap.code}）　{gap.told}。{gap.advice}")
    return 1 if failed else 0


def _at_the_demo(settings: Settings) -> Settings:
    """With the addresses of the demo that runs in the home folder: it chose them, and told its own processes alone."""
    home = DemoHome(settings.home)
    if settings.env != "demo" or home.running_pid() is None or not home.facts_file.exists():
        return settings
    base_url = json.loads(home.facts_file.read_text())["base_url"]
    unset = {"public_url", "gateway_url"} - settings.model_fields_set
    return settings.model_copy(update=dict.fromkeys(unset, base_url))


def _database(settings: Settings) -> str:
    try:
        urls = settings.urls.filled()
        behind = pending_migrations(urls)
    except (ValueError, SQLAlchemyError, OSError) as error:
        return f"cannot be used: {type(error).__name__}. Check KUMIAI_DATABASE_URL and that the server runs."
    return "the schema is behind this version. Run: kumiai db migrate" if behind else ""


def _keys(settings: Settings) -> str:
    wrong = []
    for name in ("root", "session", "delegation", "pepper"):
        try:
            KeyFile(settings.key_path(name), create=False)
        except KeyFileError as error:
            wrong.append(str(error))
    return "; ".join(wrong)


def _issuer(settings: Settings) -> str:
    return _answers(f"{settings.resolved_issuer}/.well-known/openid-configuration", "KUMIAI_ISSUER")


def _gateway(settings: Settings) -> str:
    return _answers(f"{settings.gateway_url}/health/ready", "KUMIAI_GATEWAY_URL")


def _scanner(settings: Settings) -> str:
    if not settings.upload_scanner or asyncio.run(scanner_of(settings.upload_scanner).is_there()):
        return ""
    return f"{settings.upload_scanner} does not answer, and no file is taken until it does. Check KUMIAI_UPLOAD_SCANNER and that the scanner runs."


async def _slots(settings: Settings) -> list[SlotsGap]:
    """Towns that may not use as many slots as they have bought."""
    db = Database(settings.urls.filled())
    try:
        async with db.platform_session("doctor", read_only=True) as session:
            return await slots_gaps(session, datetime.now(UTC))
    finally:
        await db.close()


def _answers(url: str, setting: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - an address from our own settings
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{url} does not answer ({type(error).__name__}). Check {setting} and that it runs."
