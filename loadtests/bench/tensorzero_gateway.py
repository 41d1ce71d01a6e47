"""Starts TensorZero's own HTTP gateway from its Python package and prints its address; run in TensorZero's environment.

The standalone program is not in the package index; the package carries the same Rust gateway, which serves on a port
of its own choosing. It is given a configuration file and no database, so that it stores nothing.
"""

import sys
import time

from tensorzero import tensorzero  # type: ignore[import-not-found]  # installed in an environment of its own


def main() -> None:
    gateway = tensorzero._start_http_gateway(
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    print(gateway.base_url, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
