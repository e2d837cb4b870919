//! The ready queries of `sql/` answer the questions of an analyst: each against a study whose answers are planted.

use std::path::Path;

use neurosieve::query;
use neurosieve::tables::{ParticipantRow, RunRow, Tables};
use serde_json::{Value, json};

use super::support::results::{DAY_ONE, MINUTE, commit, failed, finished_with, open, run_row, write};
use super::support::root;

const DAY: i64 = 24 * 60 * MINUTE;
const YEAR: i64 = 31_557_600_000_000;
const WOMEN: i32 = 100;

/// The score of a woman's scan: 0.004 to 0.400, and 0.9 of the last one.
fn score(n: i32) -> f64 {
    if n == WOMEN { 0.9 } else { 0.004 * f64::from(n) }
}

fn brain_ml(n: i32) -> f64 {
    1300.0 + f64::from(n)
}

fn participant(subject: &str, age_years: f32, sex: &str, site: &str) -> ParticipantRow {
    ParticipantRow {
        cohort: "study".into(),
        subject: subject.into(),
        age_years: Some(age_years),
        sex: Some(sex.into()),
        site: Some(site.into()),
        group: None,
        more: Vec::new(),
        change_number: 0,
        recorded_at: DAY_ONE,
    }
}

/// A woman's scan. The first fifty were scanned at 1.5 T and screened in the first night, the others at 3 T in the second.
/// Every tenth has little signal.
fn woman(n: i32) -> (String, Value) {
    let early = n <= WOMEN / 2;
    let columns = json!({
        "manufacturer": "GE", "scanner_model": "Signa", "field_strength_t": if early { 1.5 } else { 3.0 },
        "brain_volume_ml": brain_ml(n), "qc_flags": if n % 10 == 0 { vec!["low_snr"] } else { vec![] },
        "finished_at": DAY_ONE + DAY / 2 + if early { MINUTE } else { DAY }, "token_threshold": 0.3
    });
    (format!("w{n:03}"), columns)
}

/// The two scans of one man, two years apart, and what an earlier recipe left.
fn man(visit: i64) -> (String, Value) {
    let columns = json!({
        "subject": "m1", "session": format!("{visit}"), "acquired_at": DAY_ONE + visit * 2 * YEAR,
        "brain_volume_ml": 1400.0 - 30.0 * visit as f64, "manufacturer": "Siemens", "scanner_model": "Prisma",
        "field_strength_t": 3.0, "finished_at": DAY_ONE + DAY / 2, "n_findings": visit, "token_threshold": 0.3
    });
    (format!("m1-{visit}"), columns)
}

/// A hundred women of their sixties with one scan each; a man of 45 with two; two subjects without a scan, one of whom has a
/// failure; and two scans of an earlier recipe, one of which the current recipe has screened as well.
async fn study(folder: &Path) -> Tables {
    let mut tables = open(folder).await;
    let mut earlier = RunRow { recipe_id: "earlier".into(), ..run_row("r1", None, 0) };
    tables.begin_run(&mut earlier).await.unwrap();
    let before = [("w001", 0.7), ("gone", 0.2)].map(|(scan, score)| {
        finished_with("r1", scan, DAY_ONE, score, &json!({"recipe_id": "earlier", "version": "0.0.9"}))
    });
    let receipts = write(tables.location(), vec![before.to_vec()], 64).await;
    tables.commit("r1", 0, &receipts).await.unwrap();

    let mut tables = open(folder).await;
    let row = |(scan, columns): (String, Value), score: f64| finished_with("r2", &scan, DAY_ONE, score, &columns);
    let mut scans: Vec<_> = (1..=WOMEN).map(|n| row(woman(n), score(n))).collect();
    scans.extend([row(man(0), 0.1), row(man(1), 0.3)]);
    scans.extend(
        ["truncated", "truncated", "storage"]
            .iter()
            .zip(["x1", "x2", "x3"])
            .map(|(kind, scan)| failed("r2", scan, DAY_ONE, kind, 1)),
    );
    commit(&mut tables, "r2", scans).await;
    tables.end_run(&RunRow { n_failed: 3, ..run_row("r2", Some(DAY_ONE + 30 * MINUTE), 102) }).await.unwrap();

    let site = |n: i32| if n <= WOMEN / 4 { "Leeds" } else { "York" };
    let mut people: Vec<_> =
        (1..=WOMEN).map(|n| participant(&woman(n).0, 60.0 + (n % 10) as f32, "F", site(n))).collect();
    people.push(participant("m1", 45.0, "M", "York"));
    people.extend([participant("x1", 30.0, "M", "Leeds"), participant("none", 31.0, "F", "York")]);
    tables.record_participants("study", people, "m1").await.unwrap();
    tables
}

