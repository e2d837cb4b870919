//! Synthetic cohorts: the properties that screening and its tests rely on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neurosieve::preprocess::{PreprocessConfig, prepare};
use neurosieve::synth::{CohortSpec, HeadTemplate, Subject, write};
use neurosieve::volume::{Volume, nifti, resample};

const LIMIT: u64 = 64 << 20;

/// 4 mm voxels: an eighth of the work of a usual cohort.
const SMALL: CohortSpec = CohortSpec { subjects: 3, seed: 11, lesions: 1, corrupt: 1, spacing_mm: 4.0 };

/// All files below `root` by relative path.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("listing") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below the root").to_path_buf();
                found.insert(name, std::fs::read(path).expect("reading"));
            }
        }
    }
    found
}

fn dice(a: &Volume<u8>, b: &Volume<u8>) -> f64 {
    let count = |v: &Volume<u8>| v.data.iter().filter(|&&x| x != 0).count() as f64;
    let both = a.data.iter().zip(&b.data).filter(|&(&x, &y)| x != 0 && y != 0).count() as f64;
    2.0 * both / (count(a) + count(b))
}

#[test]
fn a_cohort_is_bids_with_truth_beside_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let participants = write(&SMALL, folder.path(), false).expect("a cohort");
    let files = files(folder.path());
    for name in [
        "dataset_description.json",
        "README",
        "participants.tsv",
        "sub-synth001/anat/sub-synth001_T1w.nii.gz",
        "sub-synth001/anat/sub-synth001_T1w.json",
        "sub-synth003/anat/sub-synth003_T1w.nii.gz",
        "derivatives/truth/dataset_description.json",
        "derivatives/truth/sub-synth002/anat/sub-synth002_label-brain_mask.nii.gz",
    ] {
        assert!(files.contains_key(Path::new(name)), "{name} is missing");
    }
    let description: serde_json::Value =
        serde_json::from_slice(&files[Path::new("dataset_description.json")]).expect("JSON");
    assert_eq!(description["DatasetType"], "raw");

    let mask = |place: usize| {
        let id = format!("sub-synth{place:03}");
        files.get(Path::new(&format!("derivatives/truth/{id}/anat/{id}_label-lesion_mask.nii.gz")))
    };
    let lesions = nifti::decode(mask(1).expect("the first subject has lesions"), LIMIT).expect("a mask").volume;
    let ml = lesions.data.iter().filter(|&&v| v == 1.0).count() as f64 * lesions.grid.voxel_ml();
    assert!((ml - participants[0].lesion_volume_ml).abs() < 1e-9);
    assert_eq!((mask(2), mask(3)), (None, None), "healthy subjects have no lesion mask");

    let table = String::from_utf8(files[Path::new("participants.tsv")].clone()).expect("text");
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split('\t').collect()).collect();
    assert_eq!(rows[0], ["participant_id", "lesions", "lesion_volume_ml", "corrupt", "split"]);
    assert_eq!(rows[1][1..], [participants[0].lesions.to_string(), format!("{ml:.1}"), "no".into(), "test".into()]);
    assert_eq!(rows[2], ["sub-synth002", "0", "0.0", "no", "train"]);
    assert_eq!(rows[3], ["sub-synth003", "0", "0.0", "yes", "test"]);
}

#[test]
fn a_corrupt_scan_is_refused_and_the_others_are_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(&SMALL, folder.path(), false).expect("a cohort");
    let read = |id: &str| {
        let path = folder.path().join(format!("{id}/anat/{id}_T1w.nii.gz"));
        nifti::decode(&std::fs::read(path).expect("reading"), LIMIT)
    };
    assert!(read("sub-synth001").is_ok() && read("sub-synth002").is_ok());
    let error = read("sub-synth003").expect_err("cut off");
    assert!(["truncated", "corrupt_gzip"].contains(&error.kind), "{error}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_in_a_larger_cohort_too() {
    let [small, large] = [SMALL.subjects, 5].map(|subjects| {
        let folder = tempfile::tempdir().expect("temporary folder");
        let spec = CohortSpec { subjects, corrupt: 0, ..SMALL };
        write(&spec, folder.path(), false).expect("a cohort");
        files(folder.path())
    });
    for (name, bytes) in small.iter().filter(|(name, _)| name.to_string_lossy().contains("sub-synth")) {
        assert!(large.get(name) == Some(bytes), "{} differs", name.display());
    }
    let template = HeadTemplate::embedded().expect("embedded template");
    let [one, other] = [1, 2].map(|seed| Subject::draw(&template, seed, 0, 4.0, false));
    assert_ne!(one, other, "another seed is another cohort");
}

