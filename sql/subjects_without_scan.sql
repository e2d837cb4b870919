-- Subjects of participants.tsv without a result: not in the cohort, left out by the selection, or failed.
SELECT cohort, subject, age_years, sex, site, "group"
FROM subjects
WHERE n_scans = 0
ORDER BY cohort, subject;
