-- Quality flags, with the scores of the scans that have them. If flagged scans score far above the median of all
-- scans, the flagged problem probably causes anomalies of its own.
SELECT flag, count(*) AS scans, round(median(anomaly_score), 4) AS median_anomaly_score,
    round((SELECT median(anomaly_score) FROM scans), 4) AS median_of_all_scans, round(median(snr), 1) AS median_snr
FROM (SELECT unnest(qc_flags) AS flag, anomaly_score, snr FROM scans)
GROUP BY flag
ORDER BY scans DESC, flag;
