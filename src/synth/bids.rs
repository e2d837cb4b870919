//! A synthetic cohort as a BIDS dataset in a folder.
//!
//! Takes a [`CohortSpec`] and a folder; writes scans with sidecars, `participants.tsv`, and truth masks under
//! `derivatives/truth/`. Refuses a spec that cannot be met, and a folder that is not empty.

use std::fs;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::subject::Subject;
use super::template::HeadTemplate;
use crate::error::{Error, Result};
use crate::volume::nifti;

/// What wrote the dataset, in `GeneratedBy`.
const GENERATOR: &str = "neurosieve synth";

/// Version of the BIDS standard that the dataset follows.
const BIDS_VERSION: &str = "1.9.0";

/// Voxel sizes in mm that give a usable head in a reasonable time.
const SPACING_MM: std::ops::RangeInclusive<f64> = 0.5..=4.0;

/// The folder of truth masks in the dataset.
const TRUTH: &str = "derivatives/truth";

const README: &str = "\
# Synthetic T1w heads

Made by `neurosieve synth` from the MNI152 2009a template; no person was scanned. participants.tsv lists which heads
have lesions and which files are damaged on purpose. derivatives/truth holds masks on each scan's grid: the brain
(label-brain) and, for heads with lesions, the lesions (label-lesion).

The template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute,
McGill University.
";

/// What a synthetic cohort consists of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CohortSpec {
    /// Number of subjects.
    pub subjects: usize,
    /// Seed of all random draws.
    pub seed: u64,
    /// Number of subjects with lesions, which are the first ones.
    pub lesions: usize,
    /// Number of scans, the last ones, whose files are truncated.
    pub corrupt: usize,
    /// Voxel size in mm.
    pub spacing_mm: f64,
}

impl Default for CohortSpec {
    fn default() -> Self {
        Self { subjects: 8, seed: 1, lesions: 3, corrupt: 0, spacing_mm: 2.0 }
    }
}

/// One row of participants.tsv.
#[derive(Debug, Clone, PartialEq)]
pub struct Participant {
    /// `sub-synth001` and so on.
    pub id: String,
    /// Number of lesions; they may touch.
    pub lesions: usize,
    /// Volume of all lesions in ml.
    pub lesion_volume_ml: f64,
    /// True where the scan's file was cut off on purpose.
    pub corrupt: bool,
}

impl CohortSpec {
    fn check(&self) -> Result<()> {
        if self.subjects == 0 {
            return Err(Error::Config("a cohort needs at least one subject; give --subjects 1 or more".into()));
        }
        for (n, what) in [(self.lesions, "lesions"), (self.corrupt, "corrupt")] {
            if n > self.subjects {
                let subjects = self.subjects;
                return Err(Error::Config(format!(
                    "--{what} {n} is more than the {subjects} subjects; give at most {subjects}, or more --subjects"
                )));
            }
        }
        if !SPACING_MM.contains(&self.spacing_mm) {
            let (low, high) = (SPACING_MM.start(), SPACING_MM.end());
            return Err(Error::Config(format!(
                "a voxel size of {} mm is not supported; give --spacing between {low} and {high}",
                self.spacing_mm
            )));
        }
        Ok(())
    }
}

/// Writes the cohort into the folder `to`, which is created, and gives its participants in order. Subjects are made in
/// parallel. With `force`, files of the same names in that folder are replaced and others are kept.
///
/// # Errors
/// [`Error::Config`] for a spec that cannot be met, for a folder that is not empty without `force`, and for the folder of
/// another data set. [`Error::Io`] where writing fails.
pub fn write(spec: &CohortSpec, to: &Path, force: bool) -> Result<Vec<Participant>> {
    spec.check()?;
    let io = |what: &str| {
        let context = format!("{what} {}", to.display());
        move |e| Error::io(context, e)
    };
    fs::create_dir_all(to).map_err(io("creating the folder"))?;
    let is_empty = fs::read_dir(to).map_err(io("listing the folder"))?.next().is_none();
    if !is_empty && !force {
        return Err(Error::Config(format!(
            "{} is not empty; name another folder, or replace files of the same names with --force",
            to.display()
        )));
    }

    refuse_data_set_of_others(to)?;

    let template = HeadTemplate::embedded()?;
    let participants: Vec<Participant> =
        (0..spec.subjects).into_par_iter().map(|n| write_subject(spec, &template, n, to)).collect::<Result<_>>()?;
    put(to, "dataset_description.json", json_text(&description("Synthetic T1w heads", "raw")))?;
    put(to, "README", README)?;
    put(to, "participants.tsv", participants_tsv(&participants))?;
    put(to, "participants.json", json_text(&participants_json()))?;
    let truth = description("Brains and lesions of the synthetic T1w heads", "derivative");
    put(to, &format!("{TRUTH}/dataset_description.json"), json_text(&truth))?;
    Ok(participants)
}

