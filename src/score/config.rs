//! Settings of scoring: the section `[score]` of a pipeline file.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::config::{Section, Validate};
use crate::error::Result;

/// How scans are scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreConfig {
    /// How anomalies are found: `mim` (default), `ar` (the autoregressive rival) or `threshold` (intensity alone).
    pub method: Method,
    /// `mim`: what a voxel's score is made of: `detector`, `residual`, `combined` (default) or `intensity`, which uses no
    /// network.
    pub evidence: Evidence,
    /// Restorations sampled per slice that has tokens to in-paint. 0 (default) uses the inpainter's mean restoration under
    /// `mim`, in one pass and without sampling; `ar` then samples one.
    pub restorations: usize,
    /// `mim`: tokens with `p_anomalous` above this probability are in-painted. Default: the bundle's calibrated threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_threshold: Option<f64>,
    /// Voxels with a score (0 to 1) above this are in the mask. Default: the bundle's calibrated threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_threshold: Option<f64>,
    /// `mim`: passes of the inpainter per sampled restoration. Default: 6.
    pub steps: i64,
    /// `mim`: sampling temperature of the inpainter; below 1 it prefers likely tokens more strongly. Default: 0.7.
    pub temperature: f64,
    /// `mim` with `combined`: standardise a voxel's score and intensity by those of healthy scans at the same place, if the
    /// bundle has a healthy map. Default: true.
    pub healthy_map: bool,
    /// `mim` with `combined` and a healthy map: how many standard deviations of the networks' score one standard deviation
    /// of the intensity is worth. The networks' score has the longer tail in healthy scans: one voxel in a thousand lies 9
    /// deviations out, against 2.4 for the intensity. 0 uses the networks' score alone. Default: 8.
    pub intensity_weight: f64,
    /// `ar`: tokens with a negative log-likelihood above this are resampled, in nats. Default: the bundle's limit, which
    /// nine in ten healthy tokens stay below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ar_limit_nats: Option<f64>,
    /// `ar`: cache the keys and values of earlier tokens; without the cache every token costs a full pass. Default: true.
    pub ar_cached: bool,
    /// `threshold`: which intensities are anomalous: `dark` (default; lesions in T1w), `bright` (in FLAIR and T2w) or
    /// `both`.
    pub tail: Tail,
    /// How residuals of neighbouring voxels are pooled: `gaussian` or `min_mean`. Default: `min_mean` for `ar`, `gaussian`
    /// for the other methods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Standard deviation of the Gaussian that smooths the anomaly map, in mm. Default: 4.
    pub smooth_mm: f64,
    /// Smallest connected component that is kept in the mask and reported as a finding, in ml. Default: 0.2.
    pub min_finding_ml: f64,
    /// Number format the networks compute in: `f32` (default) or `bf16`. `bf16` is several times faster on devices with
    /// bfloat16 matrix units (GPUs, processors with AMX), slower elsewhere, and changes scores slightly.
    pub precision: Precision,
    /// Slices per batch. 0 (default): 4 on a processor, whose caches hold no more, and 96 on a GPU. `neurosieve bench
    /// device` measures other sizes.
    pub batch_slices: usize,
    /// Scans whose slices may share a batch while several wait for the device. Above 1 all batches have the same shape, so
    /// that a scan's numbers do not depend on which scans share its batches. Default: 1 on a processor, 8 on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scans_at_once: Option<NonZeroUsize>,
    /// Seed of the sampled restorations, combined with the scan's id. Default: 0.
    pub seed: u64,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            method: Method::Mim,
            evidence: Evidence::Combined,
            restorations: 0,
            token_threshold: None,
            mask_threshold: None,
            steps: 6,
            temperature: 0.7,
            healthy_map: true,
            intensity_weight: 8.0,
            ar_limit_nats: None,
            ar_cached: true,
            tail: Tail::Dark,
            pooling: None,
            smooth_mm: 4.0,
            min_finding_ml: 0.2,
            precision: Precision::F32,
            batch_slices: 0,
            scans_at_once: None,
            seed: 0,
        }
    }
}

