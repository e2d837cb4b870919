#!/usr/bin/env bash
# The soak: two schedules share a cohort that grows and its tables, while they are killed and the store fails.
#
#   scripts/soak.sh --hours 2 --seed 1 --program target/release/neurosieve --report soak.txt
#
# Exit code 0 where every bar is held. CONTRIBUTING.md says what is checked; --help lists the options.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${NEUROSIEVE_PYTHON:-$("$here/python.sh")}
exec "$python" "$here/../tests/soak/soak.py" "$@"
