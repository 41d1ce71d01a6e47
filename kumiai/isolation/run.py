"""The whole trial, from an empty folder to a report: an installation of its own is started, tried and ended again."""

import asyncio
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psycopg

from kumiai.isolation.installation import new_database, started, unbound
from kumiai.isolation.replay import Tell, Trial, replay
from kumiai.isolation.report import FORGED, WALLS, Finding, Report
from kumiai.isolation.rows import Reach, Wall, fill, try_rows
from kumiai.isolation.stage import Persona, Stage, personas
from kumiai.isolation.surface import Address, find_addresses, uncovered
from kumiai.isolation.tokens import KINDS, Tokens, try_tokens
from kumiai.isolation.walls import take_out, take_out_both
from kumiai.local.postgres import Postgres, ServerNotFound
from tenants.context import TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.schema import migrate

OTHER_WALL: Final[Mapping[Wall, Wall]] = {"filters": "row-level security", "row-level security": "filters"}
# The same credentials are forged each time, so that a finding can be found again.
SEED = 20261128


@dataclass(frozen=True, slots=True)
class Tried:
    """What was done on a stage. `people`: who tried, name → in words."""

    people: Mapping[str, str]
    trials: tuple[Trial, ...]
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Alone:
    """What was tried while one wall was the only one. `people`: as above.

    `control`: what was then tried with neither; it gets through, so that the rest can be believed.
    """

    wall: Wall
    people: Mapping[str, str]
    trials: tuple[Trial, ...]
    control: tuple[Trial, ...]


class NothingGotThrough(RuntimeError):
    """Without either wall another town's things were still out of reach, so the trial would not notice a missing one."""


def try_isolation(*, mutations: int) -> Report:
    """Tries everything and tells on the terminal how far it is. mutations: at least so many forged credentials.

    Without PostgreSQL on this machine SQLite is tried, which has no row-level security; the report says so. Raises
    `DemoDidNotStart`, `StageFailed`, `ControlRefused`, `NoSample`, `NothingGotThrough`.
    """
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="kumiai-isolation-") as name:
        folder = Path(name)
        # PostgreSQL runs as somebody else when this is root, and has to pass through.
        folder.chmod(0o711)
        addresses = find_addresses(folder / "described")
        with _postgres(folder / "postgres") as server:
            database = _database_words(server)
            say(f"データベース　{database}")
            urls = bound = None
            if server is not None:
                urls = new_database(server, "isolation")
                migrate(urls)
                bound = unbound(server, urls)
            say("2つの町を用意しています。")
            with started(folder, urls, bound) as stage:
                tried = try_on(stage, addresses, mutations=mutations, tell=say)
            alone = [] if server is None else try_each_alone(folder, server, addresses)
            reaches = try_walls(folder, server)
    return report_of(addresses, tried, alone, reaches, began=began, database=database)


