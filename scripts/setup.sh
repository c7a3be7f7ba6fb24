#!/usr/bin/env bash
# Brings what the build and the tests need: Debian packages (when root) and .venv with the Python tools.
# Nothing happens, quickly, when all is there.
#
#   scripts/setup.sh          what `make test` and `make demo` need
#   scripts/setup.sh --clang  also what `make lint` and `make fuzz` need
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  ccache cmake g++ git make ninja-build pkg-config python3-venv
  libcli11-dev libfmt-dev libgmock-dev libgtest-dev libpcre2-dev libspdlog-dev libutf8proc-dev libxxhash-dev libyaml-cpp-dev
  nlohmann-json3-dev
)
if [ "${1:-}" = --clang ]; then
  packages+=(clang clang-format clang-tidy libclang-rt-14-dev)
fi

if command -v dpkg-query >/dev/null; then
  missing=()
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
  for package in "${packages[@]}"; do
    grep -qx "installed $package" <<<"$installed" || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
      echo "setup: missing Debian packages; run: sudo apt-get install ${missing[*]}" >&2
      exit 1
    fi
    echo "setup: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
else
  echo "setup: not a Debian system; the build needs the equivalents of: ${packages[*]}" >&2
fi

# The copy of the requirements is made last, so an interrupted installation is done again.
requirements=python/tools/requirements.txt
if ! cmp -s $requirements .venv/requirements.txt; then
  echo "setup: making .venv"
  [ -x .venv/bin/pip ] || python3 -m venv .venv
  .venv/bin/pip install -q --disable-pip-version-check --no-deps -r $requirements
  cp $requirements .venv/requirements.txt
fi
