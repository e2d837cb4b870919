//! `neurosieve tables`: files are merged, exported and deleted, and queries give the same rows.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, SystemTime};

use neurosieve::tables::{CheckReport, RunRow, Table, Tables};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::support::program::{number, ok, program, quick_run, rows, text};
use super::support::results::{DAY_ONE, begin, commit, counts, finished, open, run_row, write};
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

#[test]
fn vacuum_leaves_files_that_are_not_of_this_program() {
    let folder = tempfile::tempdir().unwrap();
    let tables: &str = &copy(sharded(), folder.path());
    // A cohort in a folder that has the name of a table, and other foreign files.
    let strangers = ["sub-01/anat/sub-01_T1w.nii.gz", "notes.txt", "sub-02/part-1.parquet", "export.parquet"];
    let old = SystemTime::now() - Duration::from_secs(10 * 24 * 3600);
    for name in strangers {
        let file = Path::new(tables).join("scans").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "x").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    }
    let printed = ok(&["tables", "vacuum", "--tables", tables]);
    assert!(printed.contains("scans: 4 files stay, because they are not of this program"), "{printed}");
    for name in strangers {
        assert!(Path::new(tables).join("scans").join(name).exists() && printed.contains(name), "{name}");
    }
}

#[test]
fn a_cohort_and_tables_inside_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |below: &str| folder.path().join(below).display().to_string();
    let run = |cohort: &str, tables: &str| program(&quick_run(cohort, tables));
    let study = at("study");
    std::fs::create_dir(folder.path().join("study")).unwrap();
    std::fs::create_dir(folder.path().join("study/scans")).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&study, &link).unwrap();
    for (cohort, tables) in
        [(&*at("study/scans"), &*study), (&*study, &*at("study/results")), (&*study, &*study), (path(&link), &*study)]
    {
        let refused = run(cohort, tables);
        assert_eq!(refused.status.code(), Some(2), "{cohort} {tables}");
        assert!(text(&refused.stderr).contains("inside each other"), "{}", text(&refused.stderr));
    }
    assert_eq!(std::fs::read_dir(&study).unwrap().count(), 1, "nothing was written");
}

/// Commits `runs` runs of two scans each.
async fn fill(folder: &Path, runs: usize) {
    for run in 1..=runs {
        let mut tables = open(folder).await;
        let run_id = format!("r{run}");
        let scans = [1, 2].map(|n| finished(&run_id, &format!("sub-{run}-{n}"), DAY_ONE, 0.5));
        commit(&mut tables, &run_id, scans.to_vec()).await;
    }
}

