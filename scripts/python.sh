#!/usr/bin/env bash
# Sets up the Python environment in which tests read volumes and tables with other programs, and prints its path.
#
# Takes   NEUROSIEVE_CACHE (default: neurosieve/ in the user's cache folder), python3 with venv and pip.
# Gives   <cache>/python-<hash>/bin/python with scripts/python-requirements.txt installed; a new one when that file or
#         python3 changes. Prints the path alone to standard output: NEUROSIEVE_PYTHON=$(scripts/python.sh).
set -euo pipefail

requirements=$(cd "$(dirname "$0")" && pwd)/python-requirements.txt
cache=${NEUROSIEVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/neurosieve}

fail() {
    echo "python: $*" >&2
    exit 1
}

identity=$(python3 -c 'import sys; print(sys.version, sys.base_prefix)') || fail "python3 is needed; install it"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "python3 is $identity; 3.11 or newer is needed"

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
hash=$({ cat "$requirements" && echo "$identity"; } | sha256sum)
venv=$cache/python-${hash:0:12}

# Two checkouts may share one cache folder.
exec 9>"$cache/.python.lock"
flock 9
# `ready` is written last, so an interrupted installation is repeated.
if [[ ! -e $venv/ready ]]; then
    echo "python: installing the packages that the tests need" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2 || fail "python3 cannot make an environment (Debian, Ubuntu: apt install python3-venv)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r "$requirements" >&2 ||
        fail "could not install the packages; check the network and pip's settings, then run this again"
    touch "$venv/ready"
fi
echo "$venv/bin/python"
