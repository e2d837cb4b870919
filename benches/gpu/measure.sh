#!/usr/bin/env bash
# Measures neurosieve on the GPU of this machine, in at most nine minutes: see measure.py beside it for what and how.
#
# Needs   python3 with PyTorch 2.11.0 in its site-packages, an NVIDIA driver. No network, no compiler.
# Takes   --device cuda|cpu (default cuda), --quick (every part in its smallest form), --out FOLDER (default: here).
# Gives   FOLDER/gpu.json with every figure, FOLDER/gpu.md with the tables of docs/performance.md.
set -euo pipefail
exec python3 "$(dirname "$0")/measure.py" "$@"
