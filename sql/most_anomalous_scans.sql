-- The twenty scans to review first, each with its largest finding and the finding's position (MNI mm).
-- A scan can rank high without a finding, when no component above the threshold is large enough.
SELECT row_number() OVER (ORDER BY s.anomaly_score DESC, s.scan_id) AS rank, s.scan_id, s.uri,
    round(s.anomaly_score, 4) AS anomaly_score, round(s.anomaly_volume_ml, 2) AS anomaly_volume_ml, s.n_findings,
    f.region AS largest_finding_region, round(f.volume_ml, 2) AS largest_finding_ml, round(f.mni_x_mm) AS mni_x_mm,
    round(f.mni_y_mm) AS mni_y_mm, round(f.mni_z_mm) AS mni_z_mm, array_to_string(s.qc_flags, ', ') AS qc_flags
FROM scans s LEFT JOIN findings f ON f.run_id = s.run_id AND f.scan_id = s.scan_id AND f.finding = 1
ORDER BY rank
LIMIT 20;
