//! The settings of a scan's scoring: those of the pipeline, completed by the bundle's calibration.

use std::sync::Arc;

use super::config::{Evidence, Method, ScoreConfig};
use super::slices::Batching;
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::model::{Bundle, HealthyMap};

/// Slices per batch if the settings name none. On a processor, 4 are as fast as 16 or faster and take less memory; a
/// scan has about 80.
const BATCH_CPU: usize = 4;
const BATCH_GPU: usize = 96;

/// Scans whose slices share batches on a GPU if the settings name no number: enough that few batches need fillers. On a
/// processor a batch has so few slices that a single scan fills it.
const SCANS_GPU: usize = 8;

/// [`Settings::ar_limit_nats`] for bundles without one: the limit of Naval Marimont and Tarroni (arXiv 2012.06765).
const AR_LIMIT_NATS: f64 = 5.;

/// Settings of a scan's scoring.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Settings of the pipeline.
    pub config: ScoreConfig,
    /// Tokens with `p_anomalous` above this are in-painted.
    pub token_threshold: f32,
    /// Voxels with a score above this are in the mask.
    pub mask_threshold: f32,
    /// [`Method::Ar`] redraws tokens with a negative log-likelihood above this (nats).
    pub ar_limit_nats: f64,
    /// The healthy map that scores are measured relative to; without one, scores are used as they are.
    pub healthy: Option<Arc<HealthyMap>>,
}

impl Settings {
    /// Settings of the pipeline, completed by the bundle's calibration and healthy map.
    ///
    /// # Errors
    /// [`Error::Config`] where a number is out of range, or the bundle lacks the healthy map that the settings need.
    pub fn new(config: &ScoreConfig, bundle: &Bundle) -> Result<Self> {
        config.validate()?;
        let calibration = &bundle.info.calibration;
        let uses_map = match (config.method, config.evidence) {
            (Method::Mim, Evidence::Combined) => config.healthy_map,
            (Method::Mim, Evidence::Intensity) => true,
            _ => false,
        };
        let healthy = bundle.healthy.clone().filter(|_| uses_map);
        if config.evidence == Evidence::Intensity && healthy.is_none() {
            return Err(Error::Config(format!(
                "score.evidence = \"intensity\" needs a bundle with a healthy map, and `{}` has none: train it with \
                 train.healthy_map_scans above 0, or use another evidence",
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

    /// How slices are batched on a device.
    pub fn batching(&self, device: tch::Device) -> Batching {
        let slices = batch_slices(self.config.batch_slices, device);
        Batching { shared: self.scans_at_once(device) > 1, ..Batching::alone(slices) }
    }

    /// Number of scans whose slices may share batches; 1 for the methods that are there for comparison.
    pub fn scans_at_once(&self, device: tch::Device) -> usize {
        match (self.config.method, self.config.evidence, self.config.scans_at_once) {
            (Method::Ar | Method::Threshold, ..) | (_, Evidence::Intensity, _) => 1,
            (_, _, Some(configured)) => configured.get(),
            _ if device == tch::Device::Cpu => 1,
            _ => SCANS_GPU,
        }
    }
}

/// Slices per batch on a device: the `configured` number or, for 0, the default of the device.
pub fn batch_slices(configured: usize, device: tch::Device) -> usize {
    match (configured, device) {
        (0, tch::Device::Cpu) => BATCH_CPU,
        (0, _) => BATCH_GPU,
        _ => configured,
    }
}
