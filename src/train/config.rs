//! Settings of training: the pipeline file of `neurosieve train`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cohort::CohortConfig;
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::model::device::DeviceChoice;
use crate::model::{DataSource, Network, TokenizerConfig, TransformerConfig};
use crate::preprocess::PreprocessConfig;
use crate::score::ScoreConfig;

/// What `neurosieve train` does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainPipeline {
    /// The healthy cohort; a column of its `participants.tsv` assigns subjects to `train` or `val`.
    pub cohort: CohortConfig,
    /// Preprocessing in front of the model.
    pub preprocess: PreprocessConfig,
    /// What is trained, and where it is written.
    pub train: TrainConfig,
    /// Scoring with which the thresholds are calibrated on healthy scans.
    pub score: ScoreConfig,
}

/// What is trained, and where it is written. In a pipeline file, `preset = "tiny"` or `"small"` fills in the sizes of the
/// networks that the file leaves out; see [`super::load()`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the bundle. Default: `custom`.
    pub name: String,
    /// Version of the weights. Default: `1`.
    pub version: String,
    /// Folder that the bundle is written to. Default: `bundle`.
    pub out: PathBuf,
    /// Folder of prepared scans and checkpoints; a training that is started again continues from them. Default:
    /// `train-work`.
    pub work: PathBuf,
    /// Column of `participants.tsv` that holds `train` or `val`. Default: `split`.
    pub split_column: String,
    /// Subjects of another site, as columns of `participants.tsv` with their values, e.g. `{ source = ["ds002748"] }`. They
    /// are not trained on; the tokenizer is also measured on their `val` scans. Default: none.
    pub other_site: BTreeMap<String, Vec<String>>,
    /// Time between two checkpoints, in seconds. Default: 60.
    pub checkpoint_seconds: u64,
    /// Device that trains: `auto` (default), `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceChoice,
    /// Computes in bfloat16; weights stay in f32. Default: true.
    pub bf16: bool,
    /// Seed of every random draw. Default: 1.
    pub seed: u64,
    /// Folder or URL of lesion masks (any tree of NIfTI files) whose outlines synthetic anomalies take. Only outlines are
    /// used, never an image of a lesion. Default: none.
    pub shapes: String,
    /// Share of healthy brain voxels that score below the mask threshold, 0 to 1. Default: 0.998.
    pub healthy_quantile: f64,
    /// Share of healthy brain tokens that are not in-painted, 0 to 1. Default: 0.97.
    pub token_quantile: f64,
    /// Training scans, evenly spread over all of them, whose scores make the healthy map. 0 writes a bundle without a
    /// healthy map. Default: 96.
    pub healthy_map_scans: usize,
    /// A bundle's folder, or `built-in`, whose networks are taken unchanged: only the healthy map and the thresholds are
    /// fitted to this cohort, which adapts a bundle to another scanner in minutes. Default: networks are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks_of: Option<String>,
    /// With `networks_of`: networks that are trained further on this cohort, with unchanged sizes: `inpainter`, `detector`,
    /// `prior`. Default: none.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub further: BTreeSet<Network>,
    /// The last network to train: `tokenizer`, `inpainter`, `detector` or `prior`. Training then prints its figures and
    /// writes no bundle. Default: all networks are trained and a bundle is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Network>,
    /// The tokenizer's sizes and training.
    pub tokenizer: TokenizerTraining,
    /// The detector's sizes and training.
    pub detector: NetworkTraining<TransformerConfig>,
    /// Synthetic anomalies that the detector learns to find.
    pub anomalies: AnomalyConfig,
    /// The inpainter's sizes and training.
    pub inpainter: NetworkTraining<TransformerConfig>,
    /// The autoregressive prior's sizes and training. Default: none, and the method `ar` cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<NetworkTraining<TransformerConfig>>,
    /// Data sets with their licences, for the bundle and its model card.
    pub data: Vec<DataSource>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            name: "custom".into(),
            version: "1".into(),
            out: "bundle".into(),
            work: "train-work".into(),
            split_column: "split".into(),
            other_site: BTreeMap::new(),
            checkpoint_seconds: 60,
            device: DeviceChoice::default(),
            bf16: true,
            seed: 1,
            shapes: String::new(),
            healthy_quantile: 0.998,
            token_quantile: 0.97,
            healthy_map_scans: 96,
            networks_of: None,
            further: BTreeSet::new(),
            until: None,
            tokenizer: TokenizerTraining {
                network: TokenizerConfig::default(),
                steps: 3000,
                batch: 24,
                learning_rate: 1e-3,
                adversarial: 0.,
                feature: 0.,
                decoder_steps: 0,
                adversary_from: 0,
            },
            anomalies: AnomalyConfig::default(),
            detector: NetworkTraining {
                network: TransformerConfig { width: 128, heads: 4, layers: 4 },
                steps: 3000,
                batch: 24,
                learning_rate: 1e-3,
            },
            inpainter: NetworkTraining {
                network: TransformerConfig { width: 160, heads: 5, layers: 4 },
                steps: 2000,
                batch: 24,
                learning_rate: 1e-3,
            },
            prior: None,
            data: Vec::new(),
        }
    }
}

