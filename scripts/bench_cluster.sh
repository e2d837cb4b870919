#!/usr/bin/env bash
# Measures a cluster of real processes on this machine: against the local runner, two executors against one, the end of a
# run, memory, and the cost of a chunk and of a commit.
#
#   scripts/bench_cluster.sh --program target/release/neurosieve --report cluster.md
#   scripts/bench_cluster.sh --program target/release/neurosieve --quick --parts scaling,chunks
#
# Exit code 0 where every bar is held. Needs Linux with two cores, taskset and Python 3.11. --help lists the options.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "${NEUROSIEVE_PYTHON:-python3}" "$here/../tests/cluster/bench.py" "$@"
