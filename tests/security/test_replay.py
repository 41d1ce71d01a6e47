"""Everybody who should not get there asks every address for another town's things; see `kumiai.isolation`."""

from collections import Counter

import pytest

from kumiai.isolation import surface
from kumiai.isolation.replay import lets_in, replay
from kumiai.isolation.run import Tried
from kumiai.isolation.stage import Persona, Stage
from kumiai.isolation.surface import Address
from tenants.context import Role

# All that is tried is tried before the first of these tests.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def test_the_addresses_were_found(all_addresses: list[Address]) -> None:
    told = {(a.method, a.path) for a in all_addresses}
    assert len(told) > 120
    assert told >= surface.PUBLIC | surface.BY_TOKEN
    assert {("POST", "/v1/chat/completions"), ("GET", "/v1/models/{alias}"), ("POST", "/apps/chat/send")} <= told


def test_every_role_of_the_product_tries(tried: Tried) -> None:
    assert {role.value for role in Role} <= set(tried.people)
    assert {
        "anonymous",
        "revoked",
        "colleague",
        "own_admin",
        "own_auditor",
        "own_adviser",
        "no_key",
        "revoked_key",
        "system",
        "portal",
    } <= set(tried.people)


def test_nobody_reaches_what_is_another_towns(tried: Tried) -> None:
    failed = [f"{t.persona}: {t.address} ({t.how}) {t.why}" for t in tried.trials if not t.held]
    assert failed == []


def test_each_of_them_asked_every_address(all_addresses: list[Address], tried: Tried) -> None:
    asked: dict[str, set[str]] = {}
    for trial in tried.trials:
        asked.setdefault(trial.persona, set()).add(trial.address)
    pages = {str(a) for a in all_addresses if a.server == "portal"} - {"POST /auth/signout"}
    calls = {str(a) for a in all_addresses if a.server == "gateway"}
    # Of their own town's administrator those outside the office.
    outside = pages - {str(a) for a in all_addresses if Role.TOWN_ADMIN in lets_in(a)}
    for name, told in asked.items():
        # Their likes asked the rest, and all of it in the full run (`make evidence-isolation`).
        if name not in (
            "anonymous",
            "section_head",
            "auditor",
            "adviser",
            "section_admin",
            "own_auditor",
            "own_adviser",
        ):
            assert told - {""} in ((outside,) if name == "own_admin" else (pages, calls)), name
        assert len(told) > 30 or told <= calls | {""}, name
    ways = Counter(t.how for t in tried.trials)
    assert ways["path"] > 200
    assert min(ways[how] for how in ("conversation", "file_ids", "section", "person", "body", "idempotency-key")) >= 2


def test_the_owner_is_taken_for_a_thief(stage: Stage, all_addresses: list[Address]) -> None:
    """The victim's own clerk, called a stranger: each kind of failure is then seen, so that none is missed elsewhere."""
    browser = stage.demo.browser()
    browser.sign_in(stage.demo.person("staff"))
    thief = Persona("owner", "", "other", Role.STAFF, browser=browser, own=dict(stage.objects))
    wanted = (
        "/apps/chat/c/{conversation_id}",
        "/apps/chat/files/{file_id}/original",
        "/apps/chat/c/{conversation_id}/pin",
    )
    some = [a for a in all_addresses if a.path in wanted]
    assert len(some) == len(wanted)
    found = [t.why for t in replay(stage, some, [thief], lambda *_: None) if not t.held]
    browser.close()
    assert any("404のはず" in why for why in found)
    assert any("content.document: 変わった" in why for why in found)
    assert any("町の文字が答えに出た" in why for why in found)