/// Sizes and training of the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerTraining {
    /// Sizes of the network.
    pub network: TokenizerConfig,
    /// Updates of all weights.
    pub steps: i64,
    /// Slices per update.
    pub batch: usize,
    /// Peak learning rate of a cosine schedule with warm-up.
    pub learning_rate: f64,
    /// Weight of the adversarial loss; at 1 its gradient is as large as that of the other losses. Default: 0.
    #[serde(default)]
    pub adversarial: f64,
    /// Weight of the feature loss (distance between the discriminator's activations), beside L1. Default: 0.
    #[serde(default)]
    pub feature: f64,
    /// Updates of the decoder alone after the others, with the codes fixed. Default: 0.
    #[serde(default)]
    pub decoder_steps: i64,
    /// Step from which the discriminator is trained and its losses count. Default: 0.
    #[serde(default)]
    pub adversary_from: i64,
}

/// Sizes and training of one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkTraining<N> {
    /// Sizes of the network.
    pub network: N,
    /// Updates of the weights.
    pub steps: i64,
    /// Slices per update.
    pub batch: usize,
    /// Peak learning rate of a cosine schedule with warm-up.
    pub learning_rate: f64,
}

/// Synthetic anomalies that the detector is trained with. A slice may have both kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnomalyConfig {
    /// Share of slices with anomalies in the image, 0 to 1. Default: 0.75.
    pub image_share: f64,
    /// Share of slices in which blocks of tokens are replaced, 0 to 1. Default: 0.2.
    pub token_share: f64,
}

impl Default for AnomalyConfig {
    fn default() -> Self {
        Self { image_share: 0.75, token_share: 0.2 }
    }
}

impl Validate for TrainPipeline {
    fn validate(&self) -> Result<()> {
        self.preprocess.validate()?;
        self.score.validate()?;
        self.train.validate()
    }
}

impl Validate for TrainConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("train");
        section.within("checkpoint_seconds", self.checkpoint_seconds, 0..=24 * 3600)?;
        let quantiles = [("healthy_quantile", self.healthy_quantile), ("token_quantile", self.token_quantile)];
        section.all_within(&quantiles, 0. ..=1.)?;
        section.within("healthy_map_scans", self.healthy_map_scans, 0..=1_000_000)?;
        let AnomalyConfig { image_share, token_share } = self.anomalies;
        let shares = [("image_share", image_share), ("token_share", token_share)];
        Section("train.anomalies").all_within(&shares, 0. ..=1.)?;
        self.tokenizer.validate()?;
        let networks = [
            ("train.detector", Some(&self.detector)),
            ("train.inpainter", Some(&self.inpainter)),
            ("train.prior", self.prior.as_ref()),
        ];
        for (key, training) in networks.into_iter().filter_map(|(key, training)| Some((key, training?))) {
            training.network.validate(&format!("{key}.network"))?;
            updates(Section(key), training.steps, training.batch, training.learning_rate)?;
        }
        Ok(())
    }
}

impl Validate for TokenizerTraining {
    fn validate(&self) -> Result<()> {
        let section = Section("train.tokenizer");
        self.network.validate("train.tokenizer.network")?;
        updates(section, self.steps, self.batch, self.learning_rate)?;
        section.all_within(&[("adversarial", self.adversarial), ("feature", self.feature)], 0. ..=1000.)?;
        let steps = [("decoder_steps", self.decoder_steps), ("adversary_from", self.adversary_from)];
        section.all_within(&steps, 0..=MOST_STEPS)
    }
}

/// A hundred million updates: years of training.
const MOST_STEPS: i64 = 100_000_000;

/// Checks the numbers that every training has.
fn updates(section: Section<'_>, steps: i64, batch: usize, learning_rate: f64) -> Result<()> {
    section.within("steps", steps, 0..=MOST_STEPS)?;
    section.within("batch", batch, 1..=65_536)?;
    section.within("learning_rate", learning_rate, 0. ..=10.)
}