const MIB_128: NonZeroU64 = NonZeroU64::new(128 << 20).unwrap();

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_optimize_at_once_double_no_row() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 6).await;
    let before = ["raw.scans", "raw.tokens", "raw.masks", "raw.findings"];
    let rows = counts(&open(folder.path()).await, before).await;
    for table in [Table::Scans, Table::Tokens] {
        // Both have loaded the same version.
        let (mut first, mut second) = (open(folder.path()).await, open(folder.path()).await);
        let (one, other) =
            tokio::join!(first.optimize(table, MIB_128, 1 << 28), second.optimize(table, MIB_128, 1 << 28));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(one.removed + other.removed >= 6, "{one:?} {other:?}");
    }
    let tables = open(folder.path()).await;
    assert_eq!(counts(&tables, before).await, rows);
    assert_eq!(counts(&tables, ["scans", "tokens"]).await, [rows[0], rows[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_commands_at_once_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 4).await;
    let place = || folder.path().to_owned();
    let run = |number: usize| {
        let place = place();
        tokio::spawn(async move {
            let run_id = format!("r{number}");
            let mut tables = open(&place).await;
            commit(&mut tables, &run_id, vec![finished(&run_id, &format!("sub-{number}"), DAY_ONE, 0.5)]).await;
        })
    };
    let optimize = |table| {
        let place = place();
        tokio::spawn(async move { open(&place).await.optimize(table, MIB_128, 1 << 28).await.map(|_| ()).unwrap() })
    };
    let vacuum = |table| {
        let place = place();
        tokio::spawn(async move {
            drop(open(&place).await.vacuum(table, Duration::from_secs(24 * 3600), false).await.unwrap());
        })
    };
    let read = || {
        let place = place();
        tokio::spawn(async move {
            // What an export reads: each result with its mask.
            let tables = Tables::open(place.to_str().unwrap()).await.unwrap();
            let [scans, masks] = counts(&tables, ["scans", "masks"]).await;
            assert_eq!(scans, masks);
        })
    };
    for round in 0..3 {
        let number = 10 + 3 * round;
        // All of them work at the same time.
        let commands = [
            run(number),
            run(number + 1),
            run(number + 2),
            optimize(Table::Scans),
            optimize(Table::Scans),
            optimize(Table::Tokens),
            vacuum(Table::Scans),
            vacuum(Table::Tokens),
            read(),
            read(),
        ];
        for command in commands {
            command.await.unwrap();
        }
    }
    let tables = open(folder.path()).await;
    let rows = 4 * 2 + 3 * 3;
    assert_eq!(counts(&tables, ["raw.scans", "scans", "raw.masks"]).await, [rows, rows, rows]);
    assert_eq!(counts(&tables, ["raw.tokens", "tokens"]).await, [4 * rows, 4 * rows]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_killed_run_left_are_found_and_removed_and_results_stay() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), 2).await;
    let mut tables = open(folder.path()).await;
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
    // A run that is killed before it commits `scans`, of which one file also holds a result.
    begin(&mut tables, "r3").await;
    let receipts = write(tables.location(), vec![vec![finished("r3", "sub-lost", DAY_ONE, 0.5)]], 64).await;
    let others: Vec<_> = receipts.into_iter().filter(|receipt| receipt.table != Table::Scans).collect();
    tables.commit("r3", 0, &others).await.unwrap();
    commit(&mut tables, "r4", vec![finished("r4", "sub-kept", DAY_ONE, 0.5)]).await;
    tables.optimize(Table::Tokens, MIB_128, 1 << 28).await.unwrap();

    let found = tables.check().await.unwrap();
    assert!(!found.is_damaged(), "{found:?}");
    let expected: BTreeMap<&str, usize> = [("tokens", 4), ("masks", 1), ("findings", 1)].into();
    assert_eq!(found.orphans, expected);
    assert_eq!(tables.remove_orphans().await.unwrap(), expected);
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
    let seen = counts(&tables, ["scans", "raw.scans", "tokens", "raw.tokens", "raw.masks"]).await;
    assert_eq!(seen, [5, 5, 20, 20, 5]);
    // By hand there is nothing left to do.
    let printed = ok(&["tables", "check", "--tables", path(folder.path()), "--repair"]);
    assert!(printed.contains("no row is doubled, missing or without a result"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_run_that_may_be_active_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64;
    tables.begin_run(&mut RunRow { started_at: now, ..run_row("r1", None, 0) }).await.unwrap();
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-1", DAY_ONE, 0.5)]], 64).await;
    let others: Vec<_> = receipts.iter().filter(|receipt| receipt.table != Table::Scans).cloned().collect();
    tables.commit("r1", 0, &others).await.unwrap();
    assert!(tables.remove_orphans().await.unwrap().is_empty());
    tables.commit("r1", 0, &receipts).await.unwrap();
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
    assert_eq!(counts(&tables, ["tokens"]).await, [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_doubled_and_incomplete_results() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    begin(&mut tables, "r1").await;
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-1", DAY_ONE, 0.5)]], 64).await;
    let scans: Vec<_> = receipts.into_iter().filter(|receipt| receipt.table == Table::Scans).collect();
    tables.commit("r1", 0, &scans).await.unwrap();
    assert_eq!(tables.check().await.unwrap().incomplete, ["sub-1"]);
    // The same file once more, as two rewrites at once left it.
    let log = folder.path().join("scans/_delta_log");
    let entry = std::fs::read_to_string(log.join("00000000000000000001.json")).unwrap();
    std::fs::copy(folder.path().join("scans").join(&scans[0].path), folder.path().join("scans/part-again.parquet"))
        .unwrap();
    let again: String = entry.lines().filter(|line| line.contains("\"add\"")).collect();
    std::fs::write(log.join("00000000000000000002.json"), again.replace(&scans[0].path, "part-again.parquet")).unwrap();
    let found = open(folder.path()).await.check().await.unwrap();
    assert_eq!(found.duplicates, ["sub-1"]);
    let refused = program(&["tables", "check", "--tables", path(folder.path())]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("1 results are there twice"));

    // A result with missing rows is deleted, so that the next run makes it again.
    let repaired = ok(&["tables", "check", "--tables", path(folder.path()), "--repair"]);
    assert!(repaired.contains("1 incomplete results deleted"), "{repaired}");
    let mended = open(folder.path()).await;
    assert_eq!(mended.check().await.unwrap(), CheckReport::default());
    assert!(mended.done("recipe", "study").await.unwrap().outcome("sub-1", "sub-1-v1").is_none());
    assert_eq!(counts(&mended, ["raw.scans", "raw.tokens"]).await, [0, 0]);
}
