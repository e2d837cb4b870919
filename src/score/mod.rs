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
//! on the scan, the recipe and the type of device alone: where scans share a batch, its shape does not tell who is in it,
//! and what is drawn is seeded by the scan's id and the slice.

mod config;
mod findings;
mod infer;
mod map;
mod recipe;
mod slices;
mod worker;

pub use config::{Evidence, Method, Pooling, Precision, ScoreConfig, Tail};
pub use findings::{Finding, components, connected};
pub use infer::{Inference, detect, infer, reconstruct, surprise};
pub use map::{Assessment, assess, scan_score, score_map, smoothed_intensity, token_brain_fraction};
pub use recipe::recipe_id;
pub use slices::{Batching, Scan};
pub use worker::Worker;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::{Bundle, HealthyMap};

/// Counted up when the same input would give other numbers.
pub const VERSION: u32 = 7;

/// Slices at once where the settings leave it open. On a processor four are as fast as sixteen, or faster, and take less
/// memory; a scan has about eighty.
const BATCH_CPU: usize = 4;
const BATCH_GPU: usize = 96;

/// Scans whose slices share batches on a GPU where the settings leave it open: enough that few batches are filled up. On a
/// processor, whose caches hold a few slices, a scan alone fills them.
const SCANS_GPU: usize = 8;

/// A token is reported when at least this share of its cell is brain.
pub const MIN_TOKEN_BRAIN: f32 = 0.25;

/// The settings of one scan's scoring, with the bundle's calibration where the pipeline has none.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How scans are scored.
    pub config: ScoreConfig,
    /// Tokens above this are in-painted.
    pub token_threshold: f32,
    /// Voxels above this are in the mask.
    pub mask_threshold: f32,
    /// Tokens less likely than this (nats) are drawn anew by [`Method::Ar`].
    pub ar_limit_nats: f64,
    /// What healthy scans look like by place, which a scan is measured by; without, scores are taken as they are.
    pub healthy: Option<Arc<HealthyMap>>,
}

/// [`Settings::ar_limit_nats`] of bundles that have none: that of Naval Marimont and Tarroni.
const AR_LIMIT_NATS: f64 = 5.;

/// Slices that pass through a network at once on a device: those of the settings, or what suits it.
pub fn batch_slices(configured: usize, device: tch::Device) -> usize {
    match (configured, device) {
        (0, tch::Device::Cpu) => BATCH_CPU,
        (0, _) => BATCH_GPU,
        (given, _) => given,
    }
}

/// Numbers that no score can be made with.
fn check(config: &ScoreConfig) -> Result<()> {
    let wrong = |key: &str, value: f64, asked: &str| Err(Error::Config(format!("score.{key} is {value}: {asked}")));
    let sizes = [
        ("intensity_weight", config.intensity_weight),
        ("smooth_mm", config.smooth_mm),
        ("min_finding_ml", config.min_finding_ml),
    ];
    for (key, value) in sizes {
        if !(value.is_finite() && value >= 0.) {
            return wrong(key, value, "give a number of 0 or more");
        }
    }
    if !(config.temperature.is_finite() && config.temperature > 0.) {
        return wrong("temperature", config.temperature, "give a number above 0");
    }
    if config.steps < 1 {
        return wrong("steps", config.steps as f64, "a drawn restoration takes one pass or more");
    }
    Ok(())
}

impl Settings {
    /// How slices pass through the networks on a device.
    pub fn batching(&self, device: tch::Device) -> Batching {
        let slices = batch_slices(self.config.batch_slices, device);
        Batching { shared: self.scans_at_once(device) > 1, ..Batching::alone(slices) }
    }

    /// Scans whose slices may share batches. The rivals look at one at a time, as their authors do.
    pub fn scans_at_once(&self, device: tch::Device) -> usize {
        match (self.config.method, self.config.evidence, self.config.scans_at_once) {
            (Method::Ar | Method::Threshold, ..) | (_, Evidence::Intensity, _) => 1,
            (_, _, Some(given)) => given.get(),
            _ if device == tch::Device::Cpu => 1,
            _ => SCANS_GPU,
        }
    }

    /// Pipeline settings completed by what the bundle learnt from healthy scans.
    ///
    /// # Errors
    /// [`Error::Config`] where a number makes no sense or the bundle does not know what the method needs.
    pub fn new(config: &ScoreConfig, bundle: &Bundle) -> Result<Self> {
        check(config)?;
        let calibration = &bundle.info.calibration;
        let measured = match (config.method, config.evidence) {
            (Method::Mim, Evidence::Combined) => config.healthy_map,
            (Method::Mim, Evidence::Intensity) => true,
            _ => false,
        };
        let healthy = bundle.healthy.clone().filter(|_| measured);
        if config.evidence == Evidence::Intensity && healthy.is_none() {
            return Err(Error::Config(format!(
                "score.evidence = \"intensity\" needs a bundle that knows healthy intensities by place, `{}` does not: \
                 train it with train.healthy_map_scans above 0, or take another evidence",
                bundle.info.name
            )));
        }
        Ok(Self {
            config: config.clone(),
            token_threshold: config.token_threshold.unwrap_or(calibration.token_threshold) as f32,
            mask_threshold: config.mask_threshold.unwrap_or(calibration.mask_threshold) as f32,
            ar_limit_nats: config.ar_limit_nats.or(calibration.ar_limit_nats).unwrap_or(AR_LIMIT_NATS),
            healthy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_named() {
        check(&ScoreConfig::default()).expect("the default");
        let plain = ScoreConfig::default;
        for (config, key) in [
            (ScoreConfig { intensity_weight: -1., ..plain() }, "score.intensity_weight is -1"),
            (ScoreConfig { smooth_mm: f64::NAN, ..plain() }, "score.smooth_mm is NaN"),
            (ScoreConfig { min_finding_ml: f64::INFINITY, ..plain() }, "score.min_finding_ml is inf"),
            (ScoreConfig { temperature: 0., ..plain() }, "score.temperature is 0"),
            (ScoreConfig { steps: 0, ..plain() }, "score.steps is 0"),
        ] {
            assert!(check(&config).unwrap_err().to_string().contains(key), "{key}");
        }
    }
}