/// Refuses the folder of a data set that this generator did not make, also with `force`.
fn refuse_data_set_of_others(to: &Path) -> Result<()> {
    let Ok(text) = fs::read(to.join("dataset_description.json")) else { return Ok(()) };
    let description: Value = serde_json::from_slice(&text).unwrap_or_default();
    if description["GeneratedBy"][0]["Name"] == GENERATOR {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{} holds a data set that `neurosieve synth` did not make, and is left as it is; name another folder",
        to.display()
    )))
}

/// Writes the files of one subject; `place` is its place in the cohort, from 0.
fn write_subject(spec: &CohortSpec, template: &HeadTemplate, place: usize, to: &Path) -> Result<Participant> {
    let subject = Subject::draw(template, spec.seed, place, spec.spacing_mm, place < spec.lesions);
    let corrupt = place >= spec.subjects - spec.corrupt;
    let id = format!("sub-synth{:03}", place + 1);

    let mut scan = nifti::encode(&subject.image, "neurosieve synth");
    if corrupt {
        scan.truncate(scan.len() / 2);
    }
    put(to, &format!("{id}/anat/{id}_T1w.nii.gz"), scan)?;
    put(to, &format!("{id}/anat/{id}_T1w.json"), json_text(&sidecar(spec, place)))?;
    let brain = nifti::encode(&subject.brain, "brain and its fluid");
    put(to, &format!("{TRUTH}/{id}/anat/{id}_label-brain_mask.nii.gz"), brain)?;
    let lesion_mask = format!("{TRUTH}/{id}/anat/{id}_label-lesion_mask.nii.gz");
    if subject.n_lesions > 0 {
        put(to, &lesion_mask, nifti::encode(&subject.lesions, "lesions"))?;
    } else if to.join(&lesion_mask).exists() {
        // Left by an earlier cohort that `force` overwrites: this subject has no lesion.
        let context = format!("removing {lesion_mask}");
        fs::remove_file(to.join(&lesion_mask)).map_err(|e| Error::io(context, e))?;
    }
    Ok(Participant { id, lesions: subject.n_lesions, lesion_volume_ml: subject.lesion_volume_ml, corrupt })
}

/// Writes one file below `root` and creates its folder.
fn put(root: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
    let path = root.join(name);
    let folder = path.parent().unwrap_or(root);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, content))
        .map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn description(name: &str, kind: &str) -> Value {
    let made_by = json!({ "Name": GENERATOR, "Version": env!("CARGO_PKG_VERSION") });
    json!({ "Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": kind, "GeneratedBy": [made_by] })
}

fn sidecar(spec: &CohortSpec, place: usize) -> Value {
    json!({
        "Modality": "MR",
        "Manufacturer": "neurosieve synth",
        "ManufacturersModelName": "MNI152 2009a",
        "SoftwareVersions": env!("CARGO_PKG_VERSION"),
        "SynthSeed": spec.seed,
        "SynthSubject": place + 1,
    })
}

fn participants_tsv(participants: &[Participant]) -> String {
    let mut text = String::from("participant_id\tlesions\tlesion_volume_ml\tcorrupt\tsplit\n");
    let mut healthy = 0;
    for participant in participants {
        let Participant { id, lesions, lesion_volume_ml, corrupt } = participant;
        let split = split(participant, &mut healthy);
        let corrupt = if *corrupt { "yes" } else { "no" };
        text.push_str(&format!("{id}\t{lesions}\t{lesion_volume_ml:.1}\t{corrupt}\t{split}\n"));
    }
    text
}

/// The subject's role in training: of every three healthy subjects, two are for fitting and one is for validation.
/// `healthy` counts the healthy subjects so far.
fn split(participant: &Participant, healthy: &mut usize) -> &'static str {
    if participant.lesions > 0 || participant.corrupt {
        return "test";
    }
    *healthy += 1;
    if healthy.is_multiple_of(3) { "val" } else { "train" }
}

fn participants_json() -> Value {
    json!({
        "lesions": { "Description": "number of lesions in the head; they may touch" },
        "lesion_volume_ml": { "Description": "volume of all lesions", "Units": "mL" },
        "corrupt": { "Description": "yes where the scan's file was truncated on purpose" },
        "split": {
            "Description": "role of the head in training",
            "Levels": { "train": "fitting", "val": "validation", "test": "not used: has lesions or is damaged" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_cohorts_are_refused_with_the_option_to_change() {
        let spec = CohortSpec::default();
        for (bad, word) in [
            (CohortSpec { subjects: 0, ..spec }, "--subjects"),
            (CohortSpec { lesions: 9, ..spec }, "--lesions 9"),
            (CohortSpec { corrupt: 9, ..spec }, "--corrupt 9"),
            (CohortSpec { spacing_mm: 0.1, ..spec }, "--spacing"),
            (CohortSpec { spacing_mm: f64::NAN, ..spec }, "--spacing"),
        ] {
            let message = bad.check().expect_err("refused").to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
