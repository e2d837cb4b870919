#!/usr/bin/env bash
# Shows the whole way from scans to SQL. Makes a synthetic cohort of 8 subjects (some with lesions, one with a damaged
# file) and healthy heads of the same synthetic scanner, adapts the built-in bundle to the healthy heads, screens the
# cohort, and queries findings and failures. Replaces demo/ in this checkout.
set -euo pipefail
cd "$(dirname "$0")/.."

neurosieve() {
    cargo run --release --locked --quiet -- "$@"
}

step() {
    printf '\n== %s\n' "$1"
}

rm -rf demo
step 'A synthetic cohort: demo/cohort'
neurosieve synth demo/cohort --subjects 8 --lesions 4 --corrupt 1

step 'The built-in bundle, adapted to healthy heads of this synthetic scanner: demo/bundle'
neurosieve synth demo/healthy --subjects 15 --lesions 0 --seed 77
neurosieve train pipelines/adapt.toml --cohort demo/healthy --set train.name=demo --set train.out=demo/bundle \
    --set train.work=demo/work

step 'The cohort, screened into demo/tables'
code=0
neurosieve run pipelines/demo.toml --cohort demo/cohort --tables demo/tables --set cohort.name=demo \
    --set model.bundle=demo/bundle || code=$?
# Exit code 3: done, some scans failed. The damaged file must fail.
if [[ $code != 3 ]]; then
    echo "demo: the run ended with exit code $code; expected 3, because one file is damaged" >&2
    exit 1
fi

step 'The most anomalous scans (sql/most_anomalous_scans.sql)'
neurosieve sql --tables demo/tables -f sql/most_anomalous_scans.sql

step 'The failures, by reason (sql/failures_by_reason.sql)'
neurosieve sql --tables demo/tables -f sql/failures_by_reason.sql

step 'Next steps'
cat <<'NEXT'
Run it again. Every scan is done, so nothing is computed twice.
    cargo run --release -- run pipelines/demo.toml --cohort demo/cohort --tables demo/tables --set cohort.name=demo \
        --set model.bundle=demo/bundle
Query the tables:
    cargo run --release -- sql --tables demo/tables -c 'SELECT subject, anomaly_score FROM scans ORDER BY 2 DESC'
Check that this machine can screen your own cohort: a folder, s3://, gs:// or az://.
    cargo run --release -- doctor s3://bucket/cohort
NEXT
