-- Nights whose scans differ from those of the 28 nights before, by site and scanner, in standard errors. Beyond about 4,
-- look for a change of the protocol, the coil or the scanner's software.
SELECT night, cohort, site, scanner, n_scans, n_scans_before, round(anomaly_score_shift, 2) AS anomaly_score_shift,
    round(brain_volume_shift, 2) AS brain_volume_shift, round(snr_shift, 2) AS snr_shift
FROM drift
WHERE n_scans_before > 1
ORDER BY greatest(abs(anomaly_score_shift), abs(brain_volume_shift), abs(snr_shift)) DESC NULLS LAST,
    night, site, scanner;
