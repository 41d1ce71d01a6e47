"""Loading the code that processes run: without the collector, and once for several of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final

# Everything that `kumiai gateway`, `portal`, `worker` and `demo` run.
PARTS: Final = (
    "gateway.server.edge",
    "gateway.server.main",
    "apps.host.main",
    "kumiai.worker",
    "kumiai.seed",
    "kumiai.front",
    "tenants.schema",
)


@contextmanager
def loading() -> Iterator[None]:
    """Imports within it go without the collector, which would look again and again through what only grows: a seventh
    of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def load_parts(*more: str) -> None:
    """Loads what any of the processes needs, for `forking.fork` to hand on. Takes seconds on a small machine.

    more: modules beside those.
    """
    with loading():
        for part in (*PARTS, *more):
            import_module(part)
    gc.collect()
    # What is loaded is not looked through by a child, which would copy every page of it.
    gc.freeze()
