-- Regions of one scan against women or men of its age in the cohort: here the scan with the most unusual region. For
-- another one write `WHERE scan_id = 'study/sub-0042_T1w'`. q is corrected for the number of regions.
SELECT scan_id, region, round(mean_p, 4) AS mean_p, round(z, 2) AS z, round(percentile, 1) AS percentile, q, sex,
    age_from, n_scans AS scans_of_group
FROM region_percentiles
WHERE scan_id = (SELECT scan_id FROM region_percentiles ORDER BY z DESC NULLS LAST, scan_id LIMIT 1)
ORDER BY z DESC NULLS LAST, region;
