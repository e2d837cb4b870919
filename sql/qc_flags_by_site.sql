-- Quality flags by site, with their share of the site's scans. Where one site has most of a flag, the cause is there.
WITH placed AS (
    SELECT s.cohort, p.site, s.qc_flags, count(*) OVER (PARTITION BY s.cohort, p.site) AS of_site
    FROM scans s LEFT JOIN participants p ON p.cohort = s.cohort AND p.subject = s.subject
), flagged AS (SELECT cohort, site, of_site, unnest(qc_flags) AS flag FROM placed)
SELECT cohort, site, flag, count(*) AS scans, round(100.0 * count(*) / of_site, 1) AS percent_of_site
FROM flagged
GROUP BY cohort, site, flag, of_site
ORDER BY cohort, percent_of_site DESC, site, flag;
