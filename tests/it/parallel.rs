//! Runs side by side on the same tables: shards of a cohort, and two runs on all of it.

use std::fs::File;
use std::process::{Output, Stdio};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::support::cohorts::scan_id;
use super::support::program::{WITHOUT_NETWORKS, command, ok, printed, rows, screening};
use super::support::shared::{copy, path, sharded, study};

#[test]
fn two_shards_at_the_same_time_screen_every_scan_once() {
    let all = rows(sharded(), "SELECT scan_id FROM raw.scans UNION ALL SELECT scan_id FROM raw.failures ORDER BY 1");
    let ids: Vec<&str> = all.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6].map(|n| scan_id("study", n)));
}

#[test]
fn two_runs_on_the_whole_cohort_at_the_same_time_leave_one_result_of_each_scan() {
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let runs = [1, 2].map(|_| {
        let mut run = screening(path(study()), tables, &["--set", "tables.commit_scans=1"]);
        run.args(WITHOUT_NETWORKS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    for mut run in runs {
        assert!([0, 3].contains(&run.wait().unwrap().code().unwrap()));
    }
    let scans = rows(tables, "SELECT scan_id, count(*) AS n FROM raw.scans GROUP BY 1");
    assert!(scans.len() == 3 && scans.iter().all(|scan| scan["n"] == 1), "{scans:?}");
}

/// Runs each pair of commands at the same time, on the same tables.
#[test]
fn every_pair_of_commands_of_the_program_at_once_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [tables, export] = ["tables", "export"].map(|name| folder.path().join(name));
    let (cohort, tables) = (path(study()), &*copy(sharded(), &tables));
    let recipe = rows(tables, "SELECT recipe_id FROM recipes")[0]["recipe_id"].as_str().unwrap().to_owned();
    let [forgotten, kept @ ..] = [1, 2, 3].map(|n| scan_id("study", n));
    let of_tables = |words: &[&str]| command(&[&["tables"], words, &["--tables", tables]].concat());
    let run = || {
        let mut run = screening(cohort, tables, &WITHOUT_NETWORKS);
        run.stdout(Stdio::piped()).stderr(Stdio::piped());
        run
    };
    let start = |name: &str| {
        let mut command = match name {
            "run" => run(),
            "export" => of_tables(&["export", "--to", path(&export), "--overwrite"]),
            "retain" => of_tables(&["retain", "--recipe", &recipe, "--days", "30", "--even-current"]),
            "forget" => of_tables(&["forget", "--scan", &forgotten]),
            "repair" => of_tables(&["check", "--repair"]),
            other => of_tables(&[other]),
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let names = ["run", "optimize", "vacuum", "export", "retain", "forget", "repair"];
    let mut times_forgotten = 0;
    for (at, one) in names.into_iter().enumerate() {
        for other in names.into_iter().skip(at) {
            if [one, other].contains(&"forget") {
                // So that there is something to forget.
                assert!(matches!(run().status().unwrap().code(), Some(0 | 3)));
            }
            let ended = [one, other].map(start).map(|child| child.wait_with_output().unwrap());
            for output in &ended {
                let said = printed(output);
                let refused = said.contains("another process is") || said.contains("no row names");
                // What is forgotten is deleted at once, also below a command that reads it.
                let deleted = other == "forget" && said.contains("Where a person was forgotten meanwhile");
                let expected = match (refused, deleted) {
                    (true, _) => &[2][..],
                    (_, true) => &[1],
                    _ => &[0, 3],
                };
                assert!(expected.contains(&output.status.code().unwrap()), "{one} and {other}: {said}");
            }
            let done = |output: &Output| matches!(output.status.code(), Some(0 | 3));
            assert!(ended.iter().any(done), "{one} and {other}: neither was done");
            let sane = ok(&["tables", "check", "--tables", tables]);
            assert!(sane.contains("no row is doubled, missing or without a result"), "{one} and {other}: {sane}");
            let scans = rows(tables, "SELECT scan_id, count(*) AS n FROM raw.scans GROUP BY 1");
            let times = |id: &str| scans.iter().find(|row| row["scan_id"] == id).map(|row| row["n"].as_u64().unwrap());
            assert!(kept.iter().all(|id| times(id) == Some(1)), "{one} and {other}: {scans:?}");
            match times(&forgotten) {
                None => times_forgotten += 1,
                n => assert_eq!(n, Some(1), "{one} and {other}"),
            }
        }
    }
    assert!(times_forgotten > 0, "no row was forgotten");
    let exported = File::open(export.join("tokens.parquet")).unwrap();
    assert!(ParquetRecordBatchReaderBuilder::try_new(exported).is_ok());
}
