//! Views that compute: figures by subject and region, norms of the cohort, change over years, drift over nights.
//!
//! ```text
//! scans, participants ─► subjects                    tokens ─► region_scores ─► region_norms, region_percentiles
//! scans               ─► longitudinal, drift
//! ```
//! All build on the public views, so each cohort is shown with one recipe. A norm is that of a cohort: scores of two recipes or
//! sites have different levels. It is robust, because a few scans of each group have lesions: median, and median distance from
//! it times 1.4826, which is the standard deviation of a normal distribution.

use super::view::View;

pub(super) const SUBJECTS: View = View {
    name: "subjects",
    doc: "one row per subject with a result or metadata: age, sex, site, group, number of scans, and the most unusual scan",
    sql: "SELECT coalesce(s.cohort, p.cohort) AS cohort, coalesce(s.subject, p.subject) AS subject,
              p.age_years, p.sex, p.site, p.\"group\", p.more, coalesce(s.n_scans, 0) AS n_scans,
              coalesce(s.n_sessions, 0) AS n_sessions, coalesce(s.n_with_findings, 0) AS n_with_findings,
              coalesce(s.n_flagged, 0) AS n_flagged, s.max_anomaly_score, s.top_scan_id, s.first_acquired_at, s.last_acquired_at
          FROM (
              SELECT cohort, subject, count(*) AS n_scans, count(DISTINCT session) AS n_sessions,
                  count(*) FILTER (WHERE n_findings > 0) AS n_with_findings,
                  count(*) FILTER (WHERE cardinality(qc_flags) > 0) AS n_flagged,
                  max(anomaly_score) AS max_anomaly_score,
                  first_value(scan_id ORDER BY anomaly_score DESC, scan_id) AS top_scan_id,
                  min(acquired_at) AS first_acquired_at, max(acquired_at) AS last_acquired_at
              FROM scans WHERE subject IS NOT NULL GROUP BY cohort, subject
          ) s
          FULL JOIN participants p ON p.cohort = s.cohort AND p.subject = s.subject",
    needs: None,
};

pub(super) const REGION_SCORES: View = View {
    name: "region_scores",
    doc: "one row per scan and region: its tokens, and mean_p, the mean of their p_anomalous; region outside: beyond all regions",
    sql: "SELECT s.cohort, s.run_id, s.scan_id, s.subject, s.session, t.region, count(*) AS n_tokens,
              sum(CAST(t.p_anomalous > s.token_threshold AS INT)) AS n_anomalous_tokens, avg(t.p_anomalous) AS mean_p,
              max(t.p_anomalous) AS max_p, avg(t.residual) AS mean_residual
          FROM raw.tokens t JOIN scans s ON s.run_id = t.run_id AND s.scan_id = t.scan_id
          GROUP BY s.cohort, s.run_id, s.scan_id, s.subject, s.session, t.region",
    needs: None,
};

pub(super) const REGION_NORMS: View = View {
    name: "region_norms",
    doc: "mean_p by region, sex and ten years of age within a cohort, of groups of at least 20 scans: median and spread",
    sql: "WITH grouped AS (
              SELECT r.cohort, r.region, p.sex, CAST(floor(p.age_years / 10) * 10 AS INT) AS age_from, r.subject, r.mean_p,
                  median(r.mean_p) OVER (PARTITION BY r.cohort, r.region, p.sex, floor(p.age_years / 10)) AS middle
              FROM region_scores r JOIN participants p ON p.cohort = r.cohort AND p.subject = r.subject
              WHERE p.sex IS NOT NULL AND p.age_years IS NOT NULL
          )
          SELECT cohort, region, sex, age_from, age_from + 10 AS age_below, count(*) AS n_scans,
              count(DISTINCT subject) AS n_subjects, median(mean_p) AS median_p, 1.4826 * median(abs(mean_p - middle)) AS spread_p
          FROM grouped GROUP BY cohort, region, sex, age_from HAVING count(*) >= 20",
    needs: None,
};

// The upper tail of the normal distribution by formula 26.2.17 of Abramowitz and Stegun, within 7.5e-8. By Benjamini and
// Hochberg, over the regions of a scan.
pub(super) const REGION_PERCENTILES: View = View {
    name: "region_percentiles",
    doc: "one row per scan and region with a norm: z, percentile in its group, one-sided p of z, and q of Benjamini and Hochberg",
    sql: "WITH measured AS (
              SELECT r.cohort, r.run_id, r.scan_id, r.subject, r.session, r.region, p.sex, n.age_from, n.n_scans, r.mean_p,
                  (r.mean_p - n.median_p) / nullif(n.spread_p, 0) AS z,
                  100 * percent_rank() OVER (PARTITION BY r.cohort, r.region, p.sex, n.age_from ORDER BY r.mean_p) AS percentile
              FROM region_scores r
              JOIN participants p ON p.cohort = r.cohort AND p.subject = r.subject
              JOIN region_norms n ON n.cohort = r.cohort AND n.region = r.region AND n.sex = p.sex
                  AND n.age_from = CAST(floor(p.age_years / 10) * 10 AS INT)
          ),
          tails AS (SELECT *, 1 / (1 + 0.2316419 * abs(z)) AS t FROM measured),
          upper AS (
              SELECT *, 0.3989422804 * exp(-z * z / 2) * t
                  * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))) AS tail
              FROM tails
          ),
          tested AS (SELECT *, CASE WHEN z < 0 THEN 1 - tail ELSE tail END AS p FROM upper),
          ranked AS (
              SELECT *, row_number() OVER (PARTITION BY run_id, scan_id ORDER BY p NULLS LAST, region) AS place,
                  count(p) OVER (PARTITION BY run_id, scan_id) AS n_tests
              FROM tested
          )
          SELECT cohort, run_id, scan_id, subject, session, region, sex, age_from, n_scans, mean_p, z, percentile, p,
              CASE WHEN p IS NOT NULL THEN least(1, min(p * n_tests / place) OVER (
                  PARTITION BY run_id, scan_id ORDER BY place DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
              )) END AS q
          FROM ranked",
    needs: None,
};