#[test]
fn a_lesion_changes_the_scan_in_its_mask_and_nothing_else_about_the_head() {
    let template = HeadTemplate::embedded().expect("embedded template");
    let [healthy, ill] = [false, true].map(|lesions| Subject::draw(&template, 3, 1, 2.0, lesions));
    assert_eq!((&healthy.brain, healthy.n_lesions), (&ill.brain, 0));
    assert!((1..=3).contains(&ill.n_lesions));
    assert!((2.0 * 0.9..=120.0).contains(&ill.lesion_volume_ml), "{} ml", ill.lesion_volume_ml);
    let changes = healthy.image.data.iter().zip(&ill.image.data).map(|(a, b)| f64::from(a - b).abs());
    let (mut inside, mut outside, mut brain) = (0.0, 0.0, 0.0);
    for (i, change) in changes.enumerate() {
        if ill.lesions.data[i] != 0 {
            assert_eq!(ill.brain.data[i], 1, "lesions lie in the brain");
            inside += change;
        } else {
            outside += change;
        }
        brain += f64::from(ill.brain.data[i]) * f64::from(healthy.image.data[i]);
    }
    let mean = brain / ill.brain.data.iter().map(|&v| f64::from(v)).sum::<f64>();
    let voxels = ill.lesions.data.iter().filter(|&&v| v != 0).count() as f64;
    assert!(inside / voxels > 0.1 * mean, "a lesion is seen");
    assert!(outside < 0.25 * inside, "only the soft edge is outside the mask");
}

#[test]
fn a_finer_grid_shows_the_same_brain() {
    let template = HeadTemplate::embedded().expect("embedded template");
    let ml = [4.0, 2.0].map(|spacing| {
        let brain = Subject::draw(&template, 5, 2, spacing, false).brain;
        brain.data.iter().filter(|&&v| v != 0).count() as f64 * brain.grid.voxel_ml()
    });
    assert!((ml[0] / ml[1] - 1.0).abs() < 0.01, "{ml:?}");
    assert!((1100.0..1800.0).contains(&ml[1]), "{ml:?}: adult brains with their fluid");
}

#[test]
fn preprocessing_finds_the_brain_in_the_head() {
    let template = HeadTemplate::embedded().expect("embedded template");
    for number in 0..4 {
        let subject = Subject::draw(&template, 1, number, 2.0, false);
        let image = Volume::new(subject.image.grid, subject.image.data.iter().map(|&v| f32::from(v)).collect());
        let prepared = prepare(&image, &PreprocessConfig::default()).expect("a head that can be prepared");
        let from_mni = prepared.to_mni.inverse().expect("invertible");
        let truth = resample::nearest(&subject.brain, &prepared.brain.grid, &from_mni);
        let dice = dice(&prepared.brain, &truth);
        assert!(dice >= 0.9, "subject {number}: Dice {dice:.3}");
        assert!(!prepared.stripped_input);
    }
}

#[test]
fn a_folder_that_holds_something_is_left_alone_without_force() {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::fs::write(folder.path().join("notes.txt"), "mine").expect("writing");
    let spec = CohortSpec { subjects: 1, lesions: 1, corrupt: 0, ..SMALL };
    let message = write(&spec, folder.path(), false).expect_err("refused").to_string();
    assert!(message.contains("--force"), "{message}");
    assert_eq!(files(folder.path()).len(), 1);
    write(&spec, folder.path(), true).expect("forced");
    assert_eq!(std::fs::read_to_string(folder.path().join("notes.txt")).expect("kept"), "mine");
    let lesion_masks = || files(folder.path()).keys().filter(|f| f.to_string_lossy().contains("label-lesion")).count();
    assert_eq!(lesion_masks(), 1);
    write(&CohortSpec { lesions: 0, ..spec }, folder.path(), true).expect("forced");
    assert_eq!(lesion_masks(), 0, "no truth of the cohort before is left");
}
