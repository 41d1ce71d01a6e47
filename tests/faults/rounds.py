"""How often each fault is tried: switches of the test run itself."""

import os
from typing import Final

# How many different answers, cuts and orders of bytes each fault of a model server is tried with.
SEEDS: Final = range(int(os.environ.get("KUMIAI_FAULT_SEEDS", "5")))  # noqa: TID251 - a switch of the test run itself
# Kills take a process each; two of them meet different moments.
ROUNDS: Final = range(int(os.environ.get("KUMIAI_FAULT_ROUNDS", "2")))  # noqa: TID251 - as above
