-- Findings by region of the brain: their number, the number of scans, their volume.
-- If one side or one lobe dominates a whole cohort, the cause is more often a coil or the registration than a disease.
SELECT
    region,
    count(*) AS findings,
    count(DISTINCT scan_id) AS scans,
    round(sum(volume_ml), 2) AS total_ml,
    round(median(volume_ml), 2) AS median_ml,
    round(max(max_score), 3) AS highest_score
FROM findings
GROUP BY region
ORDER BY findings DESC, region;
