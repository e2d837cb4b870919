//! A synthetic cohort as a BIDS dataset in a folder.

use std::fs;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::subject::Subject;
use super::template::Template;
use crate::error::{Error, Result};
use crate::volume::nifti;

/// Version of the BIDS standard that the dataset follows.
const BIDS_VERSION: &str = "1.9.0";

/// Voxel sizes that give a usable head in a reasonable time, in mm.
const SPACING_MM: std::ops::RangeInclusive<f64> = 0.5..=4.0;

/// Where truth masks lie, seen from the dataset's folder.
const TRUTH: &str = "derivatives/truth";

const README: &str = "\
# Synthetic T1w heads

Made by `neurosieve synth` from the MNI152 2009a template; no person was scanned. participants.tsv tells which heads
have lesions and which files are damaged on purpose. derivatives/truth holds, on each scan's grid, the brain
(label-brain) and, where there are any, the lesions (label-lesion).

The template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute,
McGill University.
";

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CohortSpec {
    /// How many subjects.
    pub subjects: usize,
    /// Which of all possible cohorts.
    pub seed: u64,
    /// How many subjects, the first ones, have lesions.
    pub lesions: usize,
    /// How many scans, the last ones, are cut off in the middle of the file.
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
    /// How many lesions were put in; they may touch.
    pub lesions: usize,
    /// Volume of all lesions in ml.
    pub lesion_volume_ml: f64,
    /// The scan's file was cut off on purpose.
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
                "voxels of {} mm cannot be made; give --spacing between {low} and {high}",
                self.spacing_mm
            )));
        }
        Ok(())
    }
}

/// Makes the cohort in the folder `to`, which is created; subjects in parallel. Gives the participants in order.
///
/// # Errors
/// [`Error::Config`] for a spec that cannot be met, and for a folder that holds something unless `force` is given:
/// then files of the same names are replaced and files of other subjects stay. [`Error::Io`] where writing fails.
pub fn write(spec: &CohortSpec, to: &Path, force: bool) -> Result<Vec<Participant>> {
    spec.check()?;
    let io = |what: &str| {
        let context = format!("{what} {}", to.display());
        move |e| Error::io(context, e)
    };
    fs::create_dir_all(to).map_err(io("creating the folder"))?;
    let holds_something = fs::read_dir(to).map_err(io("listing the folder"))?.next().is_some();
    if holds_something && !force {
        return Err(Error::Config(format!(
            "{} is not empty; name another folder, or replace files of the same names with --force",
            to.display()
        )));
    }

    let template = Template::embedded()?;
    let participants: Vec<Participant> =
        (0..spec.subjects).into_par_iter().map(|k| write_subject(spec, &template, k, to)).collect::<Result<_>>()?;
    put(to, "dataset_description.json", json_text(&description("Synthetic T1w heads", "raw")))?;
    put(to, "README", README)?;
    put(to, "participants.tsv", participants_tsv(&participants))?;
    put(to, "participants.json", json_text(&participants_json()))?;
    let truth = description("Brains and lesions of the synthetic T1w heads", "derivative");
    put(to, &format!("{TRUTH}/dataset_description.json"), json_text(&truth))?;
    Ok(participants)
}

/// Writes the files of the subject with this place in the cohort, from 0.
fn write_subject(spec: &CohortSpec, template: &Template, place: usize, to: &Path) -> Result<Participant> {
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
        // Left by another cohort that `force` writes over; it would be a lie about this one.
        let context = format!("removing {lesion_mask}");
        fs::remove_file(to.join(&lesion_mask)).map_err(|e| Error::io(context, e))?;
    }
    Ok(Participant { id, lesions: subject.n_lesions, lesion_volume_ml: subject.lesion_volume_ml, corrupt })
}

/// Writes one file below `root`, making its folder.
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
    let made_by = json!({ "Name": "neurosieve synth", "Version": env!("CARGO_PKG_VERSION") });
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

/// What a training may do with a subject: two in three healthy ones are to be fitted on. `healthy` counts those.
fn split(participant: &Participant, healthy: &mut usize) -> &'static str {
    if participant.lesions > 0 || participant.corrupt {
        return "test";
    }
    *healthy += 1;
    if healthy.is_multiple_of(3) { "val" } else { "train" }
}

fn participants_json() -> Value {
    json!({
        "lesions": { "Description": "number of lesions put into the head; they may touch" },
        "lesion_volume_ml": { "Description": "volume of all lesions", "Units": "mL" },
        "corrupt": { "Description": "yes where the scan's file was cut off in the middle on purpose" },
        "split": {
            "Description": "what a training may do with the head",
            "Levels": { "train": "fit on it", "val": "choose on it", "test": "leave it out: lesions, or damaged" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_cohorts_are_refused_with_what_to_give() {
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
