"""Thousands of credentials that must not pass, at the gateway's own authenticator; see `kumiai.isolation.tokens`."""

from collections import Counter

import pytest

from kumiai.isolation.run import SEED, Tried
from kumiai.isolation.stage import Stage
from kumiai.isolation.tokens import KINDS, forged, material_of
from tests.security.conftest import MUTATIONS

# All that is tried is tried before the first of these tests.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def test_none_is_accepted(tried: Tried) -> None:
    assert tried.tokens.accepted == []


def test_every_kind_was_tried_here_and_over_the_wire(tried: Tried) -> None:
    assert tried.tokens.tried.total() >= MUTATIONS
    assert set(tried.tokens.tried) == set(KINDS)
    assert set(tried.tokens.by_wire) == set(KINDS)


def test_they_are_all_different_and_none_is_the_right_one(stage: Stage) -> None:
    material = stage.observer.run(material_of(stage, stage.observer.db))
    made = [token for _, token in forged(material, 2_000, SEED)]
    assert material.api_key not in made
    assert material.others_api_key not in made
    twice = [token for token, times in Counter(made).items() if times > 1]
    # A right secret cut by its last letter can come twice; nearly all are one of a kind.
    assert len(twice) < len(made) / 20
