-- Runs, newest first, with their counts and throughput. A run without an end is still active or was killed; the
-- next run continues where it stopped. A run that failed says why.
SELECT run_id, cohort, status, started_at,
    round(CAST(to_unixtime(finished_at) - to_unixtime(started_at) AS DOUBLE) / 60, 1) AS minutes, n_done, n_failed,
    round(100.0 * n_failed / nullif(n_done + n_failed, 0), 2) AS percent_failed,
    round(scans_per_minute, 1) AS scans_per_minute, device, cores, version, message
FROM runs
ORDER BY started_at DESC, run_id DESC;
