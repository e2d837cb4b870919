//! Preprocessing of real scans: whole heads with a reference mask, and brains without skull.
//!
//! The scans are those of the folder that `NEUROSIEVE_SHARED` names (`../shared` beside the checkout by default);
//! without it the tests print a line and pass. Dice values are against the masks that come with the data.

use std::path::Path;

use neurosieve::preprocess::{PreprocessConfig, dice, model_grid, prepare, steps, template_brain};
use neurosieve::volume::resample::nearest;
use neurosieve::volume::{Affine, Volume, nifti};

use super::support::data::data;

fn read(path: &Path) -> Volume {
    let bytes = std::fs::read(path).expect("the data folder is complete");
    nifti::decode(&bytes, 1 << 30).expect("a readable scan").volume
}

fn scan(folder: &Path, subject: &str) -> Volume {
    read(&folder.join(subject).join("anat").join(format!("{subject}_T1w.nii.gz")))
}

#[test]
fn the_brain_of_whole_heads_agrees_with_the_reference_masks() {
    let Some(folder) = data("healthy-t1") else { return };
    let cfg = PreprocessConfig::default();
    let mut sum = 0.0;
    let subjects = ["sub-ixi014", "sub-ixi148", "sub-ixi334", "sub-ixi439"];
    for subject in subjects {
        let native = scan(&folder, subject);
        let mask = folder.join("derivatives/brainmask").join(subject).join("anat");
        let mask = read(&mask.join(format!("{subject}_space-orig_desc-brain_mask.nii.gz")));
        let found = steps(&native, &cfg).expect("a head holds a brain");
        assert!(!found.brain.stripped_input, "{subject} has its skull");
        let truth = Volume::new(mask.grid, mask.data.iter().map(|&v| u8::from(v > 0.0)).collect());
        let overlap = dice(&nearest(&found.brain.mask, &truth.grid, &Affine::identity()), &truth);
        assert!(overlap > 0.96, "{subject}: Dice {overlap:.3}");
        let in_mni = dice(&found.prepared.brain, template_brain());
        assert!(in_mni > 0.93, "{subject}: Dice with the template {in_mni:.3}");
        assert_eq!(found.prepared.qc.flags, Vec::<&str>::new(), "{subject}");
        sum += overlap;
    }
    let mean = sum / subjects.len() as f64;
    assert!(mean > 0.97, "mean Dice {mean:.3}");
}

#[test]
fn brains_without_skull_are_not_stripped_again() {
    let cfg = PreprocessConfig::default();
    let healthy = data("healthy-t1").map(|f| (f, ["sub-ds02", "sub-ds03", "sub-ds30", "sub-ds72"].as_slice()));
    let lesioned = data("ms26").map(|f| (f, ["sub-ms26"].as_slice()));
    for (folder, subjects) in healthy.into_iter().chain(lesioned) {
        for subject in subjects {
            let prepared = prepare(&scan(&folder, subject), &cfg).expect("a brain");
            assert!(prepared.stripped_input, "{subject} has no skull");
            assert_eq!(prepared.image.grid, model_grid());
            assert_eq!(prepared.qc.flags, Vec::<&str>::new(), "{subject}");
        }
    }
}

#[test]
fn a_head_whose_air_was_set_to_zero_is_still_stripped() {
    let Some(folder) = data("healthy-t1") else { return };
    let mut native = scan(&folder, "sub-ixi014");
    let mut sorted = native.data.clone();
    sorted.sort_by(f32::total_cmp);
    let level = 0.1 * sorted[sorted.len() * 98 / 100];
    native.data.iter_mut().filter(|v| **v < level).for_each(|v| *v = 0.0);
    let prepared = prepare(&native, &PreprocessConfig::default()).expect("a brain");
    assert!(!prepared.stripped_input);
    assert_eq!(prepared.qc.ghosting, None, "air that was set to zero shows no ghosts");
}

/// The names in backticks in the first column of the table below a heading of a page.
fn listed(page: &str, heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(super::support::root().join("docs").join(page)).unwrap();
    let (_, section) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading} in {page}"));
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let cells = rows.take_while(|line| line.starts_with('|')).filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_documentation_lists_all_regions_and_quality_flags() {
    use neurosieve::preprocess::{OUTSIDE, QC_FLAGS, REGIONS};
    assert_eq!(listed("method.md", "### Regions"), [REGIONS, &[OUTSIDE]].concat());
    assert_eq!(listed("preprocessing.md", "## Quality flags"), QC_FLAGS);
    let doc =
        |table: neurosieve::tables::Table, column: &str| table.columns().iter().find(|c| c.name == column).unwrap().doc;
    let flags = doc(neurosieve::tables::Table::Scans, "qc_flags");
    let (_, flags) = flags.split_once(": ").unwrap();
    assert_eq!(flags.split_once(';').unwrap().0.split(", ").collect::<Vec<_>>(), QC_FLAGS);
    let regions = doc(neurosieve::tables::Table::Tokens, "region");
    for region in REGIONS.iter().chain([&OUTSIDE]) {
        assert!(regions.contains(region.trim_start_matches("left ").trim_start_matches("right ")), "{region}");
    }
}
