//! The log that `NEUROSIEVE_LOG` switches on.

use serde_json::Value;

use super::support::cohorts::{scan_id, synth};
use super::support::program::{WITHOUT_NETWORKS, screening, text};
use super::support::shared::path;

#[test]
fn the_log_is_json_with_a_span_for_each_scan_and_names_no_folder_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "2", "--spacing", "4", "--lesions", "0", "--corrupt", "1"]);
    let mut run = screening(path(&cohort), path(&tables), &WITHOUT_NETWORKS);
    let printed = text(&run.env("NEUROSIEVE_LOG", "neurosieve=debug").output().unwrap().stderr);
    let log: Vec<Value> =
        printed.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |n: usize| log.iter().find(|entry| entry["span"]["scan_id"] == scan_id("study", n));
    assert_eq!(of(1).unwrap()["fields"]["message"], "done", "{printed}");
    let failed = of(2).unwrap();
    assert_eq!((&failed["level"], &failed["fields"]["stage"]), (&"WARN".into(), &"decode".into()), "{printed}");
    assert!(!printed.contains(path(folder.path())), "{printed}");
}
