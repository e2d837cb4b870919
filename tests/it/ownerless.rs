//! Rows that no result owns, and rows that are there twice: upkeep and `tables check --repair` remove them, never those of a
//! run that may be active, and the documented join hides them from readers without the views.

use std::fs;
use std::path::Path;
use std::process::Command;

use chrono::Utc;
use neurosieve::flow::{Job, JobOutcome, Pipeline, Schedule};
use neurosieve::tables::{CheckReport, Receipt, RunRow, Table, Tables};
use serde_json::Value;

use super::support::program::{ok, printed, program, python, text};
use super::support::results::{DAY_ONE, begin, commit, counts, finished, open, run_row, write};
use super::support::root;
use super::support::shared::path;

const HOUR: i64 = 3_600_000_000;

/// Commits rows of a scan without the row in `scans`, as a run that is killed within a commit leaves them.
async fn cut_off(tables: &mut Tables, run_id: &str, epoch: i64, scan_id: &str) {
    let receipts = write(tables.location(), vec![vec![finished(run_id, scan_id, DAY_ONE, 0.5)]], 64).await;
    let others: Vec<_> = receipts.into_iter().filter(|receipt| receipt.table != Table::Scans).collect();
    tables.commit(run_id, epoch, &others).await.unwrap();
}

fn schedule(tables: &Path) -> Schedule {
    let text = format!(
        "[tables]\nurl = \"{}\"\n[cohort]\nurl = \"nowhere\"\n[schedule]\nrun = \"0 1 * * *\"\nupkeep = \"0 2 * * *\"\n",
        path(tables)
    );
    Schedule::new(toml::from_str::<Pipeline>(&text).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_removes_rows_without_a_result_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.5)]).await;
    begin(&mut tables, "r2").await;
    cut_off(&mut tables, "r2", 0, "sub-lost").await;
    let upkeep = schedule(folder.path()).work(Job::Upkeep, std::future::pending(), |_| {}).await.unwrap();
    let JobOutcome::Maintained(maintained) = upkeep else { panic!("{upkeep:?}") };
    let ownerless = |table| maintained.iter().find(|upkeep| upkeep.table == table).unwrap().ownerless;
    assert_eq!([Table::Scans, Table::Tokens, Table::Masks, Table::Findings].map(ownerless), [0, 4, 1, 1]);
    let tables = open(folder.path()).await;
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
    assert_eq!(counts(&tables, ["raw.scans", "raw.tokens", "raw.masks", "raw.findings"]).await, [1, 4, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_several_days_keeps_the_rows_whose_result_it_is_about_to_commit() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let now = Utc::now().timestamp_micros();
    // It began three days ago and committed a scan an hour ago.
    let started_at = now - 72 * HOUR;
    tables.begin_run(&mut RunRow { started_at, ..run_row("r1", None, 0) }).await.unwrap();
    let receipts = write(tables.location(), vec![vec![finished("r1", "sub-1", now - HOUR, 0.5)]], 64).await;
    tables.commit("r1", 0, &receipts).await.unwrap();
    let next = write(tables.location(), vec![vec![finished("r1", "sub-2", now, 0.5)]], 64).await;
    let (last, first): (Vec<Receipt>, Vec<_>) = next.into_iter().partition(|receipt| receipt.table == Table::Scans);
    tables.commit("r1", 1, &first).await.unwrap();
    // Another process cleans up between the two halves of the commit.
    assert!(open(folder.path()).await.remove_orphans().await.unwrap().is_empty());
    tables.commit("r1", 1, &last).await.unwrap();
    assert_eq!(open(folder.path()).await.check().await.unwrap(), CheckReport::default());
    // Rows that are left when the run has ended have no owner to come, however young they are.
    cut_off(&mut tables, "r1", 2, "sub-3").await;
    let row = RunRow { started_at, ..run_row("r1", Some(now), 2) };
    tables.end_run(&row).await.unwrap();
    let removed = open(folder.path()).await.remove_orphans().await.unwrap();
    assert_eq!(removed, [("tokens", 4), ("masks", 1), ("findings", 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_run_that_begins_during_a_clean_up_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut cleaning = open(folder.path()).await;
    commit(&mut cleaning, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.5)]).await;
    // The tables are loaded before the run begins.
    let mut tables = open(folder.path()).await;
    let now = Utc::now().timestamp_micros();
    tables.begin_run(&mut RunRow { started_at: now, ..run_row("r2", None, 0) }).await.unwrap();
    cut_off(&mut tables, "r2", 0, "sub-2").await;
    assert!(cleaning.remove_orphans().await.unwrap().is_empty());
    assert_eq!(counts(&open(folder.path()).await, ["raw.tokens"]).await, [8]);
}

/// Commits a copy of every data file of a table again, as two rewrites at once of an older version left it.
fn double(tables: &Path, table: &str) {
    let (folder, log) = (tables.join(table), tables.join(table).join("_delta_log"));
    let mut commits: Vec<_> = fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
    commits.retain(|path| path.extension().is_some_and(|e| e == "json"));
    commits.sort();
    let mut again = String::new();
    for line in commits.iter().map(|path| fs::read_to_string(path).unwrap() + "\n").collect::<String>().lines() {
        if line.is_empty() {
            continue;
        }
        let mut action: Value = serde_json::from_str(line).unwrap();
        let Some(name) = action["add"]["path"].as_str().map(str::to_owned) else { continue };
        let copy = name.replace("part-", "part-again-");
        fs::copy(folder.join(&name), folder.join(&copy)).unwrap();
        action["add"]["path"] = copy.into();
        again += &(action.to_string() + "\n");
    }
    fs::write(log.join(format!("{:020}.json", commits.len())), again).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_keeps_one_of_each_doubled_row() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let scans = ["sub-1", "sub-2", "sub-3"].map(|scan| finished("r1", scan, DAY_ONE, 0.5));
    commit(&mut tables, "r1", scans.to_vec()).await;
    let all = ["raw.scans", "raw.tokens", "raw.masks", "raw.findings"];
    let before = counts(&tables, all).await;
    for table in ["scans", "tokens", "masks", "findings"] {
        double(folder.path(), table);
    }
    assert_eq!(counts(&open(folder.path()).await, all).await, before.map(|rows| 2 * rows));
    let at = path(folder.path());
    let refused = program(&["tables", "check", "--tables", at]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("--repair"), "{}", printed(&refused));
    let repaired = ok(&["tables", "check", "--tables", at, "--repair"]);
    assert!(repaired.contains("tokens: 12 doubled rows deleted"), "{repaired}");
    assert!(repaired.contains("no row is doubled"), "{repaired}");
    assert_eq!(counts(&open(folder.path()).await, all).await, before);
    // A later run commits as usual.
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r2", vec![finished("r2", "sub-4", DAY_ONE, 0.5)]).await;
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_results_of_one_key_repair_keeps_the_one_that_the_views_show() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.2), finished("r1", "sub-2", DAY_ONE, 0.2)]).await;
    // Opened again, the tables take the same key once more, which no two runs at once could commit.
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r2", vec![finished("r2", "sub-1", DAY_ONE - 1, 0.9)]).await;
    assert_eq!(tables.check().await.unwrap().duplicates, ["sub-1"]);
    ok(&["tables", "check", "--tables", path(folder.path()), "--repair"]);
    let tables = open(folder.path()).await;
    let kept = ["raw.scans", "raw.tokens", "raw.masks", "raw.scans WHERE scan_id = 'sub-1' AND run_id = 'r2'"];
    assert_eq!(counts(&tables, kept).await, [2, 8, 2, 1]);
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
}

