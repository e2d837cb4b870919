//! The main job, driven through the real program: a synthetic cohort becomes tables, and a second run repeats nothing.

use std::path::Path;

use serde_json::Value;

use super::support::program::{number, ok, printed, rows, screening, text};
use super::support::root;
use super::support::shared::screened;

#[test]
fn a_run_with_a_damaged_scan_ends_as_done_with_failures() {
    let first = &screened().first;
    assert_eq!(first.status.code(), Some(3), "done with failures: {}", printed(first));
    assert!(text(&first.stdout).contains("2 scans done, 1 failed"), "{}", printed(first));
}

#[test]
fn explain_shows_times_and_counts_of_every_operator() {
    let plan = text(&screened().first.stdout);
    for word in ["ScreenExec", "WriteExec", "decode_time", "device_time", "preprocess_time", "scans_failed=1"] {
        assert!(plan.contains(word), "EXPLAIN ANALYZE lacks {word}: {plan}");
    }
}

/// Contract 1: every scan is one row in scans or in failures.
#[test]
fn every_scan_is_one_row_in_scans_or_in_failures() {
    let tables = &screened().tables;
    let scans = rows(
        tables,
        "SELECT scan_id, n_tokens, n_findings, brain_volume_ml, stripped_input FROM scans ORDER BY scan_id",
    );
    let ids: Vec<&str> = scans.iter().map(|scan| scan["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["study/sub-synth001_T1w", "study/sub-synth002_T1w", "study/sub-synth003_T1w"]);
    for scan in &scans {
        assert_eq!(scan["stripped_input"], false);
        let volume = scan["brain_volume_ml"].as_f64().unwrap();
        assert!((900. ..2000.).contains(&volume), "{volume} ml");
        assert!(scan["n_tokens"].as_i64().unwrap() > 5000);
    }
    let failures = rows(tables, "SELECT scan_id, stage, kind, permanent, attempts FROM failures");
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0]["scan_id"], "study/sub-synth004_T1w");
    assert_eq!((&failures[0]["stage"], &failures[0]["permanent"]), (&Value::from("decode"), &Value::from(true)));
}

#[test]
fn the_tables_of_a_scan_agree_with_each_other() {
    let scans = rows(
        &screened().tables,
        "SELECT s.scan_id, s.n_tokens, s.n_findings, s.max_token_p, \
           (SELECT max(p_anomalous) FROM tokens t WHERE t.scan_id = s.scan_id) AS highest_p, \
           (SELECT count(*) FROM tokens t WHERE t.scan_id = s.scan_id) AS tokens, \
           (SELECT count(*) FROM findings f WHERE f.scan_id = s.scan_id) AS findings, \
           (SELECT count(*) FROM masks m WHERE m.scan_id = s.scan_id) AS masks FROM scans s",
    );
    assert_eq!(scans.len(), 3);
    for scan in &scans {
        assert_eq!(scan["n_tokens"], scan["tokens"]);
        assert_eq!(scan["n_findings"].as_i64(), Some(scan["findings"].as_i64().unwrap_or(0)));
        assert_eq!(scan["masks"], 1);
        assert_eq!(scan["max_token_p"], scan["highest_p"]);
    }
}

/// Tokens are the bulk of the tables.
#[test]
fn a_token_takes_at_most_six_bytes_on_disk() {
    let tables = &screened().tables;
    let token_rows = number(tables, "SELECT count(*) AS n FROM raw.tokens");
    let token_bytes: u64 = std::fs::read_dir(Path::new(tables).join("tokens"))
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.path().extension().is_some_and(|e| e == "parquet"))
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(token_rows > 10_000 && token_bytes <= 6 * token_rows, "{token_bytes} bytes for {token_rows} rows");
}

#[test]
fn the_table_of_runs_has_a_row_for_each_run_in_their_order() {
    let runs = rows(&screened().tables, "SELECT status, n_done, n_failed, n_selected FROM runs ORDER BY run_number");
    let expected = [("finished", 2, 1, 3), ("finished", 0, 0, 3), ("finished", 1, 0, 4)];
    assert_eq!(runs.len(), expected.len(), "{runs:?}");
    for (run, (status, n_done, n_failed, n_selected)) in runs.iter().zip(expected) {
        assert_eq!((&run["status"], &run["n_done"]), (&status.into(), &n_done.into()));
        assert_eq!((&run["n_failed"], &run["n_selected"]), (&n_failed.into(), &n_selected.into()));
    }
}

#[test]
fn a_run_again_has_nothing_to_do_and_leaves_the_damaged_scan_alone() {
    let idle = &screened().idle;
    assert!(idle.status.code() == Some(3) && text(&idle.stdout).contains("Nothing to do"), "{}", printed(idle));
    assert_eq!(screened().scans_after_idle, 2);
}

#[test]
fn a_scan_that_arrives_later_is_the_only_one_screened() {
    let later = &screened().later;
    assert!(
        later.status.code() == Some(3) && text(&later.stdout).contains("1 scans done, 0 failed"),
        "{}",
        printed(later)
    );
    assert_eq!(number(&screened().tables, "SELECT count(*) AS n FROM scans"), 3);
}

#[test]
fn every_shipped_query_runs_on_screened_tables() {
    let mut files = 0;
    for file in std::fs::read_dir(root().join("sql")).unwrap() {
        let file = file.unwrap().path().display().to_string();
        ok(&["sql", "--tables", &screened().tables, "-f", &file]);
        files += 1;
    }
    assert!(files >= 6);
}

/// Contract 4: a scan screened again, together with other scans and with another number of threads, has the same rows.
#[test]
fn a_scan_screened_again_has_the_same_tokens_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again").display().to_string();
    let alone = ["--set", "cohort.select.subjects=[\"synth001\"]", "--set", "run.scans_in_flight=1"];
    // Sums that are split among threads would differ.
    let status = screening(&screened().cohort, &again, &alone).env("OMP_NUM_THREADS", "3").status().unwrap();
    assert!(status.success());
    let sql = "SELECT z, y, x, code, p_anomalous, nll, residual FROM tokens WHERE scan_id = 'study/sub-synth001_T1w' ORDER BY z, y, x";
    let (first, second) = (rows(&screened().tables, sql), rows(&again, sql));
    assert!(!first.is_empty());
    assert!(first == second, "tokens differ between two runs of one scan");
}
