#!/usr/bin/env bash
# Packs the one folder that a measurement on a GPU needs, and prints its size: the program (stripped, xz), the scripts and
# the description of the built-in bundle. Carry it to a machine with a GPU and run measure.sh there. The program makes the
# synthetic heads on that machine, which takes less time than carrying them.
#
# Takes   CARGO_TARGET_DIR with the built release program (default: target), the folder to make (default: gpu-measure).
set -euo pipefail
cd "$(dirname "$0")/../.."

program=${CARGO_TARGET_DIR:-target}/release/neurosieve
folder=${1:-gpu-measure}
[[ -x $program ]] || { echo "pack: $program is missing; run make build" >&2; exit 1; }

rm -rf "$folder"
mkdir -p "$folder/bundle"
cp benches/gpu/{measure.sh,measure.py,tables.py} benches/twin/twin.py pipelines/screen.toml "$folder"
cp models/t1w-2mm/bundle.toml "$folder/bundle"
strip -o "$folder/neurosieve" "$program"
xz --threads=0 -6 "$folder/neurosieve"

size=$(du -sb "$folder" | cut -f1)
awk -v b="$size" -v f="$folder" 'BEGIN { printf "%s: %.1f MiB; carry it and run %s/measure.sh\n", f, b / 1048576, f }'
if ((size > 60 * 1024 * 1024)); then
    echo "pack: that is more than 60 MiB" >&2
    exit 1
fi
