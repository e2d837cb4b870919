//! What all stages of a training share: its settings, its device, and the slices to draw from.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Device, Kind};

use super::anomaly::Outline;
use super::config::{TrainConfig, TrainPipeline};
use super::dataset::Slices;
use super::scans;
use crate::error::Result;

/// Figures by name.
pub(super) type Figures = Vec<(&'static str, f64)>;

/// What the stages share.
pub(super) struct Context<'a> {
    pub(super) pipeline: &'a TrainPipeline,
    pub(super) device: Device,
    /// The kind that networks compute in.
    pub(super) kind: Kind,
    /// Slices to train on.
    pub(super) train: Slices,
    /// Held-out slices.
    pub(super) val: Slices,
    /// Held-out slices of another site, on which the tokenizer is measured too.
    pub(super) other_site: Option<Slices>,
    /// Outlines of real lesions, for synthetic anomalies.
    pub(super) outlines: Vec<Outline>,
}

impl<'a> Context<'a> {
    /// Reads and preprocesses the scans of the cohort.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) where the cohort has no `train` or no `val` scan; storage errors.
    pub(super) async fn load(pipeline: &'a TrainPipeline, device: Device) -> Result<Self> {
        let config = &pipeline.train;
        let participants = &pipeline.cohort.select.participants;
        let train = Slices::new(scans::brains(pipeline, participants, "train").await?);
        let val = Slices::new(scans::brains(pipeline, participants, "val").await?);
        let other_site = match config.other_site.is_empty() {
            true => None,
            false => Some(Slices::new(scans::brains(pipeline, &config.other_site, "val").await?)),
        };
        let outlines = scans::outlines(&config.shapes).await?;
        let kind = if config.bf16 { Kind::BFloat16 } else { Kind::Float };
        Ok(Self { pipeline, device, kind, train, val, other_site, outlines })
    }

    /// Settings of the training.
    pub(super) fn config(&self) -> &'a TrainConfig {
        &self.pipeline.train
    }

    /// The generator of one draw: item `item` of the batch of step `step` of a stage.
    pub(super) fn rng(&self, stage: &str, step: i64, item: usize) -> ChaCha8Rng {
        let stage = stage.bytes().fold(0, |h: u64, b| h.wrapping_mul(131) + u64::from(b));
        let mut rng = ChaCha8Rng::seed_from_u64(self.config().seed ^ stage);
        rng.set_stream(step as u64 * 4096 + item as u64);
        rng
    }

    /// Draws the items of a batch in parallel, each with a generator of its own, so that a batch depends on the seed,
    /// the stage and the step alone.
    pub(super) fn draw<T: Send>(
        &self,
        stage: &str,
        step: i64,
        size: usize,
        draw: impl Fn(&mut ChaCha8Rng) -> T + Sync,
    ) -> Vec<T> {
        (0..size).into_par_iter().map(|item| draw(&mut self.rng(stage, step, item))).collect()
    }
}
