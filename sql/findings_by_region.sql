-- Findings by region of the brain: how many, in how many scans, how large.
-- A strong lean to one side or to one lobe over a whole cohort is more often a coil or a registration than a disease.
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
