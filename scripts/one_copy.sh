#!/usr/bin/env bash
# Fails if Cargo.lock has two versions of a crate whose types pass between libraries. A table of one arrow version is
# not a table for another: a second copy compiles, but then types do not match, or are converted at a hidden cost.
set -euo pipefail
cd "$(dirname "$0")/.."

doubled=$(
    awk -F'"' '/^name = /{ name = $2 } /^version = /{ print name, $2 }' Cargo.lock |
        awk '$1 ~ /^(arrow|parquet|datafusion|deltalake|object_store|tch)(-|$)/ { versions[$1] = versions[$1] " " $2; n[$1]++ }
             END { for (name in n) if (n[name] > 1) print name versions[name] }' | sort
)
if [[ -n $doubled ]]; then
    echo "one_copy: Cargo.lock has more than one version of:" >&2
    echo "$doubled" >&2
    echo "one_copy: 'cargo tree -i <name>@<version>' shows which crate needs which version; use one for all" >&2
    exit 1
fi
