//! Views that compute: figures by subject and region, norms, change over years and drift over nights, against planted answers.

use neurosieve::query;
use neurosieve::tables::{ParticipantRow, Tables};
use serde_json::{Value, json};

use super::support::results::{DAY_ONE, commit, finished_with, open};

const DAY: i64 = 24 * 3_600_000_000;
const YEAR: i64 = 31_557_600_000_000;

fn participant(subject: &str, age_years: f32) -> ParticipantRow {
    ParticipantRow {
        cohort: "study".into(),
        subject: subject.into(),
        age_years: Some(age_years),
        sex: Some("F".into()),
        site: Some("Leeds".into()),
        group: None,
        more: Vec::new(),
        change_number: 0,
        recorded_at: DAY_ONE,
    }
}

/// The rows of a query.
async fn rows(tables: &Tables, sql: &str) -> Vec<Value> {
    let batches = query::session(tables).await.unwrap().sql(sql).await.unwrap().collect().await.unwrap();
    let mut json = arrow::json::ArrayWriter::new(Vec::new());
    json.write_batches(&batches.iter().collect::<Vec<_>>()).unwrap();
    json.finish().unwrap();
    let text = json.into_inner();
    if text.is_empty() { Vec::new() } else { serde_json::from_slice(&text).unwrap() }
}

fn near(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.), "{found} instead of {expected}");
}

/// Twenty women of their sixties, one scan each, with scores 0.01 to 0.19 and one of 0.9; another of 71, without a group.
async fn women(tables: &mut Tables) {
    let score = |n: i32| if n == 20 { 0.9 } else { 0.01 * f64::from(n) };
    let scan = |n: i32| finished_with("r1", &format!("p{n:02}"), DAY_ONE, score(n), &json!({"token_threshold": 0.5}));
    commit(tables, "r1", (1..=21).map(scan).collect()).await;
    let mut people: Vec<_> = (1..=20).map(|n| participant(&format!("p{n:02}"), 60. + (n % 10) as f32)).collect();
    people.push(participant("p21", 71.));
    people.push(participant("p22", 61.));
    assert_eq!(tables.record_participants("study", people, "m1").await.unwrap().new, 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_and_regions_have_scores_norms_and_corrected_percentiles() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    women(&mut tables).await;

    let subjects = rows(&tables, "SELECT * FROM subjects WHERE subject IN ('p20', 'p22') ORDER BY subject").await;
    assert_eq!(
        (&subjects[0]["n_scans"], &subjects[0]["top_scan_id"], &subjects[1]["n_scans"]),
        (&json!(1), &json!("p20"), &json!(0))
    );

    // Of a scan's four tokens, two are in each region; the highest has the scan's score.
    let scores = rows(&tables, "SELECT * FROM region_scores WHERE scan_id = 'p20' ORDER BY region").await;
    assert_eq!((scores.len(), &scores[0]["n_tokens"], &scores[0]["n_anomalous_tokens"]), (2, &json!(2), &json!(1)));
    near(&scores[0]["mean_p"], 0.45);
    near(&scores[1]["mean_p"], 0.675);

    // The median of 0.01 … 0.19 and 0.9 is 0.105, and half of the scans are within 0.05 of it; the left side has half of it.
    let norms = rows(&tables, "SELECT * FROM region_norms ORDER BY region").await;
    assert_eq!((norms.len(), &norms[0]["age_from"], &norms[0]["n_scans"]), (2, &json!(60), &json!(20)));
    near(&norms[0]["median_p"], 0.0525);
    near(&norms[0]["spread_p"], 1.4826 * 0.025);

    let found = rows(&tables, "SELECT * FROM region_percentiles WHERE scan_id = 'p20' ORDER BY region").await;
    near(&found[0]["z"], (0.45 - 0.0525) / (1.4826 * 0.025));
    assert_eq!((&found[0]["percentile"], found.len()), (&json!(100.0), 2));
    let (p, q) = (found[0]["p"].as_f64().unwrap(), found[0]["q"].as_f64().unwrap());
    // Both regions have the same z, so that the higher rank corrects by one.
    assert!(p < 1e-20 && q >= p && q <= 2. * p, "{p} {q}");
    let unusual = rows(&tables, "SELECT scan_id FROM region_percentiles WHERE q < 0.05 GROUP BY scan_id").await;
    assert_eq!(unusual, [json!({"scan_id": "p20"})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_is_per_year_and_a_night_is_compared_with_those_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let scan = |night: i64, n: i64, score: f64| {
        let acquired = DAY_ONE + if n == 0 { night * YEAR / 2 } else { 0 };
        let columns = json!({
            "subject": format!("p{n}"), "acquired_at": acquired, "brain_volume_ml": 1300.0 - 10.0 * night as f64,
            "manufacturer": "GE", "scanner_model": "M", "field_strength_t": 3.0
        });
        finished_with("r1", &format!("s{night}-{n}"), DAY_ONE + night * DAY, score, &columns)
    };
    // Two nights of three scans: 0.1, 0.2, 0.3, then 0.4, 0.5, 0.6.
    let scans = (0..2).flat_map(|night| (0..3).map(move |n| (night, n)));
    commit(&mut tables, "r1", scans.map(|(night, n)| scan(night, n, 0.1 * (1 + 3 * night + n) as f64)).collect()).await;

    let change = rows(&tables, "SELECT * FROM longitudinal WHERE subject = 'p0'").await;
    assert_eq!(
        (change.len(), &change[0]["previous_scan_id"], &change[0]["same_scanner"]),
        (1, &json!("s0-0"), &json!(true))
    );
    near(&change[0]["years"], 0.5);
    near(&change[0]["brain_volume_ml_per_year"], -20.0);
    near(&change[0]["anomaly_score_per_year"], 0.6);

    let drift = rows(&tables, "SELECT * FROM drift ORDER BY night").await;
    assert_eq!((drift.len(), &drift[0]["n_scans_before"], &drift[1]["n_scans_before"]), (2, &json!(0), &json!(3)));
    assert!(drift[0].get("anomaly_score_shift").is_none_or(Value::is_null));
    // The standard deviation of 0.1, 0.2, 0.3 is 0.1.
    near(&drift[1]["anomaly_score_shift"], 0.3 / (0.1 * (2.0f64 / 3.0).sqrt()));
    assert_eq!(drift[1]["scanner"], json!("GE M"));
}
