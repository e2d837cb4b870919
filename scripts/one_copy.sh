#!/usr/bin/env bash
# Fails where Cargo.lock holds two versions of a crate whose types cross library borders: a table of one arrow is no
# table to another, so a second copy compiles and then does not fit, or is converted at a cost that nobody sees.
set -euo pipefail
cd "$(dirname "$0")/.."

doubled=$(
    awk -F'"' '/^name = /{ name = $2 } /^version = /{ print name, $2 }' Cargo.lock |
        awk '$1 ~ /^(arrow|parquet|datafusion|deltalake|object_store|tch)(-|$)/ { versions[$1] = versions[$1] " " $2; n[$1]++ }
             END { for (name in n) if (n[name] > 1) print name versions[name] }' | sort
)
if [[ -n $doubled ]]; then
    echo "one_copy: Cargo.lock holds more than one version of:" >&2
    echo "$doubled" >&2
    echo "one_copy: 'cargo tree -i <name>@<version>' tells who wants which; bring them to one" >&2
    exit 1
fi
