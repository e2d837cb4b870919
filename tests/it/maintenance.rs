//! `neurosieve tables`: files are merged, exported and deleted, and queries give the same rows.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::support::program::{number, ok, program, rows, text};
use super::support::shared::{copy, path, sharded};

/// Data files of a table, those that no version refers to included.
fn files(tables: &str, table: &str) -> usize {
    let listed = std::fs::read_dir(Path::new(tables).join(table)).unwrap();
    listed.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet")).count()
}

fn scores(tables: &str) -> Vec<Value> {
    rows(tables, "SELECT scan_id, anomaly_score FROM scans ORDER BY 1")
}

#[test]
fn optimizing_puts_files_together_and_changes_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let tables: &str = &copy(sharded(), folder.path());
    let regions = || {
        let sql =
            "SELECT scan_id, region, count(*) AS n, sum(p_anomalous) AS p FROM tokens GROUP BY 1, 2 ORDER BY 1, 2";
        rows(tables, sql)
    };
    let (before, scores_before, many) = (regions(), scores(tables), files(tables, "scans"));
    assert!(many > 1 && !before.is_empty());
    let printed = ok(&["tables", "optimize", "--tables", tables]);
    assert!(printed.contains(&format!("scans: {many} files became 1")), "{printed}");
    // Sums of another order differ in their last digits.
    let close = |a: &Value, b: &Value| (a["p"].as_f64().unwrap() - b["p"].as_f64().unwrap()).abs() < 1e-3;
    let after = regions();
    assert_eq!(scores(tables), scores_before);
    assert!(after.len() == before.len() && after.iter().zip(&before).all(|(a, b)| a["n"] == b["n"] && close(a, b)));
    assert!(ok(&["tables", "history", "--tables", tables, "--table", "tokens"]).contains("OPTIMIZE"));
}

#[test]
fn tables_are_exported_as_plain_parquet_and_csv() {
    let folder = tempfile::tempdir().unwrap();
    let to = path(folder.path());
    ok(&["tables", "export", "--tables", sharded(), "--to", to]);
    let tokens = File::open(folder.path().join("tokens.parquet")).unwrap();
    let tokens = ParquetRecordBatchReaderBuilder::try_new(tokens).unwrap().metadata().file_metadata().num_rows();
    assert_eq!(number(sharded(), "SELECT count(*) AS n FROM tokens"), tokens as u64);
    ok(&["tables", "export", "--tables", sharded(), "--to", to, "--table", "failures", "--format", "csv"]);
    let failures = std::fs::read_to_string(folder.path().join("failures.csv")).unwrap();
    assert!(failures.starts_with("run_id,scan_id,") && failures.contains("truncated"), "{failures}");
}

#[test]
fn vacuum_deletes_old_files_that_no_version_refers_to_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let tables: &str = &copy(sharded(), folder.path());
    let (before, many) = (scores(tables), files(tables, "scans"));
    ok(&["tables", "optimize", "--tables", tables]);
    let vacuum =
        |more: &[&str]| program(&[&["tables", "vacuum", "--tables", tables, "--table", "scans"], more].concat());
    // The merged files are too recent to be deleted, and keeping less than a day is refused.
    assert!(text(&vacuum(&[]).stdout).contains("scans: 0 files deleted"));
    assert_eq!(vacuum(&["--keep-days", "0"]).status.code(), Some(2));
    assert_eq!(files(tables, "scans"), many + 1);
    // A file that a killed run left behind, ten days ago.
    let orphan = Path::new(tables).join("scans/part-orphan.zstd.parquet");
    std::fs::write(&orphan, "left").unwrap();
    let old = SystemTime::now() - Duration::from_secs(10 * 24 * 3600);
    File::options().write(true).open(&orphan).unwrap().set_modified(old).unwrap();
    assert!(text(&vacuum(&["--dry-run"]).stdout).contains("part-orphan"));
    assert!(orphan.exists());
    assert!(text(&vacuum(&[]).stdout).contains("scans: 1 files deleted"));
    assert!(!orphan.exists());
    assert_eq!(scores(tables), before);
}
