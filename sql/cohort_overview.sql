-- One row per cohort: scans, brain volume, scores, and how many scans have findings, quality flags or failures.
-- A median brain volume far from 1000 to 1500 ml, or many flagged scans, point to a problem of the whole cohort.
WITH screened AS (
    SELECT
        cohort,
        count(*) AS scans,
        count(DISTINCT subject) AS subjects,
        round(median(brain_volume_ml), 1) AS median_brain_ml,
        round(median(anomaly_score), 4) AS median_anomaly_score,
        sum(CASE WHEN n_findings > 0 THEN 1 ELSE 0 END) AS scans_with_findings,
        sum(CASE WHEN cardinality(qc_flags) > 0 THEN 1 ELSE 0 END) AS scans_flagged
    FROM scans
    GROUP BY cohort
),
failed AS (
    SELECT cohort, count(*) AS scans_failed
    FROM failures
    GROUP BY cohort
)
SELECT
    coalesce(s.cohort, f.cohort) AS cohort,
    coalesce(s.scans, 0) AS scans,
    coalesce(s.subjects, 0) AS subjects,
    s.median_brain_ml,
    s.median_anomaly_score,
    coalesce(s.scans_with_findings, 0) AS scans_with_findings,
    coalesce(s.scans_flagged, 0) AS scans_flagged,
    coalesce(f.scans_failed, 0) AS scans_failed
FROM screened s
FULL JOIN failed f ON f.cohort = s.cohort
ORDER BY cohort;
