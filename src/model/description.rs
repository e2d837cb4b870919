//! What `bundle.toml` holds: sizes, preprocessing, thresholds and the origin of a bundle's weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::tokenizer::TokenizerConfig;
use super::transformer::TransformerConfig;
use crate::config::{Section, Validate};
use crate::error::{Error, Result};
use crate::preprocess::PreprocessConfig;

/// What `bundle.toml` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleInfo {
    /// Layout version of this file.
    pub format: u32,
    /// Short name, e.g. `t1w-2mm`.
    pub name: String,
    /// Version of the weights.
    pub version: String,
    /// BIDS suffix of the scans it was trained on, e.g. `T1w`.
    pub modality: String,
    /// Tokens of a slice: rows (along y) and columns (along x).
    pub tokens: [i64; 2],
    /// Sizes of the tokenizer.
    pub tokenizer: TokenizerConfig,
    /// Sizes of the detector.
    pub detector: TransformerConfig,
    /// Sizes of the inpainter.
    pub inpainter: TransformerConfig,
    /// Sizes of the prior; without one, the method `ar` cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<TransformerConfig>,
    /// The preprocessing of the training scans.
    pub preprocess: PreprocessConfig,
    /// Thresholds fixed on healthy scans.
    pub calibration: Calibration,
    /// Origin of the weights.
    pub training: Training,
    /// Held-out figures by name.
    pub metrics: BTreeMap<String, f64>,
    /// SHA-256 of each .safetensors file, by its name without extension.
    pub weights: BTreeMap<String, String>,
}

/// Thresholds fixed on healthy validation scans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Tokens with `p_anomalous` above this are in-painted (lambda).
    pub token_threshold: f64,
    /// Voxels whose anomaly score is above this are in the mask.
    pub mask_threshold: f64,
    /// Share of healthy brain voxels that lie below `mask_threshold`.
    pub healthy_quantile: f64,
    /// Number of healthy scans that the thresholds were fixed on.
    pub scans: usize,
    /// The method `ar` redraws tokens with a negative log-likelihood above this (nats); only where there is a prior.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ar_limit_nats: Option<f64>,
}

/// Origin of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Number of scans that the weights were fitted on.
    pub train_scans: usize,
    /// Number of scans held out for selection and calibration.
    pub val_scans: usize,
    /// Version of the program that trained.
    pub program: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// Data sets with their licences.
    #[serde(default)]
    pub data: Vec<DataSource>,
}

/// A data set that weights were trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// Name of the data set.
    pub name: String,
    /// Its licence.
    pub licence: String,
    /// Where it is published.
    pub source: String,
}

impl BundleInfo {
    /// Its networks, in the order of [`Network::ALL`].
    pub fn networks(&self) -> impl Iterator<Item = Network> + use<> {
        let has_prior = self.prior.is_some();
        Network::ALL.into_iter().filter(move |&network| has_prior || network != Network::Prior)
    }

    /// Checks sizes, thresholds and preprocessing. Training data and figures decide nothing and are not checked.
    ///
    /// # Errors
    /// [`Error::Model`] where a number is out of range.
    pub(super) fn check(&self) -> Result<()> {
        self.validate().map_err(|e| {
            Error::Model(format!(
                "bundle.toml of bundle `{}`: {e}; copy the bundle again, or train it again",
                self.name
            ))
        })
    }

    /// Number of weights that a network has at least.
    pub(super) fn least_weights(&self, network: Network) -> i64 {
        match network {
            Network::Tokenizer => self.tokenizer.least_weights(),
            Network::Detector => self.detector.least_weights(),
            Network::Inpainter => self.inpainter.least_weights(),
            Network::Prior => self.prior.as_ref().map_or(0, TransformerConfig::least_weights),
        }
    }
}

impl Validate for BundleInfo {
    fn validate(&self) -> Result<()> {
        self.tokenizer.validate("tokenizer")?;
        self.detector.validate("detector")?;
        self.inpainter.validate("inpainter")?;
        self.prior.as_ref().map_or(Ok(()), |prior| prior.validate("prior"))?;
        self.tokens.iter().try_for_each(|&n| Section("bundle").within("tokens", n, 1..=1024))?;
        self.preprocess.validate()?;
        let Calibration { token_threshold, mask_threshold, healthy_quantile, ar_limit_nats, .. } = self.calibration;
        let section = Section("calibration");
        let shares = [
            ("token_threshold", token_threshold),
            ("mask_threshold", mask_threshold),
            ("healthy_quantile", healthy_quantile),
        ];
        section.all_within(&shares, 0. ..=1.)?;
        ar_limit_nats.map_or(Ok(()), |limit| section.within("ar_limit_nats", limit, 0. ..=1000.))
    }
}
