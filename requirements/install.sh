#!/usr/bin/env bash
# Makes .venv from the hashed lock files: `install.sh runtime`, `install.sh dev` (adds the tools of the tests),
# `install.sh models` (adds real small models), `install.sh pictures` (what reads letters in pictures), `install.sh speech` (what
# measures and hears recordings). A second run with unchanged locks does nothing.
# What a next clone can use again (uv, bytecode) lies beside uv's own cache; without it all is made anew.
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
case $what in
  runtime) ;;
  pictures | speech) locks+=("requirements/$what.lock") ;;
  models) locks+=(requirements/dev.lock requirements/models.lock) ;;
  *) locks+=(requirements/dev.lock) ;;
esac
stamp=.venv/.installed-$what
want=$(cat "${locks[@]}" requirements/bootstrap.lock requirements/bytecode.py pyproject.toml requirements/install.sh | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

say() { printf '  %s\n' "$1"; }
cache=${XDG_CACHE_HOME:-${HOME:-$PWD/.venv}/.cache}/kumiai
mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ] || { cache=$PWD/.venv/cache && mkdir -p "$cache"; }
if [ ! -x .venv/bin/uv ]; then
  say "making .venv with $("$python" --version)"
  # Without pip, whose installation takes longer than all that follows.
  "$python" -m venv --without-pip .venv
  uv=$cache/uv-$(uname -sm | cat - requirements/bootstrap.lock | cksum | tr ' ' -)
  if [ ! -x "$uv" ]; then
    # By the pip that Python carries along, run from its wheel; a rename, so that two installs at once do no harm.
    new=$(mktemp -d "$cache/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    wheel=$("$python" -c 'import ensurepip as e, glob, os
for w in glob.glob(os.path.join(getattr(e, "_WHEEL_PKG_DIR", None) or os.path.join(os.path.dirname(e.__file__), "_bundled"), "pip-*.whl")): print(w)')
    [ -f "$wheel" ] || .venv/bin/python -m ensurepip >/dev/null
    PYTHONPATH=$wheel .venv/bin/python -m pip install -q --disable-pip-version-check --no-compile \
      --require-hashes --target "$new" -r requirements/bootstrap.lock
    mv "$new/bin/uv" "$uv"
  fi
  ln "$uv" .venv/bin/uv 2>/dev/null || cp "$uv" .venv/bin/uv
fi
args=()
for lock in "${locks[@]}"; do args+=(-r "$lock"); done
say "installing $what packages (hashes checked)"
.venv/bin/uv pip install -q --python .venv/bin/python --require-hashes "${args[@]}"
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
.venv/bin/python requirements/bytecode.py "$cache"
printf '%s' "$want" > "$stamp"
