"""Finds the apps: every folder here with an `app.toml`, and what other packages offer as `kumiai.apps`."""

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from apps.sdk.app import App


def discover() -> dict[str, App]:
    """Apps by id, in the order of their titles. A broken app stops the start: half a portal helps nobody."""
    found: dict[str, App] = {}
    for manifest in sorted(Path(__file__).parent.parent.glob("*/app.toml")):
        name = manifest.parent.name
        app: App = import_module(f"apps.{name}.router").app
        found[app.manifest.id] = app
    for entry in entry_points(group="kumiai.apps"):
        app = entry.load()
        if app.manifest.id in found:
            raise ValueError(f"two apps are called {app.manifest.id}")
        found[app.manifest.id] = app
    return found
