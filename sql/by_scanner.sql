-- Scores and quality by scanner and field strength. A scanner whose scans score far above the others differs from those
-- that the model was trained on: compare its scans with each other only. Null where no sidecar names the scanner.
SELECT cohort, manufacturer, scanner_model, field_strength_t, count(*) AS scans,
    round(median(anomaly_score), 4) AS median_anomaly_score, round(median(anomaly_volume_ml), 2) AS median_anomaly_ml,
    round(median(snr), 1) AS median_snr, round(median(registration_ncc), 3) AS median_registration_ncc,
    count(*) FILTER (WHERE cardinality(qc_flags) > 0) AS scans_flagged
FROM scans
GROUP BY cohort, manufacturer, scanner_model, field_strength_t
ORDER BY cohort, manufacturer, scanner_model, field_strength_t;
