#!/usr/bin/env bash
# Draws docs/images/finding.png: the largest finding of the demo's most anomalous scan, a synthetic head.
#
# Takes   demo/cohort and demo/tables, which `make demo` makes.
set -euo pipefail
cd "$(dirname "$0")/.."

subject=sub-synth004
python=$(scripts/python.sh)
steps=$(mktemp -d)
trap 'rm -rf "$steps"' EXIT
cargo run --release --locked --quiet -- inspect "demo/cohort/$subject/anat/${subject}_T1w.nii.gz" \
    --nifti "$steps" --png "$steps/steps.png" >/dev/null
mkdir -p docs/images
"$python" examples/plot_finding.py --tables demo/tables --scan "demo/${subject}_T1w" \
    --brain "$steps/${subject}_T1w_step-6mni.nii.gz" docs/images/finding.png
