-- One row per cohort: scans, brain volume, scores, and how many scans have findings, quality flags or failures.
-- A median brain volume far from 1000 to 1500 ml, or many flagged scans, point to a problem of the whole cohort.
WITH failed AS (SELECT cohort, count(*) AS n FROM failures GROUP BY cohort)
SELECT coalesce(s.cohort, f.cohort) AS cohort, count(s.scan_id) AS scans, count(DISTINCT s.subject) AS subjects,
    round(median(s.brain_volume_ml), 1) AS median_brain_ml, round(median(s.anomaly_score), 4) AS median_anomaly_score,
    count(*) FILTER (WHERE s.n_findings > 0) AS scans_with_findings,
    count(*) FILTER (WHERE cardinality(s.qc_flags) > 0) AS scans_flagged,
    coalesce(max(f.n), 0) AS scans_failed
FROM scans s FULL JOIN failed f ON f.cohort = s.cohort
GROUP BY coalesce(s.cohort, f.cohort)
ORDER BY 1;
