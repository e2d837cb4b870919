-- Scans that have results of other recipes only, so that the views do not show them: the newest result of each. The next
-- run of the current recipe screens those that are still in the cohort.
SELECT o.cohort, o.scan_id, o.recipe_id, o.bundle, o.version, o.finished_at, round(o.anomaly_score, 4) AS anomaly_score
FROM raw.scans o
WHERE NOT EXISTS (SELECT 1 FROM scans s WHERE s.scan_id = o.scan_id)
QUALIFY row_number() OVER (PARTITION BY o.scan_id ORDER BY o.run_number DESC NULLS LAST, o.finished_at DESC) = 1
ORDER BY o.cohort, o.scan_id;
