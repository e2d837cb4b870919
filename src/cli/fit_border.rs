//! `neurosieve fit-border`: writes `assets/brain_border.toml`. It is hidden, because only developers need it.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::eval::preprocess::{border, heads_with_masks};
use crate::preprocess::PreprocessConfig;

/// Fit the weights that place the brain's border, on heads with reference masks
///
/// Uses the `train` subjects of a BIDS cohort with masks under derivatives/brainmask. Takes about five minutes. After a change
/// of skull stripping, bias field correction or registration: fit, build, and compare the figures of
/// `neurosieve eval preprocess`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve fit-border --cohort ../shared/data/healthy-t1 --source 'IXI heads of Hammersmith Hospital, training split, \
with their automatic brain masks; brain-development.org, CC BY-SA 3.0' --out assets/brain_border.toml")]
pub struct FitBorderArgs {
    /// The cohort of heads: a folder or a URL
    #[arg(long, value_name = "URL")]
    cohort: String,
    /// Where the heads come from, and their licence; written into the file
    #[arg(long)]
    source: String,
    /// Use every N-th head
    #[arg(long, value_name = "N", default_value_t = 2)]
    every: usize,
    /// The file to write the weights to
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl FitBorderArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not determine the weights; storage errors; [`Error::Io`] where the file cannot
    /// be written.
    pub async fn run(self) -> Result<()> {
        let heads = heads_with_masks(&self.cohort, "train", self.every).await?;
        let text = border::fit(&heads, &PreprocessConfig::default(), &self.source)?;
        std::fs::write(&self.out, text).map_err(|e| Error::io(format!("cannot write {}", self.out.display()), e))
    }
}
