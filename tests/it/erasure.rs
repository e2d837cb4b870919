//! `neurosieve tables forget` and `tables retain`: what is removed is gone from rows, files and earlier versions, and nothing
//! else is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::Utc;
use neurosieve::store;
use neurosieve::tables::{CheckReport, Lease, RunRow, Table, Tables};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::support::program::{number, ok, printed, program, rows, screen, text};
use super::support::results::{DAY_ONE, begin, commit, counts, failed, finished, open, run_row, write};
use super::support::shared::{copy, path, sharded, study};

/// Part of the label, of the scan ids and of the paths of the person who is forgotten, and of nothing else.
const PERSON: &str = "zebra17";
const DAY: i64 = 24 * 3_600_000_000;

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Every value of a Parquet file as text.
fn decoded(file: &Path) -> String {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap().build().unwrap();
    let mut text = String::new();
    for batch in reader.map(Result::unwrap) {
        for column in batch.columns() {
            let values = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap();
            (0..batch.num_rows()).for_each(|row| text += &(values.value(row).to_string() + "\n"));
        }
    }
    text
}

/// The files below a folder that hold a text: in their names, their bytes, or, for Parquet, their values.
fn holding(folder: &Path, needle: &str) -> Vec<PathBuf> {
    let holds = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        file.display().to_string().contains(needle)
            || bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
            || file.extension().is_some_and(|e| e == "parquet") && decoded(file).contains(needle)
    };
    files_below(folder).into_iter().filter(holds).collect()
}

fn sub(label: &str) -> String {
    format!("sub-{label}")
}

/// Tables with everything that can hold a person: results of several runs, a failure, merged files, checkpoints, rows of a
/// killed run, a data file without a commit, a file that was cut off, and the settings of a run.
async fn tables_with_person(folder: &Path) {
    for run in 1..=12 {
        // Opened again by each run, so that the person's second result is one of a later run.
        let mut tables = open(folder).await;
        let run_id = format!("r{run}");
        let person = sub(PERSON);
        let mut scans = vec![finished(&run_id, &sub(&format!("other{run}")), DAY_ONE, 0.5)];
        match run {
            1 | 6 => scans.push(finished(&run_id, &person, DAY_ONE + run, 0.7)),
            2 => scans.push(failed(&run_id, &person, DAY_ONE, "truncated", 1)),
            3 => scans.push(failed(&run_id, &sub("other0"), DAY_ONE, "truncated", 1)),
            _ => {}
        }
        let config =
            format!("[cohort.select]\nexclude = [\"{person}_*\", \"sub-{PERSON}a\"]\n").replace("zebra17a", "other1");
        let mut row = RunRow { config, ..run_row(&run_id, None, 0) };
        tables.begin_run(&mut row).await.unwrap();
        let receipts = write(tables.location(), vec![scans], 64).await;
        tables.commit(&run_id, 0, &receipts).await.unwrap();
        tables.end_run(&RunRow { finished_at: Some(DAY_ONE + 1), status: "finished".into(), ..row }).await.unwrap();
        if run == 7 {
            let size = NonZeroU64::new(128 << 20).unwrap();
            tables.optimize(Table::Scans, size, 1 << 28).await.unwrap();
            tables.optimize(Table::Tokens, size, 1 << 28).await.unwrap();
        }
    }
    let mut tables = open(folder).await;
    begin(&mut tables, "r13").await;
    let left = write(tables.location(), vec![vec![finished("r13", &sub(PERSON), DAY_ONE, 0.5)]], 64).await;
    let orphans: Vec<_> = left.into_iter().filter(|receipt| receipt.table != Table::Scans).collect();
    tables.commit("r13", 0, &orphans).await.unwrap();
    // Written and never committed.
    write(tables.location(), vec![vec![finished("r13", &sub(PERSON), DAY_ONE, 0.5)]], 64).await;
    fs::write(folder.join("scans/part-1.zstd.parquet#1"), PERSON).unwrap();
}

