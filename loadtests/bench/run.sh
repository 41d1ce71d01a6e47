#!/usr/bin/env bash
# Side by side in one run: bare upstream, nginx, LiteLLM proxy, Portkey, TensorZero (where it can be had), Kumiai.
set -euo pipefail
cd "$(dirname "$0")/../.."
loadtests/bench/install_peers.sh
exec .venv/bin/python -m loadtests.bench "$@"
