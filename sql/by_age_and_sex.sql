-- Scores and brain volume by sex and ten years of age. Without metadata (`neurosieve tables metadata`) both are null.
SELECT s.cohort, p.sex, CAST(floor(p.age_years / 10) * 10 AS INT) AS age_from, count(*) AS scans,
    count(DISTINCT s.subject) AS subjects, round(median(s.anomaly_score), 4) AS median_anomaly_score,
    round(median(s.brain_volume_ml), 1) AS median_brain_ml,
    round(100.0 * count(*) FILTER (WHERE s.n_findings > 0) / count(*), 1) AS percent_with_findings
FROM scans s LEFT JOIN participants p ON p.cohort = s.cohort AND p.subject = s.subject
GROUP BY s.cohort, p.sex, CAST(floor(p.age_years / 10) * 10 AS INT)
ORDER BY s.cohort, p.sex, age_from;
