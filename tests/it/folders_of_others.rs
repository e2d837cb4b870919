//! Folders that hold files of other programs or people: no command writes among them or over them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::support::cohorts::scan;
use super::support::program::{WITHOUT_NETWORKS, ok, program, screen, text};
use super::support::shared::{copy, head, path, sharded};

const STUDY: &str = r#"{"Name":"My study","BIDSVersion":"1.9.0","Authors":["A","B"],"License":"CC0"}"#;

/// Files, links and folders below a folder, with the content of the files.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let content = if entry.is_file() { fs::read(&entry).unwrap() } else { Vec::new() };
        if entry.is_dir() && !entry.is_symlink() {
            all.extend(contents(&entry));
        }
        all.insert(entry, content);
    }
    all
}

/// A raw data set with one scan of the name that the tables know.
fn raw_data_set(folder: &Path) {
    let scan = folder.join(scan(1));
    fs::create_dir_all(scan.parent().unwrap()).unwrap();
    fs::write(scan, "voxels").unwrap();
    fs::write(folder.join("dataset_description.json"), STUDY).unwrap();
}

fn export(to: &Path) -> Output {
    program(&["export", "--tables", sharded(), "--to", path(to)])
}

fn refused(output: &Output, advice: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(advice), "no `{advice}` in {said}");
}

#[test]
fn an_export_into_the_raw_data_set_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    raw_data_set(folder.path());
    let before = contents(folder.path());
    refused(&export(folder.path()), "derivatives/neurosieve");
    refused(&export(&folder.path().join("sub-new")), "derivatives/neurosieve");
    refused(&export(&folder.path().join("sub-synth001/anat")), "derivatives/neurosieve");
    refused(
        &program(&["export", "--tables", sharded(), "--to", &format!("file://{}", path(folder.path()))]),
        "derivatives",
    );
    assert_eq!(contents(folder.path()), before);
    let derivatives = folder.path().join("derivatives/neurosieve");
    assert!(export(&derivatives).status.success());
    assert!(derivatives.join("sub-synth001/anat/sub-synth001_desc-anomaly_mask.nii.gz").exists());
}

#[test]
fn an_export_into_any_folder_of_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = |name: &str, file: &str, content: &str| {
        let to = folder.path().join(name);
        fs::create_dir_all(&to).unwrap();
        fs::write(to.join(file), content).unwrap();
        to
    };
    let fmriprep = r#"{"Name":"fMRIPrep","DatasetType":"derivative","GeneratedBy":[{"Name":"fMRIPrep"}]}"#;
    let chain = r#"{"Name":"x","GeneratedBy":[{"Name":"fMRIPrep"},{"Name":"neurosieve"}]}"#;
    let synthetic = r#"{"Name":"x","GeneratedBy":[{"Name":"neurosieve synth"}]}"#;
    let places = [
        other("fmriprep", "dataset_description.json", fmriprep),
        other("chain", "dataset_description.json", chain),
        other("synthetic", "dataset_description.json", synthetic),
        other("broken", "dataset_description.json", "{"),
        other("no-object", "dataset_description.json", "[1]"),
        other("notes", "notes.txt", "mine"),
        other("hidden", ".bidsignore", "x"),
        other("bom", "dataset_description.json", &format!("\u{feff}{STUDY}")),
    ];
    fs::create_dir_all(folder.path().join("nested/empty")).unwrap();
    symlink(folder.path().join("notes"), folder.path().join("link")).unwrap();
    let before = contents(folder.path());
    for place in places.iter().chain(&[folder.path().join("nested"), folder.path().join("link")]) {
        refused(&export(place), "earlier `neurosieve export`");
    }
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn an_export_among_the_tables_is_refused_and_makes_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let tables = copy(sharded(), &folder.path().join("tables"));
    symlink(&tables, folder.path().join("link")).unwrap();
    let before = contents(folder.path());
    for to in ["tables", "tables/export", "tables/masks", "tables/scans/new", "link/new", "link/masks"] {
        let to = folder.path().join(to);
        refused(&program(&["export", "--tables", &tables, "--to", path(&to)]), "result tables");
        refused(&program(&["tables", "export", "--tables", &tables, "--to", path(&to)]), "outside");
    }
    assert_eq!(contents(folder.path()), before);
    let unknown = folder.path().join("new");
    let output = program(&["export", "--tables", &tables, "--to", path(&unknown), "--scan", "none"]);
    refused(&output, "none");
    assert!(!unknown.exists());
}

