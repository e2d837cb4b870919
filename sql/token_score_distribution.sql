-- Distribution of the detector's probability over all tokens, in ten equal bins.
-- With a suitable model nearly all tokens are in the lowest bin. Many tokens in the middle bins mean that the cohort
-- differs from the scans that the model was trained on.
SELECT
    least(floor(p_anomalous * 10), 9) / 10 AS p_from,
    count(*) AS tokens,
    round(100.0 * count(*) / sum(count(*)) OVER (), 3) AS percent,
    count(DISTINCT scan_id) AS scans
FROM tokens
GROUP BY least(floor(p_anomalous * 10), 9) / 10
ORDER BY p_from;
