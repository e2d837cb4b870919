//! Which result of a scan is the current one: for SQL, export, failures and the next run alike.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::support::program::{command, printed, program, quick_run, rows, text};
use super::support::results::{DAY_ONE, MINUTE, begin, commit, counts, failed, finished, open, run_row};
use super::support::shared::{head, path, study};
use super::support::{cohorts::scan, root};

const DAY: i64 = 24 * 60 * MINUTE;

/// A cohort of one scan, whose content changes.
struct Cohort {
    folder: tempfile::TempDir,
    /// Two heads and a truncated file, kept with their own times, so that a content that comes back is the same content.
    contents: [std::path::PathBuf; 3],
}

impl Cohort {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let anat = folder.path().join("study/sub-01/anat");
        fs::create_dir_all(&anat).unwrap();
        fs::write(folder.path().join("study/dataset_description.json"), r#"{"Name":"x","BIDSVersion":"1.9.0"}"#)
            .unwrap();
        let contents = [head().join(scan(1)), study().join(scan(2)), study().join(scan(4))];
        let kept = ["a", "b", "truncated"].map(|name| folder.path().join(name));
        for (from, to) in contents.iter().zip(&kept) {
            fs::copy(from, to).unwrap();
        }
        Self { folder, contents: kept }
    }

    /// Moves a content into its place, and what was there back; a move keeps the file, and with it the content id.
    fn put(&self, from: Option<usize>, to: usize) {
        let place = self.folder.path().join("study/sub-01/anat/sub-01_T1w.nii.gz");
        if let Some(from) = from {
            fs::rename(&place, &self.contents[from]).unwrap();
        }
        fs::rename(&self.contents[to], &place).unwrap();
    }

    fn run(&self, more: &[&str]) -> Output {
        let cohort = self.folder.path().join("study").display().to_string();
        command(&[&quick_run(&cohort, &self.tables())[..], more].concat()).output().unwrap()
    }

    fn tables(&self) -> String {
        self.folder.path().join("tables").display().to_string()
    }

    fn one(&self, sql: &str) -> Vec<Value> {
        rows(&self.tables(), sql)
    }

    fn brain_ml(&self) -> f64 {
        let found = self.one("SELECT brain_volume_ml AS ml FROM scans");
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]["ml"].as_f64().unwrap()
    }
}

#[test]
fn a_content_that_comes_back_has_its_own_result_again() {
    let cohort = Cohort::new();
    cohort.put(None, 0);
    assert!(cohort.run(&[]).status.success());
    let of_a = cohort.brain_ml();
    cohort.put(Some(0), 1);
    assert!(cohort.run(&[]).status.success());
    let of_b = cohort.brain_ml();
    assert_ne!(of_a, of_b);
    cohort.put(Some(1), 0);
    let third = cohort.run(&[]);
    assert!(text(&third.stdout).contains("1 scans have an earlier content again"), "{}", printed(&third));
    assert_eq!(cohort.brain_ml(), of_a);
    assert_eq!(cohort.one("SELECT brain_volume_ml AS ml FROM scans s JOIN masks m ON m.run_id = s.run_id").len(), 1);

    // The exported mask lies on the grid of the content that is there.
    let to = cohort.folder.path().join("masks");
    let exported = program(&["export", "--tables", &cohort.tables(), "--to", path(&to)]);
    assert!(exported.status.success(), "{}", printed(&exported));
    // Nothing changes until the content does.
    let fourth = cohort.run(&[]);
    assert!(!text(&fourth.stdout).contains("have an earlier content again"), "{}", printed(&fourth));
    assert_eq!((cohort.brain_ml(), cohort.one("SELECT * FROM raw.reverts").len()), (of_a, 1));
    cohort.put(Some(0), 1);
    cohort.run(&[]);
    assert_eq!(cohort.brain_ml(), of_b);
    assert_eq!(cohort.one("SELECT scan_id FROM raw.scans").len(), 2, "no key is there twice");
}

