-- Scans without a result, by reason. Permanent failures need a new file (too_large: a higher limit); later runs try the others
-- again.
SELECT stage, kind, permanent, count(*) AS scans, max(attempts) AS most_attempts, max(failed_at) AS last_failed_at,
    first_value(uri ORDER BY failed_at DESC) AS example_uri,
    first_value(message ORDER BY failed_at DESC) AS example_message
FROM failures
GROUP BY stage, kind, permanent
ORDER BY scans DESC, stage, kind;