#[test]
fn an_earlier_export_is_updated_and_keeps_its_edited_description() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    assert!(export(&to).status.success());
    let first = contents(&to);
    assert!(export(&to).status.success());
    assert_eq!(contents(&to), first);

    let file = to.join("dataset_description.json");
    let mut description: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    description["Authors"] = serde_json::json!(["A"]);
    fs::write(&file, description.to_string()).unwrap();
    assert!(export(&to).status.success());
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept, description);
}

#[test]
fn a_link_inside_an_earlier_export_leads_no_file_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, to) = (folder.path().join("raw"), folder.path().join("out"));
    raw_data_set(&raw);
    assert!(export(&to).status.success());
    fs::remove_dir_all(to.join("sub-synth001")).unwrap();
    symlink(raw.join("sub-synth001"), to.join("sub-synth001")).unwrap();
    let before = contents(&raw);
    refused(&export(&to), "is a link");
    assert_eq!(contents(&raw), before);
}

#[test]
fn plain_tables_replace_files_only_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("plain");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("scans.csv"), "mine").unwrap();
    let export = |more: &[&str]| {
        let arguments = ["tables", "export", "--tables", sharded(), "--format", "csv", "--to", path(&to)];
        program(&[&arguments, more].concat())
    };
    refused(&export(&[]), "--overwrite");
    assert_eq!(contents(&to).len(), 1);
    assert!(export(&["--overwrite"]).status.success());
    assert!(fs::read_to_string(to.join("scans.csv")).unwrap().starts_with("run_id,"));
    let elsewhere = folder.path().join("elsewhere.csv");
    fs::write(&elsewhere, "mine").unwrap();
    fs::remove_file(to.join("scans.csv")).unwrap();
    symlink(&elsewhere, to.join("scans.csv")).unwrap();
    refused(&export(&["--overwrite"]), "is a link");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
}

#[test]
fn tables_are_not_created_among_files_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let (study, other) = (folder.path().join("study"), folder.path().join("other"));
    raw_data_set(&study);
    fs::create_dir_all(other.join("masks")).unwrap();
    fs::write(other.join("masks/brain.nii.gz"), "mine").unwrap();
    let before = contents(&study);
    refused(&screen(path(head()), path(&study), &WITHOUT_NETWORKS), "a new folder of their own");
    assert_eq!(contents(&study), before);
    refused(&screen(path(head()), path(&other), &WITHOUT_NETWORKS), "`masks` holds files");
    assert_eq!(fs::read_to_string(other.join("masks/brain.nii.gz")).unwrap(), "mine");
}

#[test]
fn synth_and_inspect_leave_a_data_set_of_others_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    raw_data_set(folder.path());
    let copied = folder.path().join(scan(1));
    fs::copy(head().join(scan(1)), &copied).unwrap();
    let before = contents(folder.path());
    for force in [&[][..], &["--force"]] {
        let arguments = ["synth", path(folder.path()), "--subjects", "1", "--spacing", "4"];
        refused(&program(&[&arguments, force].concat()), "another folder");
    }
    refused(&program(&["inspect", path(&copied), "--json", "--png", path(&copied)]), "the scan itself");
    refused(&program(&["inspect", path(&copied), "--json", "--nifti", path(folder.path())]), "a folder of its own");
    assert_eq!(contents(folder.path()), before);

    let own = folder.path().join("synthetic");
    let arguments = ["synth", path(&own), "--subjects", "1", "--spacing", "4"];
    ok(&arguments);
    ok(&[&arguments[..], &["--force"]].concat());
}

#[test]
fn reports_are_not_written_among_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    let tables = copy(sharded(), &folder.path().join("tables"));
    let before = contents(folder.path());
    let report = folder.path().join("tables/scans/_delta_log/00000000000000000009.json");
    let more = [&WITHOUT_NETWORKS[..], &["--report", path(&report)]].concat();
    refused(&screen(path(head()), &tables, &more), "outside");
    assert_eq!(contents(folder.path()), before);
}
