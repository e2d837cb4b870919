#!/usr/bin/env bash
# Sets up Azurite, Microsoft's own emulator of the Azure blob service, for the tests, and prints its folder.
#
# Takes   NEUROSIEVE_CACHE (default: neurosieve/ in the user's cache folder), node and npm.
# Gives   <cache>/azurite-<version>, on standard output alone: NEUROSIEVE_AZURITE=$(tests/servers/azurite.sh). Where node and
#         npm are missing or cannot install it: nothing, and a message on standard error; the test that needs it is skipped.
set -euo pipefail

version=3.35.0
cache=${NEUROSIEVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/neurosieve}

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "azurite: node and npm are missing, Azure is not tested (Debian, Ubuntu: apt install npm)" >&2
    exit 0
fi

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
folder=$cache/azurite-$version

# Two checkouts may share one cache folder.
exec 9>"$cache/.azurite.lock"
flock 9
# `ready` is written last: an installation that was interrupted is repeated.
if [[ ! -e $folder/ready ]]; then
    echo "azurite: installing the Azure emulator that tests speak to" >&2
    rm -rf "$folder"
    mkdir "$folder"
    npm install --prefix "$folder" --silent --no-audit --no-fund --no-save "azurite@$version" >&2 || {
        echo "azurite: could not install it, Azure is not tested; check the network and npm's settings" >&2
        exit 0
    }
    touch "$folder/ready"
fi
echo "$folder"
