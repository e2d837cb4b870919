-- Change per year of subjects with several scans, the fastest loss of brain first. For one subject, add
-- `AND subject = '0042'`. A change between two scanners, or within weeks, says more of the scanner than of the person.
SELECT cohort, subject, scan_id, previous_scan_id, round(years, 2) AS years, same_scanner,
    round(brain_volume_ml_per_year, 1) AS brain_ml_per_year,
    round(anomaly_volume_ml_per_year, 2) AS anomaly_ml_per_year,
    round(anomaly_score_per_year, 4) AS anomaly_score_per_year
FROM longitudinal
WHERE years >= 0.25
ORDER BY brain_volume_ml_per_year, scan_id;