def try_on(
    stage: Stage, addresses: Sequence[Address], *, mutations: int, tell: Callable[[str], None], is_short: bool = False
) -> Tried:
    """Replays every address and tries forged credentials. is_short: as `replay` does it."""
    with personas(stage) as people:
        tell(f"{len(people)}とおりの相手が、{len(addresses)}のアドレスを試しています。")
        trials = tuple(replay(stage, addresses, people, _progress(tell), is_short=is_short))
    tell(f"偽の証明を{mutations:,}以上試しています。")
    step = max(mutations // 10, 500)

    def forged(done: int) -> None:
        if done and done % step == 0:
            tell(f"  {done:,}")

    tokens = stage.observer.run(try_tokens(stage, mutations, seed=SEED, tell=forged))
    return Tried({p.name: p.title for p in people}, trials, tokens)


def _progress(tell: Callable[[str], None]) -> Tell:
    def played(persona: Persona, done: int, held: int) -> None:
        tell(f"  {persona.title}　ここまで{done:,}回、届いたもの{done - held:,}回")

    return played


def try_each_alone(folder: Path, server: Postgres, addresses: Sequence[Address]) -> list[Alone]:
    """Every address once more for each of the two walls, each time on an installation of its own."""
    found = []
    for wall in WALLS:
        say(f"守りを1つにして、もう一度すべてのアドレスを試す用意をしています。残すもの　{WALLS[wall]}")
        name = f"alone_{wall.split('-')[0]}"
        urls = new_database(server, name)
        migrate(urls)
        (folder / name).mkdir()
        with started(folder / name, urls, unbound(server, urls), is_breakable=True) as stage:
            found.append(try_alone(stage, addresses, wall, tell=say))
    return found


def try_alone(
    stage: Stage,
    addresses: Sequence[Address],
    wall: Wall,
    *,
    tell: Callable[[str], None],
    names: Collection[str] = (),
    is_short: bool = False,
) -> Alone:
    """Replays every address by one wall alone, and the town's console by none. stage: breakable, on PostgreSQL.

    names: of the personas who try, among them `town_admin`; all when empty. is_short: as `replay` does it. Raises
    `NothingGotThrough`.
    """
    with personas(stage, names) as people:
        take_out(stage, OTHER_WALL[wall])
        trials = tuple(replay(stage, addresses, people, _progress(tell), is_short=is_short))
        tell("試験が見逃さないことを確かめるため、守りを2つともなくして試しています。届くはずです。")
        take_out_both(stage)
        console = [a for a in addresses if a.office == "/console/town"]
        control = tuple(replay(stage, console, [p for p in people if p.name == "town_admin"], _progress(tell)))
    if not any(_is_reached(trial) for trial in control):
        raise NothingGotThrough(
            "守りを2つともなくしても、ほかの町のものに届きませんでした。試験そのものを直してください。"
        )
    return Alone(wall, {p.name: p.title for p in people}, trials, control)


def _is_reached(trial: Trial) -> bool:
    """It got through, and did not only break something on its way."""
    return not trial.held and trial.status < 500


def report_of(
    addresses: Sequence[Address],
    tried: Tried,
    alone: Sequence[Alone],
    reaches: Sequence[Reach],
    *,
    began: datetime,
    database: str,
) -> Report:
    """What is told of it. database: in words."""
    return Report(
        began=began,
        ended=datetime.now(UTC),
        version=version("kumiai"),
        machine=f"{platform.system()} {platform.machine()}、Python {platform.python_version()}",
        database=database,
        pages=sum(a.server == "portal" for a in addresses),
        calls=sum(a.server == "gateway" for a in addresses),
        uncovered=tuple(uncovered(addresses)),
        people=tried.people,
        tried_by=Counter(t.persona for t in tried.trials),
        ways=Counter(t.how for t in tried.trials),
        tokens=Counter(tried.tokens.tried),
        by_wire=tried.tokens.by_wire.total(),
        alone=Counter({one.wall: len(one.trials) for one in alone}),
        control=(sum(len(one.control) for one in alone), sum(_is_reached(t) for one in alone for t in one.control)),
        reaches=Counter(r.wall for r in reaches),
        tables=len({r.table for r in reaches}),
        findings=(
            *(Finding(tried.people[t.persona], t.address, t.how, t.why) for t in tried.trials if not t.held),
            *(Finding(FORGED, KINDS[kind][0], "", "受け入れられた") for kind, _ in tried.tokens.accepted),
            *(
                Finding(WALLS[one.wall], f"{one.people[t.persona]}　{t.address}", t.how, t.why)
                for one in alone
                for t in one.trials
                if not t.held
            ),
            *(Finding(WALLS[r.wall], r.table, r.act, r.told) for r in reaches if not r.held),
        ),
    )


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _postgres(folder: Path) -> Iterator[Postgres | None]:
    """A server of its own, or None where its program is missing."""
    server = Postgres(folder, fsync=False)
    try:
        server.start()
    except ServerNotFound as missing:
        say(f"PostgreSQLがないため、SQLiteで試します（{missing}）。")
        server.stop()
        yield None
        return
    try:
        yield server
    finally:
        server.stop()


def _database_words(server: Postgres | None) -> str:
    if server is None:
        return "SQLite（行レベルセキュリティはない）"
    with psycopg.connect(server.superuser_url) as connection:
        number = connection.info.server_version
    return f"PostgreSQL {number // 10_000}.{number % 10_000}"


def try_walls(folder: Path, server: Postgres | None) -> list[Reach]:
    """Each wall alone: the filters on SQLite and by an exempt login, the policies by the product's own logins."""
    say("2つの守りを、1つずつにして、すべての表で試しています。")
    tried: list[tuple[Wall, DatabaseUrls, DatabaseUrls]] = []
    sqlite = DatabaseUrls(f"sqlite:///{folder / 'rows.sqlite3'}")
    tried.append(("filters", sqlite, sqlite))
    if server is not None:
        for wall in ("filters", "row-level security"):
            urls = new_database(server, f"isolation_{wall.split('-')[0]}")
            exempt = unbound(server, urls)
            tried.append((wall, urls if wall == "row-level security" else exempt, exempt))
    found = []
    for wall, urls, exempt in tried:
        migrate(urls if urls.owner else exempt)
        found += asyncio.run(_one_wall(wall, urls, exempt))
    return found


async def _one_wall(wall: Wall, urls: DatabaseUrls, exempt: DatabaseUrls) -> list[Reach]:
    mine, other = TenantId(new_id()), TenantId(new_id())
    filling, db = Database(exempt), Database(urls)
    try:
        await fill(filling, (mine, other))
        return await try_rows(db, wall, mine, other)
    finally:
        await filling.close()
        await db.close()
