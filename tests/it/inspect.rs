//! `neurosieve inspect` and `neurosieve eval`: the real program on a synthetic head.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Output;

use neurosieve::volume::nifti;
use serde_json::Value;

use super::support::cohorts::scan;
use super::support::program::{command_in, text};
use super::support::root;
use super::support::shared::{head, path};

fn program(arguments: &[&str], folder: &Path) -> Output {
    command_in(folder, arguments).output().unwrap()
}

#[test]
fn inspect_prints_the_numbers_of_a_scan_and_writes_a_picture_and_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let shown = program(&["inspect", path(&head().join(scan(1))), "--nifti", "steps"], folder.path());
    let printed = text(&shown.stdout);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    for words in ["a whole head", "brain volume", "native to MNI, mm", "Not a medical device"] {
        assert!(printed.contains(words), "no `{words}` in\n{printed}");
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
fn what_inspect_writes_is_empty_outside_the_brain_unless_the_head_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let outside = |into: &str, more: &[&str]| {
        let scan = head().join(scan(1));
        let shown = program(&[&["inspect", path(&scan), "--json", "--nifti", into], more].concat(), folder.path());
        assert!(shown.status.success(), "{}", text(&shown.stderr));
        let read = |step: &str| {
            let file = folder.path().join(into).join(format!("sub-synth001_T1w_step-{step}.nii.gz"));
            nifti::decode(&std::fs::read(file).unwrap(), 1 << 30).unwrap().volume
        };
        let mask = read("3mask");
        ["1working", "5corrected"].map(|step| {
            let voxels = read(step).data.into_iter().zip(&mask.data);
            voxels.filter(|&(v, &inside)| inside == 0.0 && v != 0.0).count()
        })
    };
    assert_eq!(outside("brain", &[]), [0, 0]);
    assert!(outside("head", &["--with-head"]).iter().all(|&voxels| voxels > 10_000));
}

#[test]
fn inspect_with_json_prints_the_numbers_and_writes_no_picture() {
    let folder = tempfile::tempdir().unwrap();
    let shown = program(&["inspect", path(&head().join(scan(1))), "--json", "--repeat", "2"], folder.path());
    let measures: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(measures["to_mni"].as_array().unwrap().len(), 12);
    assert!((900.0..2000.0).contains(&measures["brain_volume_ml"].as_f64().unwrap()), "{measures}");
    assert!(measures["registration_ncc"].as_f64().unwrap() > 0.7, "{measures}");
    for step in ["decode", "conform", "skull_strip", "bias", "register", "resample", "normalize", "qc"] {
        assert!(measures["timings_ms"][step].as_f64().unwrap() >= 0.0, "{step}");
    }
    let total: f64 = measures["timings_ms"].as_object().unwrap().values().map(|ms| ms.as_f64().unwrap()).sum();
    assert!(total > 0.0 && measures["core_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no file is written");
}

#[test]
fn inspect_refuses_a_file_that_is_not_a_scan_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.nii.gz"), "not an image").unwrap();
    let shown = program(&["inspect", "notes.nii.gz"], folder.path());
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stderr).starts_with("error: "), "{shown:?}");
    let shown = program(&["inspect", "missing.nii.gz"], folder.path());
    assert!(text(&shown.stderr).contains("missing.nii.gz"), "{shown:?}");
}

#[test]
fn eval_preprocess_reports_every_target_that_it_has_data_for() {
    let (folder, cohort) = (tempfile::tempdir().unwrap(), path(head()));
    let run = program(&["eval", "preprocess", "--cohort", cohort, "--moves", "1", "--json", "e.json"], folder.path());
    let printed = text(&run.stdout);
    for target in
        ["scans refused", "registered again", "Dice with the template's", "variation in white matter", "lesion masks"]
    {
        assert!(printed.contains(target), "no `{target}` in\n{printed}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("e.json")).unwrap()).unwrap();
    let targets = report["bars"].as_array().unwrap();
    let missed = targets.iter().any(|target| target["reached"] == false);
    assert_eq!(run.status.code(), Some(i32::from(missed)), "{printed}");
    assert_eq!(report["scans"].as_array().unwrap().len(), 1);
    // No reference mask and one site: targets without data are omitted, not reached.
    assert!(!printed.contains("Dice with the reference") && !printed.contains("two sites"), "{printed}");
    let none = program(&["eval", "preprocess", "--cohort", cohort, "--split", "val"], folder.path());
    assert_eq!(none.status.code(), Some(2), "{none:?}");
}

#[test]
fn inspect_reads_one_file_whatever_lies_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(head().join(scan(1)), folder.path().join("one 100%.nii.gz")).unwrap();
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    std::fs::write(folder.path().join("deep").join(OsStr::from_bytes(b"M\xfcller.txt")), "x").unwrap();
    std::os::unix::fs::symlink("..", folder.path().join("deep/up")).unwrap();
    std::os::unix::fs::symlink("nowhere.nii", folder.path().join("absent.nii")).unwrap();
    let shown = program(&["inspect", "one 100%.nii.gz", "--json"], folder.path());
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let json: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert!(json["brain_volume_ml"].as_f64().unwrap() > 1000.);
    let address = url::Url::from_file_path(folder.path().join("one 100%.nii.gz")).unwrap();
    assert!(program(&["inspect", address.as_str(), "--json"], folder.path()).status.success());

    // Either half of a pair leads to the other.
    for half in ["pair.hdr", "pair.img"] {
        std::fs::copy(root().join("tests/golden/volume").join(half), folder.path().join(half)).unwrap();
    }
    for half in ["pair.hdr", "pair.img"] {
        let small = program(&["inspect", half], folder.path());
        assert!(text(&small.stderr).contains("field of view of 10 x 6 x 9 mm"), "{half}: {small:?}");
    }
    for (name, said) in [("two.nii.gz", "no image two.nii.gz"), ("absent.nii", "datalad get absent.nii")] {
        let refused = program(&["inspect", name], folder.path());
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    }
}
