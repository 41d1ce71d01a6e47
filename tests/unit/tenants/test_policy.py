"""Class × zone: the default matrix, the three presets, and what no town can allow."""

import pytest

from tenants.context import DataClass, Zone
from tenants.policy import PRESETS, GuardAction, GuardPolicy, Policy, preset_of

EVERYWHERE = frozenset(Zone)


def zones(policy: Policy, data_class: str, *, isolated: bool = False) -> str:
    """The first letters of the zones where it may go."""
    return "".join(z.value[0] for z in Zone if policy.allows(DataClass(data_class), z, isolated=isolated))


@pytest.mark.parametrize(
    ("preset", "allowed"),
    [
        ("strict", {"1": "od", "2": "o", "3C": "", "3B": "", "3A": ""}),
        ("standard", {"1": "odo", "2": "od", "3C": "o", "3B": "", "3A": ""}),
        ("open", {"1": "odo", "2": "odo", "3C": "o", "3B": "", "3A": ""}),
    ],
)
def test_matrix_of_each_preset(preset: str, allowed: dict[str, str]) -> None:
    policy = Policy(zones=dict(PRESETS[preset]))
    assert {c.value: zones(policy, c) for c in DataClass} == allowed
    assert preset_of(policy) == preset


def test_the_default_is_the_standard_one() -> None:
    assert preset_of(Policy()) == "standard"


def test_heavy_personal_data_stays_in_a_closed_segment() -> None:
    assert zones(Policy(), "3B", isolated=True) == "o"
    assert zones(Policy(), "3B", isolated=False) == ""


def test_no_stored_rule_sends_a_secret_anywhere_or_personal_data_abroad() -> None:
    reckless = Policy(zones=dict.fromkeys(DataClass, EVERYWHERE))
    assert zones(reckless, "3A", isolated=True) == ""
    assert zones(reckless, "3C", isolated=True) == "o"
    assert zones(reckless, "2") == "odo"


def test_personal_data_goes_into_the_country_by_a_contract_and_only_where_the_town_chose_it() -> None:
    contract = "国内AI利用契約（令和8年4月1日）"
    chosen = Policy(zones=dict.fromkeys(DataClass, EVERYWHERE), personal_data_contract=contract)
    assert zones(chosen, "3C") == "od"
    assert zones(Policy(personal_data_contract=contract), "3C") == "o"


def test_what_is_not_listed_is_denied() -> None:
    assert zones(Policy(zones={}), "1") == ""


def test_kinds_without_a_rule_are_blocked_and_names_are_told() -> None:
    guard = GuardPolicy(actions={"phone": GuardAction.WARN})
    assert guard.action("phone") is GuardAction.WARN
    assert guard.action("address") is GuardAction.BLOCK
    assert guard.action("name") is GuardAction.WARN
