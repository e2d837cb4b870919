//! Synthetic cohorts, made by the program.

use super::program::ok;

/// Makes a cohort in a folder; `options` are those of `neurosieve synth`.
pub fn synth(folder: &str, options: &[&str]) {
    ok(&[&["synth", folder], options].concat());
}

/// Where the generator puts a subject's scan in the cohort's folder.
pub fn scan(n: usize) -> String {
    format!("sub-synth00{n}/anat/sub-synth00{n}_T1w.nii.gz")
}

/// The id of a subject's scan.
pub fn scan_id(cohort: &str, n: usize) -> String {
    format!("{cohort}/sub-synth00{n}_T1w")
}
