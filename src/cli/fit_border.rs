//! `neurosieve fit-border`: makes `assets/brain_border.toml`. For those who change the program, so it is not listed.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::eval::preprocess::heads_with_masks;
use crate::preprocess::PreprocessConfig;
use crate::train::border;

/// Fit the weights that place the brain's border, on heads with reference masks
///
/// Takes the `train` subjects of a BIDS cohort with masks under derivatives/brainmask. Fit again after a change of
/// skull strip, bias field or registration, build, and look at `neurosieve eval preprocess`. About five minutes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve fit-border --cohort ../shared/data/healthy-t1 --source 'IXI heads of Hammersmith Hospital, training split, \
with their automatic brain masks; brain-development.org, CC BY-SA 3.0' --out assets/brain_border.toml")]
pub struct FitBorderArgs {
    /// Where the heads are: a folder or a URL
    #[arg(long, value_name = "URL")]
    cohort: String,
    /// What the heads are and under which licence, for who reads the file
    #[arg(long)]
    source: String,
    /// Take every so-many-th head
    #[arg(long, value_name = "N", default_value_t = 2)]
    every: usize,
    /// Where the weights go
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl FitBorderArgs {
    /// Runs the command.
    pub async fn run(self) -> Result<()> {
        let heads = heads_with_masks(&self.cohort, "train", self.every).await?;
        let text = border::fit(&heads, &PreprocessConfig::default(), &self.source)?;
        std::fs::write(&self.out, text).map_err(|e| Error::io(format!("writing {}", self.out.display()), e))
    }
}
