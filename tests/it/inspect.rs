//! `neurosieve inspect` and `neurosieve eval`: the real program on a synthetic head.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn program(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neurosieve")).args(arguments).current_dir(folder).output().unwrap()
}

/// A folder with one synthetic subject, and its scan's path in it.
fn head() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let made = program(&["synth", "cohort", "--subjects", "1", "--lesions", "0", "--corrupt", "0"], folder.path());
    assert!(made.status.success(), "{made:?}");
    (folder, "cohort/sub-synth001/anat/sub-synth001_T1w.nii.gz".to_owned())
}

#[test]
fn a_scan_is_shown_in_numbers_as_a_picture_and_step_by_step() {
    let (folder, scan) = head();
    let shown = program(&["inspect", &scan, "--nifti", "steps"], folder.path());
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    for words in ["a whole head", "brain volume", "native to MNI, mm", "Not a medical device"] {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
    let picture = std::fs::read(folder.path().join("sub-synth001_T1w_inspect.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    let mut files: Vec<String> = std::fs::read_dir(folder.path().join("steps"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let names = ["1working", "2firstmask", "3mask", "4field", "5corrected", "6mni", "7mnimask"];
    assert_eq!(files, names.map(|name| format!("sub-synth001_T1w_step-{name}.nii.gz")));
}

#[test]
fn json_has_the_numbers_and_no_picture_is_left_behind() {
    let (folder, scan) = head();
    let shown = program(&["inspect", &scan, "--json", "--repeat", "2"], folder.path());
    let told: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(told["to_mni"].as_array().unwrap().len(), 12);
    assert!((900.0..2000.0).contains(&told["brain_volume_ml"].as_f64().unwrap()), "{told}");
    assert!(told["registration_ncc"].as_f64().unwrap() > 0.7, "{told}");
    for step in ["decode", "conform", "skull_strip", "bias", "register", "resample", "normalize", "qc"] {
        assert!(told["timings_ms"][step].as_f64().unwrap() >= 0.0, "{step}");
    }
    let total: f64 = told["timings_ms"].as_object().unwrap().values().map(|ms| ms.as_f64().unwrap()).sum();
    assert!(total > 0.0 && told["core_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the cohort is there");
}

#[test]
fn what_is_no_scan_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.nii.gz"), "not an image").unwrap();
    let shown = program(&["inspect", "notes.nii.gz"], folder.path());
    assert_eq!(shown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&shown.stderr).starts_with("error: "), "{shown:?}");
    let shown = program(&["inspect", "missing.nii.gz"], folder.path());
    assert!(String::from_utf8_lossy(&shown.stderr).contains("missing.nii.gz"), "{shown:?}");
}

#[test]
fn evaluation_names_every_bar_it_has_data_for() {
    let (folder, _) = head();
    let run = program(&["eval", "preprocess", "--cohort", "cohort", "--moves", "1", "--json", "e.json"], folder.path());
    let text = String::from_utf8(run.stdout).unwrap();
    for bar in
        ["scans refused", "registered again", "Dice with the template's", "variation in white matter", "lesion masks"]
    {
        assert!(text.contains(bar), "no `{bar}` in\n{text}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("e.json")).unwrap()).unwrap();
    let bars = report["bars"].as_array().unwrap();
    let missed = bars.iter().any(|bar| bar["reached"] == false);
    assert_eq!(run.status.code(), Some(i32::from(missed)), "{text}");
    assert_eq!(report["scans"].as_array().unwrap().len(), 1);
    // No reference mask and one site: bars without data are left out, not passed.
    assert!(!text.contains("Dice with reference") && !text.contains("two sites"), "{text}");
    let none = program(&["eval", "preprocess", "--cohort", "cohort", "--split", "val"], folder.path());
    assert_eq!(none.status.code(), Some(2), "{none:?}");
}
