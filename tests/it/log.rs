//! The log that `NEUROSIEVE_LOG` switches on.

use std::process::Stdio;

use serde_json::Value;

use super::schedule::Scheduled;
use super::support::cohorts::{scan, scan_id, synth};
use super::support::program::{WITHOUT_NETWORKS, ok, rows, screening, text};
use super::support::shared::{path, study};

#[test]
fn the_log_is_json_with_a_span_for_each_scan_and_names_no_folder_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "2", "--spacing", "4", "--lesions", "0", "--corrupt", "1"]);
    let mut run = screening(path(&cohort), path(&tables), &WITHOUT_NETWORKS);
    run.args(["--log-format", "json"]);
    let printed = text(&run.env("NEUROSIEVE_LOG", "neurosieve=debug").output().unwrap().stderr);
    let log: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |n: usize| log.iter().find(|entry| entry["span"]["scan_id"] == scan_id("study", n));
    assert_eq!(of(1).unwrap()["fields"]["message"], "done", "{printed}");
    let failed = of(2).unwrap();
    assert_eq!((&failed["level"], &failed["fields"]["stage"]), (&"WARN".into(), &"decode".into()), "{printed}");
    assert!(!printed.contains(path(folder.path())), "{printed}");
}

/// Canaries: the folder's name is in every path of the machine.
#[test]
fn no_file_of_the_tables_says_where_a_machine_keeps_its_files() {
    let folder = tempfile::Builder::new().prefix("canary-of-a-path").tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "3", "--spacing", "4", "--lesions", "0", "--corrupt", "1"]);
    // A folder with the name of a scan cannot be read as one.
    let unreadable = cohort.join(scan(2));
    std::fs::remove_file(&unreadable).unwrap();
    std::fs::create_dir(&unreadable).unwrap();
    for _ in 0..2 {
        screening(path(&cohort), path(&tables), &WITHOUT_NETWORKS).output().unwrap();
    }
    ok(&["tables", "optimize", "--tables", path(&tables)]);
    ok(&["tables", "check", "--tables", path(&tables)]);
    let mut inspected = 0;
    let mut folders = vec![tables.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let bytes = std::fs::read(&entry).unwrap();
            let name = b"canary-of-a-path";
            assert!(!bytes.windows(name.len()).any(|window| window == name), "{}", entry.display());
            inspected += 1;
        }
    }
    assert!(inspected > 20, "{inspected} files");
    // Data files are compressed.
    for table in ["scans", "failures", "runs"] {
        let rows = rows(path(&tables), &format!("SELECT * FROM raw.{table}"));
        assert!(!rows.is_empty() && !format!("{rows:?}").contains("canary-of-a-path"), "{rows:?}");
    }
}

/// What two runs on the same scans and tables print at the same time on the standard error.
fn two_runs(more: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let runs = [1, 2].map(|_| {
        let mut run = screening(path(study()), path(folder.path()), &["--set", "tables.commit_scans=1"]);
        run.args(WITHOUT_NETWORKS).args(more).env("NEUROSIEVE_LOG", "info");
        run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    });
    runs.map(|run| text(&run.wait_with_output().unwrap().stderr)).concat()
}

#[test]
fn the_log_of_two_runs_on_the_same_tables_has_time_and_level_on_every_line_and_no_error() {
    let printed = two_runs(&[]);
    assert!(printed.contains("6 scans selected"), "{printed}");
    for line in printed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(chrono::DateTime::parse_from_rfc3339(words[0]).is_ok(), "{line}");
        assert!(["INFO", "WARN"].contains(&words[1]), "{line}");
    }
    let printed = two_runs(&["--log-format", "json"]);
    for line in printed.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            entry["timestamp"].is_string() && ["INFO", "WARN"].contains(&entry["level"].as_str().unwrap()),
            "{line}"
        );
    }
}

#[test]
fn a_schedule_and_its_end_in_an_error_are_json_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    let mut command = Scheduled::command(path(&absent), path(folder.path()), &["--log-format=json"]);
    let printed = text(&command.output().unwrap().stderr);
    let last: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR", "{printed}");
    let mut schedule = Scheduled::start(path(study()), path(folder.path()), &["--now", "--log-format=json"]);
    schedule.prints("3 scans done");
    for line in schedule.ends().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}
