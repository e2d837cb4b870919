//! Texts beside the scans that are far larger than they should be: each is read within bounds, or refused with advice.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::support::program::{command, ok, program, text, with_peak_memory};
use super::support::shared::path;

/// A cohort of three subjects, of whom nothing but names is read.
fn cohort(root: &Path) {
    for n in 1..=3 {
        let folder = root.join(format!("sub-{n:07}/anat"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("sub-{n:07}_T1w.nii.gz")), "x").unwrap();
    }
}

/// The memory that the listing takes, in MiB.
fn peak_mib(root: &Path, options: &[&str]) -> usize {
    let mut listing = command(&[&["cohort", path(root), "--json"], options].concat());
    listing.stdout(Stdio::null());
    let (status, peak) = with_peak_memory(listing);
    assert!(status.success());
    peak
}

#[test]
fn a_participants_table_of_a_million_subjects_takes_no_memory_for_those_without_a_scan() {
    let folder = tempfile::tempdir().unwrap();
    cohort(folder.path());
    let mut table = "participant_id\tsplit\tnote\n".to_owned();
    for n in 1..=1_000_000 {
        writeln!(table, "sub-{n:07}\t{}\tn/a", ["test", "train"][n % 2]).unwrap();
    }
    fs::write(folder.path().join("participants.tsv"), &table).unwrap();
    let (without, with) = (peak_mib(folder.path(), &[]), peak_mib(folder.path(), &["--where", "split=train"]));
    println!("{} MB: {without} MiB without the table, {with} MiB with it", table.len() / 1_000_000);
    assert!(with < without + 32, "{with} MiB, without the table {without} MiB");
    let listed = ok(&["cohort", path(folder.path()), "--where", "split=train"]);
    assert!(listed.contains("2 scans selected"), "{listed}");

    let refused = program(&["cohort", path(folder.path()), "--where", "split=train", "--participants-mib", "3"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("more than cohort.select.participants_mib allows (3 MiB)"), "{said}");
}

#[test]
fn a_bidsignore_with_too_many_patterns_is_refused_and_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    cohort(folder.path());
    let ignore = folder.path().join(".bidsignore");
    for content in [(0..5000).map(|n| format!("**/*{n}*\n")).collect(), "# x\n".repeat(300_000)] {
        fs::write(&ignore, content).unwrap();
        let refused = program(&["cohort", path(folder.path())]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(".bidsignore has") && said.contains("--ignored"), "{said}");
        assert!(ok(&["cohort", path(folder.path()), "--ignored"]).contains("3 scans selected"));
    }
}

#[test]
fn a_dataset_description_of_many_megabytes_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    cohort(folder.path());
    let without = peak_mib(folder.path(), &[]);
    let content = format!("{{\"Name\": [{}0]}}", "[],".repeat(5_000_000));
    for n in 0..8 {
        let inner = folder.path().join(format!("inner{n}"));
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("dataset_description.json"), &content).unwrap();
    }
    let with = peak_mib(folder.path(), &[]);
    assert!(with < without + 32, "{with} MiB, without the descriptions {without} MiB");
}
