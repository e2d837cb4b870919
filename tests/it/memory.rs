//! Contract 5: memory stays within the budget. `s3.rs` has the same of large volumes before a slow store.

use std::path::Path;

use super::support::cohorts::synth;
use super::support::program::{screen, screening, text, with_peak_memory};
use super::support::shared::{path, study};

#[test]
fn a_run_on_scans_of_1_mm_stays_within_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "6", "--lesions", "0", "--spacing", "1"]);
    let cores = std::thread::available_parallelism().unwrap().get();
    // Room for two such scans at a time, whatever the number of cores.
    let budget_mib = 384 + 96 * cores + 600;
    let budget = format!("run.memory_mib={budget_mib}");
    let more = ["--set", "run.scans_in_flight=6", "--set", &budget];
    let (status, peak_mib) = with_peak_memory(screening(path(&cohort), path(&tables), &more));
    assert!(status.success());
    println!("peak {peak_mib} MiB of {budget_mib}");
    assert!(peak_mib > 100 && peak_mib as f64 <= 1.15 * budget_mib as f64, "{peak_mib} MiB, budget {budget_mib} MiB");
}

#[test]
fn too_little_memory_is_refused_before_tables_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables").display().to_string();
    let run = screen(path(study()), &tables, &["--set", "run.memory_mib=100"]);
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("run.memory_mib") && !Path::new(&tables).exists());
}
