//! `neurosieve synth`: writes a synthetic cohort.

use std::path::PathBuf;

use crate::error::Result;
use crate::synth::{self, CohortSpec};
use crate::terminal::outln;

/// Write a synthetic cohort of T1w heads, some with known lesions, for trying the program
///
/// The cohort is a BIDS dataset of whole heads made from the MNI152 template: no patient data, no download. Lesions and
/// truncated files are known, so you can check what screening finds and how it reports failures. Truth masks are under
/// derivatives/truth. The same options give the same files.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve synth cohort                                    8 heads at 2 mm, 3 of them with lesions
  neurosieve synth cohort --subjects 100 --lesions 20 --seed 7
  neurosieve synth cohort --lesions 4 --corrupt 1            the last scan's file is truncated
  neurosieve synth fine --subjects 2 --spacing 1             1 mm voxels, eight times the data

A larger cohort of the same seed begins with the subjects of the smaller one. --lesions adds lesions to the first subjects
and changes nothing else. Compare a cohort with and without them to see the effect of the lesions alone.")]
pub struct SynthArgs {
    /// Folder of the cohort; it must be empty or not exist
    #[arg(value_name = "DIR")]
    pub to: PathBuf,

    /// Number of subjects
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub subjects: usize,

    /// Seed of the random numbers: another seed gives another cohort
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Number of subjects with one to three lesions of 2 to 40 ml each [default: a third of the subjects]
    #[arg(long, value_name = "N")]
    pub lesions: Option<usize>,

    /// Number of scans whose files are truncated, to show how failures are handled
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub corrupt: usize,

    /// Voxel size in mm, 0.5 to 4
    #[arg(long, value_name = "MM", default_value_t = 2.0)]
    pub spacing: f64,

    /// Write into a folder that is not empty: files of the same names are replaced, others are kept
    #[arg(long)]
    pub force: bool,
}

impl SynthArgs {
    /// Writes the cohort and prints the next commands.
    ///
    /// # Errors
    /// As [`synth::write`].
    pub fn run(self) -> Result<()> {
        let spec = CohortSpec {
            subjects: self.subjects,
            seed: self.seed,
            lesions: self.lesions.unwrap_or(self.subjects.div_ceil(3)),
            corrupt: self.corrupt,
            spacing_mm: self.spacing,
        };
        let participants = synth::write(&spec, &self.to, self.force)?;
        let ill = participants.iter().filter(|p| p.lesions > 0).count();
        let lesions: usize = participants.iter().map(|p| p.lesions).sum();
        let ml: f64 = participants.iter().map(|p| p.lesion_volume_ml).sum();
        let to = self.to.display();
        outln!("{to}: {} T1w heads at {} mm, seed {}", participants.len(), spec.spacing_mm, spec.seed);
        outln!("  {ill} with lesions ({lesions} lesions, {ml:.0} ml in all); truth masks under derivatives/truth");
        if spec.corrupt > 0 {
            outln!("  {} with a truncated file", spec.corrupt);
        }
        outln!("Next:");
        outln!("  neurosieve cohort {to}");
        let tables = self.to.with_file_name("tables");
        outln!("  neurosieve run pipelines/screen.toml --cohort {to} --tables {}", tables.display());
        Ok(())
    }
}
