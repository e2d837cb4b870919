//! Scans whose intensities, units or contrast are not as a scanner gives them.

use std::fs;

use neurosieve::preprocess::{Prepared, PreprocessConfig, dice, prepare, steps};
use neurosieve::volume::{Volume, nifti};

use super::support::cohorts::scan;
use super::support::golden::{golden_bytes, golden_file, gunzip, gzip, with_field};
use super::support::program::{command, number, printed, quick_run, text};
use super::support::shared::{head, path, study};

const LIMIT: u64 = 1 << 30;

fn synthetic_head() -> Volume<f32> {
    nifti::decode(&fs::read(head().join(scan(1))).unwrap(), LIMIT).unwrap().volume
}

fn prepared(scan: &Volume<f32>) -> Prepared {
    prepare(scan, &PreprocessConfig::default()).unwrap()
}

/// Mean difference of two brains on the model's grid, on the scale 0..1.
fn difference(a: &Prepared, b: &Prepared) -> f32 {
    let both = a.brain.data.iter().zip(&b.brain.data).enumerate().filter(|(_, (a, b))| **a != 0 && **b != 0);
    let off: Vec<f32> = both.map(|(i, _)| (a.image.data[i] - b.image.data[i]).abs()).collect();
    off.iter().sum::<f32>() / off.len() as f32
}

#[test]
fn a_stripped_brain_with_centred_intensities_gives_the_brain_of_the_raw_one() {
    let steps = steps(&synthetic_head(), &PreprocessConfig::default()).unwrap();
    let (head, mask) = (&steps.working, &steps.brain.mask);
    let inside: Vec<f32> = head.data.iter().zip(&mask.data).filter(|&(_, &m)| m != 0).map(|(&v, _)| v).collect();
    let n = inside.len() as f32;
    let mean = inside.iter().sum::<f32>() / n;
    let deviation = (inside.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
    let darkest = inside.iter().fold(f32::MAX, |low, &v| low.min(v));
    let stripped = |background: f32, of: &dyn Fn(f32) -> f32| {
        let data = head.data.iter().zip(&mask.data).map(|(&v, &m)| if m != 0 { of(v) } else { background });
        Volume::new(head.grid, data.collect())
    };
    let z = |v: f32| (v - mean) / deviation;
    let raw = prepared(&stripped(0.0, &|v| v));
    for (name, scan) in [
        ("z-scores", stripped(0.0, &z)),
        ("z-scores, background of missing values", stripped(f32::NAN, &z)),
        ("z-scores, background darkest", stripped(z(darkest), &z)),
        ("centred, background -1", stripped(-1.0, &|v| v - mean)),
        ("all negative", stripped(0.0, &|v| v - 10.0 * mean)),
        ("from -1 to 1", stripped(-1.0, &|v| v / (2.0 * mean) - 1.0)),
    ] {
        let found = prepared(&scan);
        assert!(found.stripped_input, "{name}");
        let volume = found.brain_volume_ml / raw.brain_volume_ml;
        assert!((volume - 1.0).abs() < 0.01, "{name}: {volume} of the brain");
        let off = difference(&found, &raw);
        assert!(off < 0.04, "{name}: off by {off}");
    }
}

#[test]
fn a_head_in_any_unit_gives_the_same_brain() {
    let head = synthetic_head();
    let reference = prepared(&head);
    for unit in [1e-30, 1e-12, 1e-6, 1e-3, 300.0, 1e9, 1e20, 1e30] {
        let found = prepared(&head.map(|v| v * unit));
        let volume = found.brain_volume_ml / reference.brain_volume_ml;
        assert!((volume - 1.0).abs() < 0.01, "times {unit}: {volume} of the brain");
        let overlap = dice(&found.brain, &reference.brain);
        assert!(overlap > 0.98, "times {unit}: Dice {overlap}");
        assert_eq!(found.qc.flags, reference.qc.flags, "times {unit}");
    }
}

#[test]
fn a_header_extension_of_any_length_is_passed_over() {
    const LENGTH: usize = 20_000_000;
    let plain = gunzip(&golden_bytes("oblique.nii.gz"));
    let mut long = plain[..348].to_vec();
    long[108..112].copy_from_slice(&(352.0 + LENGTH as f32).to_le_bytes());
    // The extender, then one extension: its size, its code and its content.
    long.extend([1, 0, 0, 0]);
    long.extend((LENGTH as i32).to_le_bytes());
    long.resize(352 + LENGTH, 6);
    long.extend(&plain[352..]);
    for bytes in [long.clone(), gzip(&long)] {
        let decoded = nifti::decode(&bytes, LIMIT).unwrap();
        assert_eq!(decoded.volume, golden_file("oblique.nii.gz").volume);
        assert!(nifti::decoded_bytes(&bytes).unwrap() > LENGTH as u64, "the budget counts it");
    }
    // A length that the file does not have.
    let cut = nifti::decode(&long[..LENGTH], LIMIT).unwrap_err();
    assert_eq!(cut.kind, "truncated");
}

#[test]
fn a_wrong_unit_of_length_is_named() {
    for (code, name) in [(1u8, "metres"), (3, "micrometres")] {
        let refused = nifti::decode(&with_field("oblique.nii.gz", 123, &[code]), LIMIT).unwrap_err();
        let said = refused.to_string();
        assert!(refused.kind == "spacing" && said.contains(name) && said.contains("xyzt_units"), "{said}");
    }
}

#[test]
fn a_scan_of_another_contrast_is_left_out_and_screened_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = folder.path().join("study");
    let anat = cohort.join("sub-01/anat");
    fs::create_dir_all(&anat).unwrap();
    fs::write(cohort.join("dataset_description.json"), r#"{"Name":"x","BIDSVersion":"1.9.0"}"#).unwrap();
    fs::copy(head().join(scan(1)), anat.join("sub-01_T1w.nii.gz")).unwrap();
    fs::copy(study().join(scan(2)), anat.join("sub-01_FLAIR.nii.gz")).unwrap();
    let tables = folder.path().join("tables").display().to_string();
    let run = |suffixes: &str, more: &[&str]| {
        let suffixes = format!("cohort.select.suffixes={suffixes}");
        let arguments = [&quick_run(path(&cohort), &tables)[..], &["--set", &suffixes], more].concat();
        command(&arguments).output().unwrap()
    };
    let alone = run(r#"["FLAIR"]"#, &[]);
    assert_eq!(alone.status.code(), Some(2), "{}", printed(&alone));
    assert!(text(&alone.stderr).contains("model.any_contrast = true"), "{}", printed(&alone));
    let both = run(r#"["T1w", "FLAIR"]"#, &[]);
    assert!(both.status.success() && text(&both.stderr).contains("sub-01_FLAIR.nii.gz"), "{}", printed(&both));
    assert_eq!(number(&tables, "SELECT count(*) AS n FROM scans"), 1);
    let asked = run(r#"["FLAIR"]"#, &["--set", "model.any_contrast=true"]);
    assert!(asked.status.success(), "{}", printed(&asked));
    assert_eq!(number(&tables, "SELECT count(*) AS n FROM scans WHERE suffix = 'FLAIR'"), 1);
}