#[test]
fn a_failure_is_over_when_the_good_content_comes_back_and_returns_with_the_bad_one() {
    let cohort = Cohort::new();
    let failures = || cohort.one("SELECT kind FROM failures").len();
    cohort.put(None, 0);
    cohort.run(&[]);
    cohort.put(Some(0), 2);
    cohort.run(&[]);
    assert_eq!(failures(), 1);
    cohort.put(Some(2), 0);
    cohort.run(&[]);
    assert_eq!((failures(), cohort.one("SELECT scan_id FROM scans").len()), (0, 1));
    let listed = program(&["failures", "--tables", &cohort.tables(), "--format", "csv"]);
    assert!(!text(&listed.stdout).contains("truncated"), "{}", printed(&listed));
    // The bad content is known, is not read again, and is the current failure.
    cohort.put(Some(0), 2);
    let known = cohort.run(&[]);
    assert!(text(&known.stderr).contains("1 quarantined"), "{}", printed(&known));
    assert_eq!(failures(), 1);
}

#[test]
fn the_settings_last_asked_for_decide_which_rows_are_shown() {
    let cohort = Cohort::new();
    cohort.put(None, 0);
    let recipe = || cohort.one("SELECT recipe_id FROM scans")[0]["recipe_id"].as_str().unwrap().to_owned();
    cohort.run(&[]);
    let first = recipe();
    cohort.run(&["--set", "score.mask_threshold=0.9"]);
    let second = recipe();
    assert_ne!(first, second);
    // Nothing is to be done, and yet the first settings are the current ones.
    let again = cohort.run(&[]);
    assert!(text(&again.stdout).contains("Nothing to do"), "{}", printed(&again));
    assert_eq!(recipe(), first);
    // The other recipe is shown where somebody asks for it.
    let of_second = ["sql", "--tables", &cohort.tables(), "--recipe", &second, "-c", "SELECT recipe_id FROM scans"];
    assert!(text(&program(&of_second).stdout).contains(&second));
    let recipes = cohort.one("SELECT recipe_id, current FROM recipes ORDER BY current DESC");
    assert_eq!(
        (recipes.len(), recipes[0]["recipe_id"].as_str(), &recipes[1]["current"]),
        (2, Some(&*first), &false.into())
    );
    // Scans that were screened with other settings are not mixed in.
    let of_first = cohort.one("SELECT count(DISTINCT recipe_id) AS n FROM scans");
    assert_eq!(of_first[0]["n"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_a_day_ahead_hides_no_later_result_and_no_later_failure() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let first = ["again", "heals"].map(|scan| finished("r1", scan, DAY_ONE + DAY, 0.1));
    let broken = failed("r1", "breaks", DAY_ONE + DAY, "truncated", 1);
    commit(&mut tables, "r1", [&first[..], &[broken]].concat()).await;
    // Other contents, in a night whose clock is right.
    let mut tables = open(folder.path()).await;
    let second = vec![
        finished("r2", "again", DAY_ONE, 0.9),
        failed("r2", "heals", DAY_ONE, "truncated", 1),
        finished("r2", "breaks", DAY_ONE, 0.5),
    ];
    commit(&mut tables, "r2", second).await;
    let seen = counts(
        &tables,
        [
            "scans WHERE scan_id = 'again' AND run_id = 'r2'",
            "scans WHERE run_id = 'r2'",
            "failures WHERE scan_id = 'heals'",
            "failures",
        ],
    );
    assert_eq!(seen.await, [1, 2, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_begin_at_the_same_time_have_numbers_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await);
    let place = folder.path().to_owned();
    let runs = (0..6).map(|i| {
        let place = place.clone();
        tokio::spawn(async move {
            let mut tables = open(&place).await;
            let mut row = run_row(&format!("run-{i}"), None, 0);
            tables.begin_run(&mut row).await.unwrap();
            row.run_number.unwrap()
        })
    });
    let mut numbers = Vec::new();
    for run in runs.collect::<Vec<_>>() {
        numbers.push(run.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    let mut tables = open(folder.path()).await;
    // A run that is begun again, as after an answer that was lost, keeps its row and its place.
    begin(&mut tables, "run-3").await;
    assert_eq!(counts(&tables, ["raw.runs", "runs WHERE run_number IS NOT NULL"]).await, [6, 6]);
}

/// Two data sets in folders of one name, each with a sub-01.
fn two_sites(folder: &Path) -> [String; 2] {
    [("a", head().join(scan(1))), ("b", study().join(scan(2)))].map(|(site, head)| {
        let bids = folder.join(site).join("bids");
        fs::create_dir_all(bids.join("sub-01/anat")).unwrap();
        fs::write(bids.join("dataset_description.json"), r#"{"Name":"x","BIDSVersion":"1.9.0"}"#).unwrap();
        fs::copy(head, bids.join("sub-01/anat/sub-01_T1w.nii.gz")).unwrap();
        bids.display().to_string()
    })
}

#[test]
fn two_data_sets_of_one_folder_name_are_not_taken_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = two_sites(folder.path());
    let tables = folder.path().join("tables").display().to_string();
    let run =
        |cohort: &str, more: &[&str]| command(&[&quick_run(cohort, &tables)[..], more].concat()).output().unwrap();
    assert!(run(&a, &[]).status.success());
    let refused = run(&b, &[]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("cohort.name=") && said.contains("cohort.moves=true"), "{said}");
    assert!(run(&b, &["--set", "cohort.name=site-b"]).status.success());
    assert_eq!(rows(&tables, "SELECT scan_id FROM scans").len(), 2);
    // The address of the first is written in other ways.
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&a, &link).unwrap();
    for same in [format!("{a}/"), format!("file://{a}"), format!("{a}/../bids")] {
        assert!(text(&run(&same, &[]).stdout).contains("Nothing to do"), "{same}");
    }
    let linked = run(path(&link), &["--set", "cohort.name=bids"]);
    assert!(text(&linked.stdout).contains("Nothing to do"), "{}", printed(&linked));
    // A cohort that has moved.
    let moved = folder.path().join("moved").join("bids");
    fs::create_dir(moved.parent().unwrap()).unwrap();
    fs::rename(&a, &moved).unwrap();
    assert_eq!(run(path(&moved), &[]).status.code(), Some(2));
    assert!(run(path(&moved), &["--set", "cohort.moves=true"]).status.success());
    assert!(run(path(&moved), &[]).status.success(), "its new address is known now");
    // The tables reveal no path of this machine.
    let stored = rows(&tables, "SELECT config, cohort_root FROM raw.runs");
    assert!(!stored.iter().any(|row| row.to_string().contains(path(folder.path()))), "{stored:?}");
}

/// The query for readers without the views, as `docs/operations.md` gives it.
fn documented_query() -> String {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let (_, rest) = page.split_once("<!-- current results -->\n```sql\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_query_gives_other_readers_the_rows_of_the_view() {
    use arrow::util::pretty::pretty_format_batches;
    let folder = tempfile::tempdir().unwrap();
    let mut tables = open(folder.path()).await;
    let first = ["a", "b", "c"].map(|scan| finished("r1", scan, DAY_ONE + DAY, 0.1));
    commit(&mut tables, "r1", first.to_vec()).await;
    let mut tables = open(folder.path()).await;
    begin(&mut tables, "r2").await;
    let reverted = neurosieve::tables::RevertRow {
        run_id: "r2".into(),
        run_number: 2,
        scan_id: "b".into(),
        content_id: "b-v1".into(),
        recipe_id: "recipe".into(),
        cohort: "study".into(),
    };
    tables.record_reverts(&[reverted]).await.unwrap();
    commit(&mut tables, "r3", vec![finished("r3", "a", DAY_ONE, 0.9)]).await;

    let context = neurosieve::query::session(&tables).await.unwrap();
    let shown = |sql: String| {
        let context = context.clone();
        async move {
            let batches = context.sql(&sql).await.unwrap().collect().await.unwrap();
            pretty_format_batches(&batches).unwrap().to_string()
        }
    };
    let of_view = shown("SELECT run_id, scan_id, anomaly_score FROM scans ORDER BY scan_id".into()).await;
    assert!(of_view.contains("r3") && of_view.lines().count() == 7, "{of_view}");
    for table in ["scans", "runs", "reverts"] {
        // The query names the tables as an outside reader has them.
        context.deregister_table(table).unwrap();
        context.sql(&format!("CREATE VIEW {table} AS SELECT * FROM raw.{table}")).await.unwrap();
    }
    let query = documented_query().trim_end().trim_end_matches(';').to_owned();
    let of_query = shown(format!("SELECT run_id, scan_id, anomaly_score FROM ({query}) ORDER BY scan_id")).await;
    assert_eq!(of_query, of_view);
}
