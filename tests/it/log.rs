//! The log that `NEUROSIEVE_LOG` switches on.

use serde_json::Value;

use super::support::cohorts::{scan, scan_id, synth};
use super::support::program::{WITHOUT_NETWORKS, ok, rows, screening, text};
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
    let mut looked_at = 0;
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
            looked_at += 1;
        }
    }
    assert!(looked_at > 20, "{looked_at} files");
    // Data files are compressed.
    for table in ["scans", "failures", "runs"] {
        let rows = rows(path(&tables), &format!("SELECT * FROM raw.{table}"));
        assert!(!rows.is_empty() && !format!("{rows:?}").contains("canary-of-a-path"), "{rows:?}");
    }
}