impl Validate for ScoreConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("score");
        section.within("restorations", self.restorations, 0..=1000)?;
        // Scores and probabilities are from 0 to 1. NaN would make every voxel healthy.
        for (key, value) in [("token_threshold", self.token_threshold), ("mask_threshold", self.mask_threshold)] {
            value.map_or(Ok(()), |value| section.within(key, value, 0. ..=1.))?;
        }
        section.within("steps", self.steps, 1..=1000)?;
        section.within("temperature", self.temperature, 0.001..=1000.)?;
        section.within("intensity_weight", self.intensity_weight, 0. ..=1000.)?;
        self.ar_limit_nats.map_or(Ok(()), |limit| section.within("ar_limit_nats", limit, 0. ..=1000.))?;
        section.within("smooth_mm", self.smooth_mm, 0. ..=50.)?;
        section.within("min_finding_ml", self.min_finding_ml, 0. ..=10_000.)?;
        section.within("batch_slices", self.batch_slices, 0..=65_536)?;
        self.scans_at_once.map_or(Ok(()), |scans| section.within("scans_at_once", scans.get(), 1..=1024))
    }
}

/// How anomalies are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Masked image modelling: the detector finds anomalous tokens, the inpainter restores them.
    Mim,
    /// The autoregressive prior finds unlikely tokens and resamples them one after the other.
    Ar,
    /// The intensity alone, without a model: the baseline that a model must beat.
    Threshold,
}

impl Method {
    /// The pooling of its residuals unless the settings name another.
    pub fn pooling(self) -> Pooling {
        match self {
            Self::Mim | Self::Threshold => Pooling::Gaussian,
            Self::Ar => Pooling::MinMean,
        }
    }
}

/// What a voxel's score is made of under [`Method::Mim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The detector's probability.
    Detector,
    /// The difference between image and restoration.
    Residual,
    /// Both, standardised by healthy scans at the same place and combined with the intensity if the bundle has a healthy
    /// map.
    Combined,
    /// How far the intensity lies from that of healthy scans at the same place. Uses no network, but needs a bundle with a
    /// healthy map.
    Intensity,
}

/// How residuals of neighbouring voxels are pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// A Gaussian of `smooth_mm`.
    Gaussian,
    /// The minimum over 3 x 3 x 3 voxels, then the mean over 7 x 7 x 3, as Naval Marimont and Tarroni do. Removes
    /// structures thinner than three voxels.
    MinMean,
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

/// Number format that the networks compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point, on every device.
    F32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// The same as libtorch's kind.
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::F32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_named() {
        let plain = ScoreConfig::default;
        plain().validate().expect("the default");
        for (config, key) in [
            (ScoreConfig { intensity_weight: -1., ..plain() }, "score.intensity_weight is -1"),
            (ScoreConfig { smooth_mm: f64::NAN, ..plain() }, "score.smooth_mm is NaN"),
            (ScoreConfig { smooth_mm: 1e9, ..plain() }, "score.smooth_mm is 1000000000"),
            (ScoreConfig { min_finding_ml: f64::INFINITY, ..plain() }, "score.min_finding_ml is inf"),
            (ScoreConfig { temperature: 0., ..plain() }, "score.temperature is 0"),
            (ScoreConfig { mask_threshold: Some(f64::NAN), ..plain() }, "score.mask_threshold is NaN"),
            (ScoreConfig { token_threshold: Some(1.5), ..plain() }, "score.token_threshold is 1.5"),
            (ScoreConfig { steps: 0, ..plain() }, "score.steps is 0"),
            (ScoreConfig { steps: 1_000_000_000_000, ..plain() }, "score.steps is 1000000000000"),
        ] {
            assert!(config.validate().unwrap_err().to_string().contains(key), "{key}");
        }
    }
}
