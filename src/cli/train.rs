//! `neurosieve train`: trains a bundle on a healthy cohort.

use std::path::PathBuf;

use super::pipeline::quoted;
use crate::error::Result;
use crate::train;

/// Train a bundle on a healthy cohort
///
/// Trains tokenizer, detector and inpainter on the subjects whose `split` in participants.tsv is `train`, fixes the
/// thresholds on those with `val`, and writes a bundle with its model card. If the training is interrupted, the same command
/// continues it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve train pipelines/train.toml --cohort ./healthy --set train.out=my-bundle --set train.device=cuda
  neurosieve run pipelines/screen.toml --cohort ./study --tables ./results --set model.bundle=my-bundle")]
pub struct TrainArgs {
    /// The pipeline file (TOML), such as pipelines/train.toml
    pub pipeline: PathBuf,
    /// Where the healthy scans are [pipeline: cohort.url]
    #[arg(long, value_name = "URL")]
    pub cohort: Option<String>,
    /// Override any key of the pipeline file; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl TrainArgs {
    /// Runs the training.
    ///
    /// # Errors
    /// As [`train::load()`] and [`train::train`].
    pub async fn run(self) -> Result<()> {
        let mut overrides = self.set;
        overrides.extend(self.cohort.map(|url| quoted("cohort.url", &url)));
        train::train(&train::load(Some(&self.pipeline), &overrides)?).await
    }
}
