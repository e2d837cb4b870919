//! `neurosieve export`: masks and maps of the tables, on the native grid of their scan.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use neurosieve::volume::nifti;

use super::support::cohorts::scan;
use super::support::program::{ok, program, text};
use super::support::shared::{path, screened, study};

/// Reads a volume with the decoder that other tests compare with nibabel.
fn read(path: &Path) -> nifti::Decoded {
    nifti::decode(&std::fs::read(path).unwrap(), 1 << 30).unwrap()
}

/// A brain mask and a score map of one scan, exported.
struct Exported {
    native: nifti::Decoded,
    brain: nifti::Decoded,
    score: nifti::Decoded,
}

fn exported() -> &'static Exported {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path();
        ok(&["export", "--tables", &screened().tables, "--to", path(to), "--scan", "study/sub-synth001_T1w"]);
        let file = |kind: &str| -> PathBuf { to.join(format!("sub-synth001/anat/sub-synth001_desc-{kind}.nii.gz")) };
        Exported {
            native: read(&study().join(scan(1))),
            brain: read(&file("brain_mask")),
            score: read(&file("anomaly_score")),
        }
    })
}

#[test]
fn masks_and_scores_lie_on_the_grid_of_the_scan() {
    let Exported { native, brain, score } = exported();
    assert_eq!((brain.datatype.as_str(), score.datatype.as_str()), ("uint8", "float32"));
    assert_eq!(brain.volume.grid.shape, native.volume.grid.shape);
    for (row, expected) in score.volume.grid.affine.0.iter().zip(&native.volume.grid.affine.0) {
        assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3));
    }
}

#[test]
fn no_score_is_exported_outside_the_brain() {
    let Exported { brain, score, .. } = exported();
    assert!(score.volume.data.iter().zip(&brain.volume.data).all(|(&s, &b)| b > 0. || s == 0.));
}

#[test]
fn the_exported_brain_mask_is_where_the_generator_put_the_brain() {
    let brain = &exported().brain;
    let truth = read(&study().join("derivatives/truth/sub-synth001/anat/sub-synth001_label-brain_mask.nii.gz"));
    let overlap = brain.volume.data.iter().zip(&truth.volume.data).filter(|&(&a, &b)| a > 0. && b > 0.).count();
    let size = |v: &[f32]| v.iter().filter(|&&x| x > 0.).count();
    let dice = 2. * overlap as f64 / (size(&brain.volume.data) + size(&truth.volume.data)) as f64;
    assert!(dice > 0.85, "exported brain mask has Dice {dice:.3} with the generator's");
}

#[test]
fn exporting_an_unknown_scan_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let to = path(folder.path());
    let unknown = program(&["export", "--tables", &screened().tables, "--to", to, "--scan", "study/none"]);
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("study/none"));
}
