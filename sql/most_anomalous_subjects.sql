-- The twenty subjects to review first, by their most unusual scan, with its largest finding.
SELECT b.cohort, b.subject, b.age_years, b.sex, b.n_scans, round(b.max_anomaly_score, 4) AS highest_anomaly_score,
    b.top_scan_id, f.region AS largest_finding_region, round(f.volume_ml, 2) AS largest_finding_ml,
    round(f.max_score, 3) AS highest_finding_score
FROM subjects b JOIN scans s ON s.scan_id = b.top_scan_id
LEFT JOIN findings f ON f.run_id = s.run_id AND f.scan_id = s.scan_id AND f.finding = 1
ORDER BY b.max_anomaly_score DESC, b.cohort, b.subject
LIMIT 20;