/// The rows that a ready query gives.
async fn answer(tables: &Tables, question: &str) -> Vec<Value> {
    let sql = std::fs::read_to_string(root().join("sql").join(format!("{question}.sql"))).unwrap();
    let batches = query::session(tables).await.unwrap().sql(&sql).await.unwrap().collect().await.unwrap();
    let mut json = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    json.write_batches(&batches.iter().collect::<Vec<_>>()).unwrap();
    json.finish().unwrap();
    serde_json::from_slice(&json.into_inner()).unwrap_or_default()
}

/// The columns of each row, in the order of `names`.
fn columns<const N: usize>(rows: &[Value], names: [&str; N]) -> Vec<[Value; N]> {
    let value = |row: &Value, name| row.get(name).unwrap_or_else(|| panic!("no column {name} in {row}")).clone();
    rows.iter().map(|row| names.map(|name| value(row, name))).collect()
}

fn near(found: &Value, expected: f64, within: f64) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{found} instead of {expected}"));
    assert!((found - expected).abs() <= within, "{found} instead of {expected}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0))
}

#[test]
fn every_ready_query_is_one_statement_of_at_most_ten_lines() {
    let mut found = 0;
    for entry in std::fs::read_dir(root().join("sql")).unwrap() {
        let path = entry.unwrap().path();
        let sql = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = sql.lines().filter(|line| !line.starts_with("--")).collect();
        assert!(lines.len() <= 10 && lines.iter().all(|line| line.len() <= 120), "{}", path.display());
        assert_eq!(lines.concat().matches(';').count(), 1, "{}", path.display());
        found += 1;
    }
    assert!(found >= 14, "{found} queries");
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_and_subjects_that_stand_out_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let tables = study(folder.path()).await;

    // Of 102 scores the 99th percentile lies 0.99 of the way from the 100th to the 101st: 0.99 * 101 = 99.99.
    let rows = answer(&tables, "above_99th_percentile").await;
    assert_eq!(
        columns(&rows, ["scan_id", "qc_flags"]),
        [[json!("w100"), json!("low_snr")], [json!("w099"), json!("")]]
    );
    near(&rows[0]["p99"], 0.392 + 0.99 * (0.396 - 0.392), 1e-4);

    let rows = answer(&tables, "most_anomalous_subjects").await;
    let found = columns(&rows, ["subject", "top_scan_id", "n_scans", "sex", "largest_finding_region"]);
    assert_eq!(rows.len(), 20);
    assert_eq!(found[0], [json!("w100"), json!("w100"), json!(1), json!("F"), json!("right parietal lobe")]);
    assert_eq!(found[1][0], json!("w099"));
    near(&rows[0]["largest_finding_ml"], 9.0, 1e-4);

    let rows = answer(&tables, "most_anomalous_scans").await;
    assert_eq!((rows.len(), &rows[0]["scan_id"], &rows[19]["scan_id"]), (20, &json!("w100"), &json!("w081")));
    let rows = answer(&tables, "older_recipe").await;
    assert_eq!(
        columns(&rows, ["scan_id", "recipe_id", "version"]),
        [[json!("gone"), json!("earlier"), json!("0.0.9")]]
    );
    let rows = answer(&tables, "subjects_without_scan").await;
    assert_eq!(columns(&rows, ["subject", "site"]), [[json!("none"), json!("York")], [json!("x1"), json!("Leeds")]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_have_their_figures() {
    let folder = tempfile::tempdir().unwrap();
    let tables = study(folder.path()).await;
    let of_women = |range: std::ops::RangeInclusive<i32>| median(range.map(score).collect());

    let rows = answer(&tables, "by_age_and_sex").await;
    let found = columns(&rows, ["sex", "age_from", "scans", "subjects", "percent_with_findings"]);
    let expected = [
        [json!("F"), json!(60), json!(100), json!(100), json!(100.0)],
        [json!("M"), json!(40), json!(2), json!(1), json!(50.0)],
    ];
    assert_eq!(found, expected);
    near(&rows[0]["median_anomaly_score"], of_women(1..=WOMEN), 1e-4);
    near(&rows[0]["median_brain_ml"], median((1..=WOMEN).map(brain_ml).collect()), 1e-4);

    let rows = answer(&tables, "by_scanner").await;
    let found = columns(&rows, ["scanner_model", "field_strength_t", "scans", "scans_flagged"]);
    let expected = [("Signa", 1.5, 50, 5), ("Signa", 3.0, 50, 5), ("Prisma", 3.0, 2, 0)];
    assert_eq!(found, expected.map(|(model, t, n, flagged)| [json!(model), json!(t), json!(n), json!(flagged)]));
    near(&rows[0]["median_anomaly_score"], of_women(1..=50), 1e-4);
    near(&rows[1]["median_anomaly_score"], of_women(51..=100), 1e-4);

    // Flags at 10, 20 (Leeds, of 25 scans), and 30 to 100 (York, of 75 and the man's two).
    let rows = answer(&tables, "qc_flags_by_site").await;
    let found = columns(&rows, ["site", "flag", "scans", "percent_of_site"]);
    let expected = [("York", 8, 10.4), ("Leeds", 2, 8.0)];
    assert_eq!(found, expected.map(|(site, n, percent)| [json!(site), json!("low_snr"), json!(n), json!(percent)]));

    let rows = answer(&tables, "qc_flags").await;
    assert_eq!(columns(&rows, ["flag", "scans"]), [[json!("low_snr"), json!(10)]]);
    near(&rows[0]["median_anomaly_score"], median((1..=10).map(|n| score(10 * n)).collect()), 1e-4);

    let overview = answer(&tables, "cohort_overview").await;
    let found = columns(&overview, ["scans", "subjects", "scans_with_findings", "scans_flagged", "scans_failed"]);
    assert_eq!(found, [[102, 101, 101, 10, 3].map(|n| json!(n))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_regions_and_nights_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let tables = study(folder.path()).await;

    let rows = answer(&tables, "change_per_year").await;
    let found =
        columns(&rows, ["subject", "scan_id", "previous_scan_id", "same_scanner", "years", "brain_ml_per_year"]);
    assert_eq!(found, [[json!("m1"), json!("m1-1"), json!("m1-0"), json!(true), json!(2.0), json!(-15.0)]]);
    near(&rows[0]["anomaly_score_per_year"], 0.1, 1e-4);

    // The left side has a quarter and three quarters of a scan's score; the right side a half and all of it.
    let rows = answer(&tables, "region_percentiles").await;
    let (left, right) = (0.5, 0.75);
    let found = columns(&rows, ["scan_id", "region", "percentile", "sex", "age_from", "scans_of_group"]);
    for row in &found {
        assert_eq!((&row[0], &row[2]), (&json!("w100"), &json!(100.0)));
        assert_eq!(row[3..], [json!("F"), json!(60), json!(100)]);
    }
    let middle = median((1..=WOMEN).map(score).collect());
    let spread = 1.4826 * median((1..=WOMEN).map(|n| (score(n) - middle).abs()).collect());
    for (row, share) in rows.iter().map(|row| (row, if row["region"] == "left parietal lobe" { left } else { right })) {
        near(&row["mean_p"], share * 0.9, 1e-4);
        near(&row["z"], (0.9 - middle) / spread, 0.011);
    }
    assert_eq!(rows.len(), 2);

    // York's first night at the Signa has the scores of 26 to 50, its second those of 51 to 100.
    let rows = answer(&tables, "drift_by_night").await;
    let found = columns(&rows, ["night", "site", "scanner", "n_scans", "n_scans_before"]);
    assert_eq!(found, [[json!("2026-01-02"), json!("York"), json!("GE Signa"), json!(50), json!(25)]]);
    for (column, figure) in [("anomaly_score_shift", score as fn(i32) -> f64), ("brain_volume_shift", brain_ml)] {
        let (before, variance) = mean_and_variance(&(26..=50).map(figure).collect::<Vec<_>>());
        let (night, _) = mean_and_variance(&(51..=100).map(figure).collect::<Vec<_>>());
        near(&rows[0][column], (night - before) / (variance * (1.0 / 50.0 + 1.0 / 25.0)).sqrt(), 0.02);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_findings_tokens_and_runs_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let tables = study(folder.path()).await;

    let rows = answer(&tables, "failures_by_reason").await;
    let found = columns(&rows, ["kind", "permanent", "scans"]);
    assert_eq!(found, [[json!("truncated"), json!(true), json!(2)], [json!("storage"), json!(false), json!(1)]]);

    // Each scan has a finding of ten times its score.
    let scores: Vec<_> = (1..=WOMEN).map(score).chain([0.1, 0.3]).collect();
    let rows = answer(&tables, "findings_by_region").await;
    assert_eq!(
        columns(&rows, ["region", "findings", "scans"]),
        [[json!("right parietal lobe"), json!(102), json!(102)]]
    );
    near(&rows[0]["total_ml"], 10.0 * scores.iter().sum::<f64>(), 0.01);

    let rows = answer(&tables, "token_score_distribution").await;
    let mut bins = [0; 10];
    for p in scores.iter().flat_map(|score| [0.25, 0.5, 0.75, 1.0].map(|share| share * score)) {
        // The tables hold 32 bits, and so does the product.
        bins[((p as f32 * 10.0) as usize).min(9)] += 1;
    }
    let expected = bins.iter().enumerate().filter(|(_, n)| **n > 0);
    assert_eq!(
        columns(&rows, ["p_from", "tokens"]),
        expected.map(|(bin, n)| [json!(bin as f64 / 10.0), json!(n)]).collect::<Vec<_>>()
    );

    let rows = answer(&tables, "run_throughput").await;
    let found = columns(&rows, ["run_id", "status", "n_done", "n_failed", "percent_failed", "minutes"]);
    assert_eq!(found[0], [json!("r2"), json!("finished"), json!(102), json!(3), json!(2.86), json!(30.0)]);
    assert_eq!((found.len(), &found[1][1]), (2, &json!("running")));
}
