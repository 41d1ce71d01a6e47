"""What models and apps are called, for commands of the layer below, which does not know the layers that have them."""

from collections.abc import Mapping

from tenants.settings import load_settings


class Names:
    """Read when a command asks: what it takes to know them is slow to load."""

    def models(self) -> Mapping[str, frozenset[str]]:
        """By name: the other names of the same models."""
        from gateway.server.providers.factory import known_names
        from gateway.server.settings import ProviderSettings

        return known_names(ProviderSettings(), production=load_settings().env == "production")

    def apps(self) -> frozenset[str]:
        """Their ids."""
        from apps.host.discovery import discover

        return frozenset(discover())
