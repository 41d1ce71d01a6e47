#!/usr/bin/env bash
# Installs from Debian's packages what the tests' real servers need and wheels do not bring. A second run does nothing.
set -euo pipefail

# program → package
needed=(
  "chromium chromium"
  "pgbouncer pgbouncer"
  "java default-jre-headless"
  "mvn maven"
  "unzip unzip"
  "gcc gcc"
  "pdftoppm poppler-utils"
  "clamd clamav-daemon"
  "c-icap c-icap"
)
packages=()
for pair in "${needed[@]}"; do
  program=${pair% *} package=${pair#* }
  command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || packages+=("$package")
done
# Its scanner is a package of its own.
ls /usr/lib/*/c_icap/virus_scan.so >/dev/null 2>&1 || packages+=(libc-icap-mod-virus-scan)
# A compiler without the C library's headers compiles nothing; Debian only recommends them.
[ -f /usr/include/stdio.h ] || packages+=(libc6-dev)
# Chromium draws Japanese with the system's fonts.
[ -d /usr/share/fonts/opentype/noto ] || packages+=(fonts-noto-cjk)
[ ${#packages[@]} -gt 0 ] || exit 0

printf '  installing %s\n' "${packages[*]}"
[ "$(id -u)" = 0 ] || { printf 'These packages need root: apt-get install %s\n' "${packages[*]}" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
"${apt[@]}" update
"${apt[@]}" install --no-install-recommends "${packages[@]}" >/dev/null
# The same Chromium without its windows, for a third of the CPU; where there is none, tests take the whole.
"${apt[@]}" install --no-install-recommends chromium-headless-shell >/dev/null || echo "  no chromium-headless-shell: pages take longer"