pub(super) const LONGITUDINAL: View = View {
    name: "longitudinal",
    doc: "one row per scan of a subject with an earlier acquired one of the same suffix: years between them, and change per year",
    sql: "WITH followed AS (
              SELECT cohort, subject, session, suffix, scan_id, acquired_at, brain_volume_ml, anomaly_score, anomaly_volume_ml,
                  manufacturer, scanner_model, field_strength_t,
                  lag(scan_id) OVER earlier AS previous_scan_id, lag(acquired_at) OVER earlier AS previous_acquired_at,
                  lag(brain_volume_ml) OVER earlier AS previous_brain, lag(anomaly_score) OVER earlier AS previous_score,
                  lag(anomaly_volume_ml) OVER earlier AS previous_volume,
                  lag(manufacturer) OVER earlier AS previous_manufacturer, lag(scanner_model) OVER earlier AS previous_model,
                  lag(field_strength_t) OVER earlier AS previous_strength
              FROM scans WHERE subject IS NOT NULL AND acquired_at IS NOT NULL
              WINDOW earlier AS (PARTITION BY cohort, subject, suffix ORDER BY acquired_at, scan_id)
          ),
          timed AS (
              SELECT *, (date_part('epoch', acquired_at) - date_part('epoch', previous_acquired_at)) / 31557600 AS years
              FROM followed WHERE previous_scan_id IS NOT NULL
          )
          SELECT cohort, subject, session, suffix, scan_id, previous_scan_id, acquired_at, previous_acquired_at, years,
              manufacturer = previous_manufacturer AND scanner_model = previous_model
                  AND field_strength_t = previous_strength AS same_scanner,
              (brain_volume_ml - previous_brain) / nullif(years, 0) AS brain_volume_ml_per_year,
              (anomaly_volume_ml - previous_volume) / nullif(years, 0) AS anomaly_volume_ml_per_year,
              (anomaly_score - previous_score) / nullif(years, 0) AS anomaly_score_per_year
          FROM timed",
    needs: None,
};

// A night is from noon to noon, UTC.
pub(super) const DRIFT: View = View {
    name: "drift",
    doc: "one row per night, cohort, site and scanner: means of its scans, and their shift from the 28 nights before in standard errors",
    sql: "WITH nights AS (
              SELECT s.cohort, CAST(s.finished_at - INTERVAL '12 hours' AS DATE) AS night, coalesce(p.site, '') AS site,
                  coalesce(s.manufacturer, '') || ' ' || coalesce(s.scanner_model, '') AS scanner, count(*) AS n,
                  sum(CAST(s.anomaly_score AS DOUBLE)) AS score, sum(power(CAST(s.anomaly_score AS DOUBLE), 2)) AS score2,
                  sum(CAST(s.brain_volume_ml AS DOUBLE)) AS brain, sum(power(CAST(s.brain_volume_ml AS DOUBLE), 2)) AS brain2,
                  sum(CAST(s.snr AS DOUBLE)) AS snr, sum(power(CAST(s.snr AS DOUBLE), 2)) AS snr2
              FROM scans s LEFT JOIN participants p ON p.cohort = s.cohort AND p.subject = s.subject
              GROUP BY 1, 2, 3, 4
          ),
          compared AS (
              SELECT n.cohort, n.night, n.site, n.scanner, n.n, n.score / n.n AS score, n.brain / n.n AS brain, n.snr / n.n AS snr,
                  sum(b.n) AS m, sum(b.score) / sum(b.n) AS b_score, sum(b.brain) / sum(b.n) AS b_brain,
                  sum(b.snr) / sum(b.n) AS b_snr, sum(b.score2) AS score2, sum(b.brain2) AS brain2, sum(b.snr2) AS snr2
              FROM nights n LEFT JOIN nights b ON b.cohort = n.cohort AND b.site = n.site AND b.scanner = n.scanner
                  AND b.night < n.night AND b.night >= n.night - INTERVAL '28 days'
              GROUP BY n.cohort, n.night, n.site, n.scanner, n.n, n.score, n.brain, n.snr
          ),
          spread AS (
              SELECT *, 1.0 / n + 1.0 / m AS share, greatest(score2 - m * b_score * b_score, 0) / nullif(m - 1, 0) AS v_score,
                  greatest(brain2 - m * b_brain * b_brain, 0) / nullif(m - 1, 0) AS v_brain,
                  greatest(snr2 - m * b_snr * b_snr, 0) / nullif(m - 1, 0) AS v_snr
              FROM compared
          )
          SELECT cohort, night, nullif(site, '') AS site, nullif(trim(scanner), '') AS scanner, n AS n_scans,
              coalesce(m, 0) AS n_scans_before, score AS anomaly_score, (score - b_score) / nullif(sqrt(v_score * share), 0)
                  AS anomaly_score_shift,
              brain AS brain_volume_ml, (brain - b_brain) / nullif(sqrt(v_brain * share), 0) AS brain_volume_shift,
              snr, (snr - b_snr) / nullif(sqrt(v_snr * share), 0) AS snr_shift
          FROM spread",
    needs: None,
};
