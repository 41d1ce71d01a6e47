"""Every address asked for another town's things, with one of the two walls taken out of the running product.

`test_walls` tries the same table by table; here it is what pages and API really ask the database.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumiai.isolation.installation import started, unbound
from kumiai.isolation.rows import Wall
from kumiai.isolation.run import try_alone
from kumiai.isolation.stage import Stage
from kumiai.isolation.surface import Address
from kumiai.isolation.unfiltered import ALL_TABLES, without_conditions
from kumiai.local.postgres import Postgres
from tenants.db import DatabaseUrls
from tests.servers import cloned

# Who is in another town and may open most there. The full run (`make evidence-isolation`) has everybody.
PEOPLE = os.environ.get("KUMIAI_WALL_PERSONAS", "staff town_admin system").split()  # noqa: TID251 - a switch of the test run itself


@pytest.fixture
def breakable_stage(postgres_server: Postgres, postgres_template: DatabaseUrls) -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="kumiai-wall-"))
    with (
        cloned(postgres_server, postgres_template) as urls,
        started(folder, urls, unbound(postgres_server, urls), is_breakable=True) as made,
    ):
        yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("wall", ["row-level security", "filters"])
def test_one_wall_alone_holds_every_address(wall: Wall, breakable_stage: Stage, all_addresses: list[Address]) -> None:
    tried = try_alone(breakable_stage, all_addresses, wall, tell=lambda _: None, names=PEOPLE, is_short=True)
    assert set(tried.people) == set(PEOPLE)
    asked = {trial.address for trial in tried.trials}
    assert asked - {""} == {str(a) for a in all_addresses} - {"POST /auth/signout"}
    assert [f"{t.persona}: {t.address} ({t.how}) {t.why}" for t in tried.trials if not t.held] == []
    # Without either, words of the other town are read, its things are opened by their number, and its rows are changed.
    seen = "".join(t.why for t in tried.control)
    assert all(words in seen for words in ("町の文字が答えに出た", "200が返った（404のはず）", "person: 変わった"))


def test_conditions_on_the_town_are_struck_from_a_statement() -> None:
    read = (
        "SELECT person.id FROM person JOIN section ON section.tenant_id = %(tenant_id_1)s::UUID "
        "AND section.id = person.section_id WHERE person.tenant_id = %(tenant_id_2)s::UUID AND person.id = %(id_1)s::UUID"
    )
    assert without_conditions(read, ALL_TABLES) == (
        "SELECT person.id FROM person JOIN section ON true "
        "AND section.id = person.section_id WHERE true AND person.id = %(id_1)s::UUID"
    )
    assert without_conditions(read, ("section",)).endswith(
        "ON true AND section.id = person.section_id WHERE person.tenant_id = %(tenant_id_2)s::UUID AND person.id = %(id_1)s::UUID"
    )
    written = (
        "delete from content.document where content.document.tenant_id = %(t)s and (tenant_id = %(t)s or id = %(i)s)"
    )
    assert without_conditions(written, ("content.document",)).count("tenant_id") == 1
    assert "tenant_id" not in without_conditions(written, ALL_TABLES)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO person (tenant_id, id) VALUES (%(tenant_id)s::UUID, %(id)s::UUID)",
        "UPDATE person SET tenant_id=%(tenant_id)s::UUID WHERE person.id = %(id_1)s::UUID",
        "select set_config('app.tenant_id', %(t)s, true)",
        "SELECT 1 FROM a JOIN b ON a.tenant_id = b.tenant_id",
    ],
)
def test_what_names_a_town_to_write_or_to_join_stays(statement: str) -> None:
    assert without_conditions(statement, ALL_TABLES) == statement
