#!/usr/bin/env bash
# Makes .venv from the hashed lock files: `install.sh runtime`, `install.sh dev` (adds the tools of the tests),
# `install.sh models` (adds real small models). A second run with unchanged locks does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-runtime}

fail() { printf '%s\n' "$1" >&2; exit 1; }
command -v git >/dev/null || fail "git is missing: install it first (Debian: apt-get install git)."

python=""
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null 2>&1 &&
     "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is missing: install it first (Debian: apt-get install python3 python3-venv)."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  fail "Python's venv module is missing: install it first (Debian: apt-get install python3-venv)."

locks=(requirements/runtime.lock)
[ "$what" = runtime ] || locks+=(requirements/dev.lock)
[ "$what" != models ] || locks+=(requirements/models.lock)
stamp=.venv/.installed-$what
want=$(cat "${locks[@]}" requirements/bootstrap.lock pyproject.toml requirements/install.sh | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

say() { printf '  %s\n' "$1"; }
if [ ! -x .venv/bin/uv ]; then
  say "making .venv with $("$python" --version)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
fi
args=()
for lock in "${locks[@]}"; do args+=(-r "$lock"); done
say "installing $what packages (hashes checked)"
.venv/bin/uv pip install -q --python .venv/bin/python --require-hashes "${args[@]}"
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
printf '%s' "$want" > "$stamp"
