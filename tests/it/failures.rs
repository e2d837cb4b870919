//! Scans that fail: how they are listed, when they are tried again, and when a run gives up.

use serde_json::Value;

use super::support::cohorts::synth;
use super::support::program::{WITHOUT_NETWORKS, ok, printed, rows, screen, text};
use super::support::shared::{copy, path, sharded, study};

/// What `neurosieve failures` lists, one scan a row.
fn failures(tables: &str, more: &[&str]) -> Vec<Value> {
    let printed = ok(&[&["failures", "--tables", tables, "--scans", "--format", "json"], more].concat());
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn failures_are_counted_by_reason_and_listed_by_stage_and_kind() {
    assert!(ok(&["failures", "--tables", sharded()]).contains("truncated"));
    assert_eq!(failures(sharded(), &["--stage", "decode"]).len(), 3);
    assert_eq!(failures(sharded(), &["--kind", "it's no kind"]).len(), 0);
}

#[test]
fn a_scan_that_failed_for_good_is_tried_again_only_with_retry() {
    let folder = tempfile::tempdir().unwrap();
    let tables = copy(sharded(), folder.path());
    let screen = |more: &[&str]| screen(path(study()), &tables, &[&WITHOUT_NETWORKS, more].concat());
    let run = screen(&[]);
    let said = text(&run.stdout);
    assert!(said.contains("Nothing to do. Selected scans without a result from earlier runs: 3."), "{}", printed(&run));
    assert!(!said.contains("every selected scan has a result") && said.contains("neurosieve failures"), "{said}");
    assert_eq!(run.status.code(), Some(3), "{}", printed(&run));
    assert_eq!(screen(&["--retry"]).status.code(), Some(3));
    let failures = failures(&tables, &[]);
    assert!(failures.len() == 3 && failures.iter().all(|failure| failure["attempts"] == 2), "{failures:?}");
}

#[test]
fn a_run_gives_up_when_too_many_scans_fail_and_keeps_what_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (tables, report) = (folder.path().join("tables"), folder.path().join("report.json"));
    let tables = path(&tables);
    let limit = ["--max-failures", "0", "--set", "run.scans_in_flight=1", "--report", path(&report)];
    let run = screen(path(study()), tables, &[&WITHOUT_NETWORKS[..], &limit].concat());
    assert_eq!(run.status.code(), Some(5), "{}", printed(&run));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    assert_eq!((&report["outcome"], &report["pending"]), (&"gave_up".into(), &6.into()));
    assert_eq!((&report["run"]["status"], &report["failed"]), (&"gave_up".into(), &1.into()));
    let ended = report["done"].as_u64().unwrap() + report["failed"].as_u64().unwrap();
    assert!(ended < 6, "{report}");
    let kept = rows(tables, "SELECT scan_id FROM scans UNION ALL SELECT scan_id FROM failures");
    assert_eq!(kept.len() as u64, ended);
}

#[test]
fn a_share_of_failures_is_judged_at_the_end_of_a_small_cohort_too() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    let run = screen(path(study()), path(&tables), &[&WITHOUT_NETWORKS[..], &["--max-failures", "10%"]].concat());
    assert_eq!(run.status.code(), Some(5), "{}", printed(&run));
    assert!(text(&run.stderr).contains("run.max_failures"), "{}", printed(&run));
}

#[test]
fn an_empty_cohort_is_an_error_unless_it_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    std::fs::create_dir(&cohort).unwrap();
    let empty = screen(path(&cohort), path(&tables), &WITHOUT_NETWORKS);
    assert_eq!(empty.status.code(), Some(2), "{}", printed(&empty));
    assert!(!tables.exists());
    let allowed = screen(path(&cohort), path(&tables), &[&WITHOUT_NETWORKS[..], &["--allow-empty"]].concat());
    assert_eq!(allowed.status.code(), Some(0), "{}", printed(&allowed));
    assert!(text(&allowed.stdout).contains("no scan of the cohort is selected"), "{}", printed(&allowed));
    assert_eq!(rows(path(&tables), "SELECT status FROM runs")[0]["status"], "finished");
}

#[test]
fn a_scan_above_the_largest_size_is_tried_again_when_the_limit_is_raised() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    synth(path(&cohort), &["--subjects", "1", "--lesions", "0", "--spacing", "2"]);
    let run = |mib: u64| {
        let limit = format!("run.max_scan_mib={mib}");
        screen(path(&cohort), path(&tables), &[&WITHOUT_NETWORKS[..], &["--set", &limit]].concat())
    };
    assert_eq!(run(1).status.code(), Some(3));
    let failed = &rows(path(&tables), "SELECT kind, permanent, needs_bytes FROM failures")[0];
    assert_eq!((&failed["kind"], &failed["needs_bytes"]), (&"too_large".into(), &((1 << 20) + 1).into()), "{failed}");
    let same = run(1);
    assert!(text(&same.stdout).contains("Nothing to do"), "{}", printed(&same));
    let raised = run(500);
    assert_eq!(raised.status.code(), Some(0), "{}", printed(&raised));
    assert_eq!(rows(path(&tables), "SELECT 1 FROM failures").len(), 0);
}
