"""The models a clerk chooses from: where each would work for this weight, and whose it is."""

from apps.host.app_context import choices
from apps.sdk.context import ModelChoice
from tenants.context import DataClass
from tenants.policy import Policy

TOWN = ("onprem", False, "town", "JP")
SHARED = ("onprem", False, "shared", "JP")
TOKYO = ("domestic", False, "vendor", "US")
OSAKA = ("domestic", False, "vendor", "JP")
ABROAD = ("overseas", False, "vendor", "US")


def chosen(*places: tuple[str, bool, str, str], data_class: DataClass = DataClass.C1) -> ModelChoice:
    """標準, which works at these places, in the order in which they are tried."""
    names = ("zone", "isolated", "zone_owner", "vendor_country")
    facts = {
        "zones": sorted({zone for zone, *_ in places}), "isolated": False, "zone_owner": places[0][2],
        "vendor_country": places[0][3], "capabilities": [], "places": [dict(zip(names, p, strict=True)) for p in places],
    }  # fmt: skip
    [found] = choices([{"id": "standard", "kumiai": facts}], ["standard"], Policy(), data_class)
    return found


def place(found: ModelChoice) -> tuple[str, str, str]:
    return found.zone, found.zone_owner, found.country


def test_a_vendors_country_is_told_beside_its_zone() -> None:
    assert place(chosen(TOKYO)) == ("domestic", "vendor", "US")
    assert place(chosen(OSAKA)) == ("domestic", "vendor", "JP")
    assert place(chosen(TOWN)) == ("onprem", "town", "JP")


def test_the_place_is_the_first_that_may_have_the_information() -> None:
    assert place(chosen(ABROAD, SHARED)) == ("overseas", "vendor", "US")
    assert place(chosen(ABROAD, SHARED, data_class=DataClass.C3C)) == ("onprem", "shared", "JP")


def test_what_differs_between_places_is_not_told() -> None:
    assert place(chosen(TOKYO, OSAKA)) == ("domestic", "vendor", "")
    assert place(chosen(TOWN, SHARED)) == ("onprem", "", "JP")


def test_a_model_that_may_not_have_it_is_still_told_with_its_place() -> None:
    found = chosen(ABROAD, data_class=DataClass.C3C)
    assert place(found) == ("overseas", "vendor", "US")
    assert "海外では扱えません" in found.why_not
