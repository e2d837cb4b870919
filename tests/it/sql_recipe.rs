//! `neurosieve sql --recipe`: the results of another recipe than the one last asked for, and the note about scans without one.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use neurosieve::tables::RunRow;
use serde_json::json;

use super::support::program::{command, program, text};
use super::support::results::{DAY_ONE, MINUTE, finished_with, open, run_row, write};
use super::support::shared::path;

/// Commits results of a recipe: scans with their scores.
async fn screened(folder: &Path, run_id: &str, recipe: &str, scans: &[(&str, f64)]) {
    let mut tables = open(folder).await;
    let mut row = RunRow { recipe_id: recipe.into(), ..run_row(run_id, None, 0) };
    tables.begin_run(&mut row).await.unwrap();
    let columns = json!({"recipe_id": recipe});
    let rows = scans.iter().map(|(scan, score)| finished_with(run_id, scan, DAY_ONE + MINUTE, *score, &columns));
    let receipts = write(tables.location(), vec![rows.collect()], 64).await;
    tables.commit(run_id, 0, &receipts).await.unwrap();
}

/// Three scans with the recipe `aa`, of which one was screened again with `bb`.
async fn two_recipes(folder: &Path) {
    screened(folder, "r1", "aa", &[("one", 0.1), ("two", 0.2), ("three", 0.3)]).await;
    screened(folder, "r2", "bb", &[("one", 0.9)]).await;
}

const SCORES: &str = "SELECT scan_id, round(anomaly_score, 1) AS score FROM scans ORDER BY scan_id";

fn sql(folder: &Path, options: &[&str]) -> Output {
    program(&[&["sql", "--tables", path(folder), "--format", "csv"], options].concat())
}

fn shell(folder: &Path, input: &str) -> Output {
    let mut shell = command(&["sql", "--tables", path(folder), "--format", "csv"]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    shell.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_recipe_is_shown_and_a_note_counts_the_scans_without_a_result() {
    let folder = tempfile::tempdir().unwrap();
    two_recipes(folder.path()).await;
    let last = sql(folder.path(), &["-c", SCORES]);
    assert_eq!(text(&last.stdout), "scan_id,score\none,0.9\n");
    let said = text(&last.stderr);
    assert_eq!((said.matches("2 of 3 scans have results of other recipes only").count(), said.lines().count()), (1, 1));

    let earlier = sql(folder.path(), &["--recipe", "aa", "-c", SCORES, "-c", "SELECT count(*) AS n FROM findings"]);
    assert_eq!(text(&earlier.stdout), "scan_id,score\none,0.1\nthree,0.3\ntwo,0.2\nn\n3\n");
    assert_eq!(text(&earlier.stderr), "", "no scan lacks this recipe");
    let shown = sql(folder.path(), &["--recipe", "aa", "-c", "SELECT recipe_id FROM recipes WHERE current"]);
    assert_eq!(text(&shown.stdout), "recipe_id\naa\n");

    // A run that finds nothing to do makes its recipe the one that is shown.
    let mut tables = open(folder.path()).await;
    let idle = RunRow { recipe_id: "aa".into(), n_already_done: 3, ..run_row("r3", Some(DAY_ONE), 0) };
    tables.begin_run(&mut idle.clone()).await.unwrap();
    tables.end_run(&idle).await.unwrap();
    let again = sql(folder.path(), &["-c", SCORES]);
    assert_eq!((text(&again.stdout).lines().count(), text(&again.stderr)), (4, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_recipe_is_refused_with_those_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await);
    assert!(
        text(&sql(folder.path(), &["--recipe", "aa", "-c", SCORES]).stderr).contains("no run has begun to screen yet")
    );
    two_recipes(folder.path()).await;
    for unknown in ["cc", "a", "' OR 1=1 --"] {
        let refused = sql(folder.path(), &["--recipe", unknown, "-c", SCORES]);
        let said = text(&refused.stderr);
        assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(2), String::new()), "{said}");
        assert!(said.contains(&format!("no recipe `{unknown}`")), "{said}");
        assert!(
            said.contains("\n  bb  cohort study, last asked for 2026-01-01") && said.contains(", shown\n  aa  "),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_changes_the_recipe_and_views_of_ones_own_keep_theirs() {
    let folder = tempfile::tempdir().unwrap();
    two_recipes(folder.path()).await;
    let counts = "SELECT count(*) AS n FROM scans;\n";
    let input = format!(
        "{counts}CREATE VIEW newer AS SELECT * FROM scans;\nSET datafusion.catalog.default_schema = 'raw';\n\\recipe aa\n\
         RESET datafusion.catalog.default_schema;\n{counts}\
         SELECT n.anomaly_score > o.anomaly_score AS rose FROM public.newer n JOIN scans o ON o.scan_id = n.scan_id;\n\
         \\recipe last\n{counts}\\recipe nothing\n"
    );
    let output = shell(folder.path(), &input);
    assert_eq!(text(&output.stdout), "n\n1\nn\n3\nrose\ntrue\nn\n1\n");
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.matches("note: 2 of 3 scans").count()), (Some(1), 2), "{said}");
    assert!(said.contains("no recipe `nothing`"), "{said}");
    let listed = text(&shell(folder.path(), "\\recipe\n").stdout);
    assert!(listed.starts_with("cohort,recipe_id,shown,") && listed.contains("study,bb,true,"), "{listed}");
    assert!(listed.contains("study,aa,false,"), "{listed}");
}
