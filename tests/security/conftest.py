"""What the tests of this folder share: every address of the product, as it describes itself."""

import pytest

from kumiai.isolation.surface import Address, find_addresses


@pytest.fixture(scope="session")
def all_addresses(tmp_path_factory: pytest.TempPathFactory) -> list[Address]:
    """Of portal and gateway, what ends something last."""
    return find_addresses(tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="session")
def addresses(all_addresses: list[Address]) -> list[Address]:
    """Of the portal."""
    return sorted((a for a in all_addresses if a.server == "portal"), key=str)