/// A block of SQL in `docs/operations.md`.
fn documented(name: &str) -> String {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let (_, rest) = page.split_once(&format!("<!-- {name} -->\n```sql\n")).unwrap();
    rest.split_once("```").unwrap().0.trim().trim_end_matches(';').to_owned()
}

/// DuckDB shares no code with the program's reader.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_join_gives_duckdb_only_current_rows_with_an_owner() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r1", vec![finished("r1", "sub-1", DAY_ONE, 0.2), finished("r1", "sub-2", DAY_ONE, 0.2)]).await;
    let mut tables = open(folder.path()).await;
    // A result that replaces an earlier one, and rows without a result.
    commit(&mut tables, "r2", vec![finished("r2", "sub-1", DAY_ONE + HOUR, 0.9)]).await;
    begin(&mut tables, "r3").await;
    cut_off(&mut tables, "r3", 0, "sub-lost").await;
    let script = "
import sys, json, duckdb
from deltalake import DeltaTable
root, current, *owned = sys.argv[1:]
db = duckdb.connect()
for name in ['scans', 'tokens', 'masks', 'findings', 'runs', 'reverts']:
    table = DeltaTable(f'{root}/{name}')
    files = table.file_uris()
    if files:
        db.execute(f'CREATE VIEW {name} AS SELECT * FROM read_parquet({files!r})')
    else:
        kinds = {'long': 'BIGINT', 'string': 'VARCHAR'}
        columns = ', '.join(f'NULL::{kinds[f.type.type]} AS {f.name}' for f in table.schema().fields)
        db.execute(f'CREATE VIEW {name} AS SELECT {columns} WHERE false')
db.execute('CREATE VIEW current_scans AS ' + current)
count = lambda sql: db.execute(f'SELECT count(*) FROM ({sql})').fetchone()[0]
print(json.dumps([count(current)] + [count(owned[0].replace('tokens', t)) for t in ['tokens', 'masks', 'findings']]))
";
    let output = Command::new(python)
        .args([
            "-c",
            script,
            path(folder.path()),
            &documented("current results"),
            &documented("rows of current results"),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let theirs: Vec<i64> = serde_json::from_slice(&output.stdout).unwrap();
    let ours = counts(&open(folder.path()).await, ["scans", "tokens", "masks", "findings"]).await;
    assert_eq!((theirs, ours), (ours.to_vec(), [2, 8, 2, 2]));
}
