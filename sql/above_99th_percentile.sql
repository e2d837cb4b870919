-- Scans above the 99th percentile of the anomaly scores of their cohort. The limit is a figure of the cohort, not a
-- diagnosis: in each cohort of a hundred scans one lies above it.
SELECT s.cohort, s.scan_id, s.subject, round(s.anomaly_score, 4) AS score, round(c.p99, 4) AS p99, s.n_findings,
    array_to_string(s.qc_flags, ', ') AS qc_flags
FROM scans s
JOIN (SELECT cohort, percentile_cont(0.99) WITHIN GROUP (ORDER BY anomaly_score) AS p99 FROM scans GROUP BY cohort) c
    ON c.cohort = s.cohort
WHERE s.anomaly_score > c.p99
ORDER BY s.cohort, s.anomaly_score DESC, s.scan_id;