fn forget(tables: &str, more: &[&str]) -> std::process::Output {
    program(&[&["tables", "forget", "--tables", tables], more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_person_is_in_no_byte_of_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    let at = path(folder.path());
    tables_with_person(folder.path()).await;
    let others = ["raw.scans", "raw.tokens", "raw.masks", "raw.findings", "raw.failures", "raw.runs"];
    let before = counts(&open(folder.path()).await, others).await;
    assert!(holding(folder.path(), PERSON).len() > 20);

    let contents =
        || files_below(folder.path()).iter().map(|f| (f.clone(), fs::read(f).unwrap())).collect::<BTreeMap<_, _>>();
    let untouched = contents();
    let plan = forget(at, &["--subject", PERSON, "--dry-run"]);
    assert!(text(&plan.stdout).contains("tokens: 12 rows would be deleted"), "{}", printed(&plan));
    assert!(text(&plan.stdout).contains("sub-zebra17"), "{}", printed(&plan));
    assert!(contents() == untouched, "a dry run changes nothing");

    let done = forget(at, &["--subject", "sub-zebra17"]);
    assert!(done.status.success(), "{}", printed(&done));
    let said = text(&done.stdout);
    for words in
        ["scans: 2 rows deleted", "tokens: 12 rows deleted", "failures: 1 rows deleted", "24 rows named the person"]
    {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    assert!(said.contains("cohort.select.exclude") && said.contains("next run screens this person again"), "{said}");
    assert_eq!(holding(folder.path(), PERSON), Vec::<PathBuf>::new());

    // Nothing else is gone, and the tables work.
    let mut tables = open(folder.path()).await;
    let gone = [2, 12, 3, 3, 1, 0];
    assert_eq!(counts(&tables, others).await, std::array::from_fn(|i| before[i] - gone[i]));
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
    assert!(!holding(folder.path(), "other12").is_empty());
    commit(&mut tables, "r14", vec![finished("r14", "sub-new", DAY_ONE, 0.5)]).await;
    assert_eq!(counts(&open(folder.path()).await, ["raw.scans", "raw.tokens"]).await, [13, 52]);
    // No row names the person now. A second command says so; with --even-unknown it deletes the earlier versions.
    assert_eq!(forget(at, &["--subject", PERSON]).status.code(), Some(2));
    assert!(forget(at, &["--subject", PERSON, "--even-unknown", "--killed", "r14"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_in_other_languages_read_tables_that_have_forgotten() {
    let Some(python) = super::support::program::python() else { return };
    let folder = tempfile::tempdir().unwrap();
    tables_with_person(folder.path()).await;
    assert!(forget(path(folder.path()), &["--subject", PERSON]).status.success());
    let script = super::support::root().join("examples/read_tables.py");
    let output = std::process::Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    assert!(!text(&output.stdout).contains(PERSON));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_with_failures_alone_is_forgotten_and_an_unknown_one_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = path(folder.path());
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r1", vec![failed("r1", "sub-zebra17", DAY_ONE, "truncated", 1)]).await;
    commit(&mut tables, "r2", vec![failed("r2", "sub-zebra1", DAY_ONE, "truncated", 1)]).await;
    let unknown = forget(at, &["--subject", "zebra"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", printed(&unknown));
    let said = text(&unknown.stderr);
    assert!(said.contains("no row names subject zebra") && said.contains("SELECT DISTINCT cohort, subject"), "{said}");
    assert!(said.contains("failures --scans") && said.contains("--even-unknown"), "{said}");
    assert!(forget(at, &["--subject", PERSON, "--cohort", "elsewhere"]).status.code() == Some(2));
    let done = forget(at, &["--subject", PERSON, "--cohort", "study"]);
    assert!(done.status.success(), "{}", printed(&done));
    assert!(text(&done.stdout).contains("failures: 1 rows deleted"), "{}", printed(&done));
    assert_eq!(holding(folder.path(), PERSON), Vec::<PathBuf>::new());
    assert_eq!(counts(&open(folder.path()).await, ["raw.failures"]).await, [1], "sub-zebra1 is another person");
    // A scan whose name says no subject is named by its id.
    assert!(forget(at, &["--scan", "sub-zebra1"]).status.success());
    assert_eq!(counts(&open(folder.path()).await, ["raw.failures"]).await, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_forgotten_while_a_run_may_be_in_progress() {
    let folder = tempfile::tempdir().unwrap();
    let at = path(folder.path());
    let mut tables = open(folder.path()).await;
    commit(&mut tables, "r1", vec![finished("r1", "sub-zebra17", DAY_ONE, 0.5)]).await;
    let location = store::open(at).unwrap();
    for lease in
        [Lease::take(&location, "0123").await.unwrap().unwrap(), Lease::of_maintenance(&location).await.unwrap()]
    {
        let refused = forget(at, &["--subject", PERSON]);
        assert!(
            refused.status.code() == Some(2) && text(&refused.stderr).contains("try again"),
            "{}",
            printed(&refused)
        );
        lease.give_back().await;
    }
    let started_at = Utc::now().timestamp_micros();
    tables.begin_run(&mut RunRow { started_at, ..run_row("r2", None, 0) }).await.unwrap();
    let refused = forget(at, &["--subject", PERSON]);
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("r2 (study)") && said.contains("--killed"), "{said}");
    assert_eq!(counts(&open(folder.path()).await, ["raw.scans"]).await, [1]);
    assert!(forget(at, &["--subject", PERSON, "--killed", "r2"]).status.success());
    assert_eq!(holding(folder.path(), PERSON), Vec::<PathBuf>::new());
}

#[test]
fn a_forgotten_person_comes_back_unless_excluded_and_the_settings_do_not_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let tables: &str = &copy(sharded(), folder.path());
    let person = "synth002";
    let scans = || number(tables, "SELECT count(*) AS n FROM raw.scans");
    let before = scans();
    assert!(!holding(folder.path(), person).is_empty());
    assert!(forget(tables, &["--subject", person]).status.success());
    assert_eq!((scans(), holding(folder.path(), person)), (before - 1, Vec::new()));
    let quick = ["--set", "score.method=threshold"];
    let excluding = [&quick[..], &["--set", "cohort.select.exclude=[\"sub-synth002_*\"]"]].concat();
    screen(path(study()), tables, &excluding);
    assert_eq!((scans(), holding(folder.path(), person)), (before - 1, Vec::new()));
    let config = rows(tables, "SELECT config FROM runs ORDER BY run_number DESC LIMIT 1")[0]["config"].to_string();
    assert!(config.contains("(names a subject)"), "{config}");
    screen(path(study()), tables, &quick);
    assert_eq!(scans(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_opened_the_tables_before_a_person_was_forgotten_loses_no_result_silently() {
    let folder = tempfile::tempdir().unwrap();
    let at = path(folder.path());
    tables_with_person(folder.path()).await;
    // It has listed its cohort, but not begun.
    let mut early = open(folder.path()).await;
    let before = counts(&early, ["raw.scans"]).await[0];
    assert!(forget(at, &["--subject", PERSON]).status.success());
    begin(&mut early, "r14").await;
    let receipts = write(early.location(), vec![vec![finished("r14", "sub-new", DAY_ONE, 0.5)]], 64).await;
    let committed = early.commit("r14", 0, &receipts).await;
    let tables = open(folder.path()).await;
    let seen = counts(&tables, ["raw.scans", "raw.scans WHERE scan_id = 'sub-new'"]).await;
    match committed {
        Ok(_) => assert_eq!(seen, [before - 1, 1]),
        Err(error) => {
            assert!(error.to_string().contains("start the run again"), "{error}");
            assert_eq!(seen, [before - 2, 0]);
        }
    }
    assert!(!tables.check().await.unwrap().is_damaged());
    assert_eq!(holding(folder.path(), PERSON), Vec::<PathBuf>::new());
}

/// Two runs of an old recipe, one of them recent, and one of the current recipe.
async fn tables_with_recipes(folder: &Path) -> Tables {
    let mut tables = open(folder).await;
    let now = Utc::now().timestamp_micros();
    for (run_id, recipe, ended_at) in
        [("r1", "recipe", DAY_ONE), ("r2", "recipe", now - 3 * DAY), ("r3", "recipe-2", now - 2 * DAY)]
    {
        let row = RunRow { started_at: ended_at - 1, recipe_id: recipe.into(), ..run_row(run_id, None, 1) };
        tables.begin_run(&mut row.clone()).await.unwrap();
        let scan = format!("sub-{run_id}");
        let scans =
            vec![finished(run_id, &scan, ended_at, 0.5), failed(run_id, &format!("{scan}b"), ended_at, "truncated", 1)];
        let receipts = write(tables.location(), vec![scans], 64).await;
        tables.commit(run_id, 0, &receipts).await.unwrap();
        tables.end_run(&RunRow { finished_at: Some(ended_at), status: "finished".into(), ..row }).await.unwrap();
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_removes_what_old_runs_of_an_old_recipe_wrote() {
    let folder = tempfile::tempdir().unwrap();
    tables_with_recipes(folder.path()).await;
    let at = path(folder.path());
    let all = ["raw.scans", "raw.tokens", "raw.masks", "raw.findings", "raw.failures", "raw.runs"];
    let retain = |more: &[&str]| program(&[&["tables", "retain", "--tables", at], more].concat());
    let plan = retain(&["--recipe", "recipe", "--days", "30", "--dry-run"]);
    assert!(text(&plan.stdout).contains("tokens: 4 rows would be deleted"), "{}", printed(&plan));
    assert!(
        text(&plan.stdout).contains("1 runs ended more than 30 days ago; 1 younger ones stay"),
        "{}",
        printed(&plan)
    );
    assert_eq!(counts(&open(folder.path()).await, all).await, [3, 12, 3, 3, 3, 6]);
    assert!(retain(&["--recipe", "recipe", "--days", "30"]).status.success());
    // The rows of `runs` are the record of what was done.
    assert_eq!(counts(&open(folder.path()).await, all).await, [2, 8, 2, 2, 2, 6]);
    assert!(retain(&["--recipe", "recipe", "--days", "1"]).status.success());
    let tables = open(folder.path()).await;
    assert_eq!(counts(&tables, all).await, [1, 4, 1, 1, 1, 6]);
    assert_eq!(counts(&tables, ["raw.scans WHERE run_id = 'r3'"]).await, [1]);
    assert_eq!(tables.check().await.unwrap(), CheckReport::default());
    assert!(ok(&["tables", "history", "--tables", at, "--table", "tokens"]).contains("DELETE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_keeps_the_recipe_that_the_views_show() {
    let folder = tempfile::tempdir().unwrap();
    tables_with_recipes(folder.path()).await;
    let retain = |recipe: &str, more: &[&str]| {
        let at = path(folder.path());
        program(&[&["tables", "retain", "--tables", at, "--recipe", recipe, "--days", "1"], more].concat())
    };
    let current = retain("recipe-2", &[]);
    let said = text(&current.stderr);
    assert!(current.status.code() == Some(2) && said.contains("current one of cohort study"), "{said}");
    assert!(said.contains("--even-current"), "{said}");
    let unknown = retain("recipe-9", &[]);
    assert!(
        unknown.status.code() == Some(2) && text(&unknown.stderr).contains("FROM recipes"),
        "{}",
        printed(&unknown)
    );
    assert_eq!(counts(&open(folder.path()).await, ["raw.scans"]).await, [3]);
    assert!(retain("recipe-2", &["--even-current"]).status.success());
    assert_eq!(counts(&open(folder.path()).await, ["raw.scans", "raw.scans WHERE run_id = 'r3'"]).await, [2, 0]);
}
