//! From a preprocessed brain to tokens, an anomaly map, a mask and findings.
//!
//! ```text
//! image ─► encode ─► codes ─► detector ─► p_anomalous per token
//!                      │                      │ above the token threshold
//!                      ▼                      ▼
//!                    inpainter: those tokens anew, in a few steps ─► decode ─► restoration
//! p_anomalous, |image - restoration| ─► score per voxel ─► mask at the healthy threshold ─► findings
//! ```
//! That is [`Method::Mim`]; the other methods are there to be compared with, and go the same way from the score on.
//! [`infer`] is what runs on the device, [`assess`] what runs on a core afterwards. Numbers depend
//! on the scan, the recipe and the type of device alone: a scan never shares a batch with another,
//! and what is drawn is seeded by the scan's id and the slice.

mod findings;
mod infer;
mod map;
mod worker;

pub use findings::{Finding, components, connected};
pub use infer::{Inference, detect, infer, reconstruct};
pub use map::{Assessment, assess, scan_score, score_map, token_brain_fraction};
pub use worker::Worker;

use serde::{Deserialize, Serialize};

use crate::config::ScoreConfig;
use crate::model::Calibration;

/// How anomalies are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Masked image modelling: the detector says which tokens are anomalous, the inpainter restores them.
    Mim,
    /// The autoregressive prior says which tokens are unlikely and restores them, one after the other.
    Ar,
    /// The intensity itself: no model at all, the floor that a model must beat.
    Threshold,
}

/// What a voxel's score is made of under [`Method::Mim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The detector's probability.
    Detector,
    /// The difference between image and restoration.
    Residual,
    /// Both.
    Combined,
}

/// Which intensities are anomalous under [`Method::Threshold`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// Low ones.
    Dark,
    /// High ones.
    Bright,
    /// Those far from the brain's median.
    Both,
}

/// Counted up when the same input would give other numbers.
pub const VERSION: u32 = 2;

/// A token is reported when at least this share of its cell is brain.
pub const MIN_TOKEN_BRAIN: f32 = 0.25;

/// The settings of one scan's scoring, with the bundle's thresholds where the pipeline has none.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How scans are scored.
    pub config: ScoreConfig,
    /// Tokens above this are in-painted.
    pub token_threshold: f32,
    /// Voxels above this are in the mask.
    pub mask_threshold: f32,
}

impl Settings {
    /// Pipeline settings completed by the bundle's calibration.
    pub fn new(config: &ScoreConfig, calibration: &Calibration) -> Self {
        Self {
            config: config.clone(),
            token_threshold: config.token_threshold.unwrap_or(calibration.token_threshold) as f32,
            mask_threshold: config.mask_threshold.unwrap_or(calibration.mask_threshold) as f32,
        }
    }
}
