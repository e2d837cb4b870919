#!/usr/bin/env bash
# From nothing to SQL: makes synthetic healthy heads and learns what they look like, makes a synthetic cohort of 8 subjects
# (some with lesions, one scan damaged), screens it, and asks the tables what was found and what failed. Writes to demo/ in
# this checkout, anew each time.
set -euo pipefail
cd "$(dirname "$0")/.."

neurosieve() {
    cargo run --release --locked --quiet -- "$@"
}

step() {
    printf '\n== %s\n' "$1"
}

rm -rf demo
step 'A synthetic cohort in demo/cohort'
neurosieve synth demo/cohort --subjects 8 --lesions 4 --corrupt 1

step 'What healthy heads of this "scanner" look like: demo/bundle'
neurosieve synth demo/healthy --subjects 15 --lesions 0 --seed 77
neurosieve train pipelines/adapt.toml --cohort demo/healthy --set train.name=demo --set train.out=demo/bundle \
    --set train.work=demo/work

step 'Screening the cohort into demo/tables'
code=0
neurosieve run pipelines/demo.toml --cohort demo/cohort --tables demo/tables --set cohort.name=demo \
    --set model.bundle=demo/bundle || code=$?
# 3 says: done, and some scans failed. Here one must.
if [[ $code != 3 ]]; then
    echo "demo: the run ended with $code, but a damaged scan among good ones ends with 3" >&2
    exit 1
fi

step 'What was found (sql/most_anomalous_scans.sql)'
neurosieve sql --tables demo/tables -f sql/most_anomalous_scans.sql

step 'What failed, and why (sql/failures_by_reason.sql)'
neurosieve sql --tables demo/tables -f sql/failures_by_reason.sql

step 'What to try next'
cat <<'NEXT'
The same command again: every scan is done already, so nothing is computed twice.
    cargo run --release -- run pipelines/demo.toml --cohort demo/cohort --tables demo/tables --set cohort.name=demo \
        --set model.bundle=demo/bundle
A question of your own:
    cargo run --release -- sql --tables demo/tables -c 'SELECT subject, anomaly_score FROM scans ORDER BY 2 DESC'
A cohort of your own: a folder, s3://, gs:// or az://. First see whether this machine is ready for it.
    cargo run --release -- doctor s3://bucket/cohort
NEXT
