"""Thousands of credentials that must not pass, at the gateway's own authenticator; see `kumiai.isolation.tokens`."""

import os
from collections import Counter

import pytest

from kumiai.isolation.stage import Stage
from kumiai.isolation.tokens import KINDS, Tokens, forged, material_of, try_tokens

pytestmark = pytest.mark.real

# The full run (`make evidence-isolation`) tries a hundred thousand and more.
COUNT = int(os.environ.get("KUMIAI_TOKEN_MUTATIONS", "3000"))  # noqa: TID251 - a switch of the test run itself
SEED = 20261128


@pytest.fixture(scope="module")
def tried(stage: Stage) -> Tokens:
    return stage.observer.run(try_tokens(stage, COUNT, seed=SEED, tell=lambda _: None))


def test_none_is_accepted(tried: Tokens) -> None:
    assert tried.accepted == []


def test_every_kind_was_tried_here_and_over_the_wire(tried: Tokens) -> None:
    assert tried.tried.total() >= COUNT
    assert set(tried.tried) == set(KINDS)
    assert set(tried.by_wire) == set(KINDS)


def test_they_are_all_different_and_none_is_the_right_one(stage: Stage) -> None:
    material = stage.observer.run(material_of(stage, stage.observer.db))
    made = [token for _, token in forged(material, 2_000, SEED)]
    assert material.api_key not in made
    assert material.others_api_key not in made
    twice = [token for token, times in Counter(made).items() if times > 1]
    # A right secret cut by its last letter can come twice; nearly all are one of a kind.
    assert len(twice) < len(made) / 20
