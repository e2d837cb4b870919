//! What a bundle learns from healthy scans after its training: scores by place, and thresholds.

use super::Context;
use super::data::Brain;
use crate::error::Result;
use crate::model::{Calibration, HealthyMap, HealthyMapBuilder, Networks};
use crate::preprocess;
use crate::score::{self, Scan, Settings};
use crate::volume::Volume;

/// Share of healthy tokens that the autoregressive prior finds likely enough (Naval Marimont and Tarroni, arXiv 2012.06765).
const AR_QUANTILE: f64 = 0.9;

/// The figure of how much is called anomalous in a held-out healthy scan, in the median.
pub(super) const MEDIAN_ML: &str = "healthy_val_median_anomaly_ml";

/// The calibration, the healthy scores by place and figures on the held-out scans.
pub(super) struct Calibrated {
    pub calibration: Calibration,
    pub healthy: Option<HealthyMap>,
    pub figures: Vec<(&'static str, f64)>,
}

/// The token threshold is a quantile of held-out tokens' probabilities, the healthy scores come from scans that were fitted
/// on, the mask threshold is a quantile of held-out voxels' scores, given both.
pub(super) fn calibrate(context: &Context<'_>, networks: &Networks) -> Result<Calibrated> {
    let config = &context.pipeline.train;
    let val: Vec<_> = context.val.brains().iter().map(volumes).collect();
    let batch = score::batch_slices(context.pipeline.score.batch_slices, networks.device);

    let (mut probabilities, mut surprises) = (Vec::new(), Vec::new());
    for (image, brain) in &val {
        let scan = Scan { scan_id: "", image, brain };
        probabilities.extend(score::detect(networks, scan, batch)?);
        if networks.prior.is_some() {
            surprises.extend(score::surprise(networks, scan, batch)?);
        }
    }
    let token_threshold = quantile(&mut probabilities, config.token_quantile);
    let ar_limit_nats = networks.prior.is_some().then(|| f64::from(quantile(&mut surprises, AR_QUANTILE)));
    let mut settings = Settings {
        config: context.pipeline.score.clone(),
        token_threshold,
        mask_threshold: f32::INFINITY,
        ar_limit_nats: ar_limit_nats.unwrap_or(f64::INFINITY),
        healthy: None,
    };
    let map = |name: String, image: &Volume<f32>, brain: &Volume<u8>, settings: &Settings| {
        let inferences = score::infer(networks, &[Scan { scan_id: &name, image, brain }], settings)?;
        Ok(score::score_map(&inferences[0], image, brain, settings))
    };

    let healthy = match config.healthy_map_scans {
        0 => None,
        scans => {
            Some(healthy_map(context.train.brains(), scans, |name, image, brain| map(name, image, brain, &settings))?)
        }
    };
    settings.healthy = healthy.clone().map(std::sync::Arc::new);

    let maps: Vec<Volume<f32>> = val
        .iter()
        .enumerate()
        .map(|(number, (image, brain))| map(format!("val-{number}"), image, brain, &settings))
        .collect::<Result<_>>()?;
    let mut scores: Vec<f32> = maps
        .iter()
        .zip(&val)
        .flat_map(|(map, (_, brain))| map.data.iter().zip(&brain.data).filter(|&(_, &b)| b > 0).map(|(&s, _)| s))
        .collect();
    settings.mask_threshold = quantile(&mut scores, config.healthy_quantile);
    let mut volumes_ml: Vec<f32> = maps
        .iter()
        .map(|map| {
            let above = map.data.iter().map(|&s| u8::from(s > settings.mask_threshold)).collect();
            let above = Volume { grid: map.grid, data: above };
            let (mask, _) = score::components(&above, map, settings.config.min_finding_ml);
            mask.data.iter().filter(|&&v| v > 0).count() as f32 * map.grid.voxel_ml() as f32
        })
        .collect();
    let median_ml = quantile(&mut volumes_ml, 0.5);
    eprintln!(
        "thresholds on {} healthy scans: token {token_threshold:.4}, mask {:.4}; median {median_ml:.2} ml called anomalous",
        val.len(),
        settings.mask_threshold
    );
    let calibration = Calibration {
        token_threshold: f64::from(token_threshold),
        mask_threshold: f64::from(settings.mask_threshold),
        healthy_quantile: config.healthy_quantile,
        scans: val.len(),
        ar_limit_nats,
    };
    Ok(Calibrated { calibration, healthy, figures: vec![(MEDIAN_ML, f64::from(median_ml))] })
}

/// Intensities of all the brains, scores by place of about `scans` of them, spread over all.
fn healthy_map(
    brains: &[Brain],
    scans: usize,
    map: impl Fn(String, &Volume<f32>, &Volume<u8>) -> Result<Volume<f32>>,
) -> Result<HealthyMap> {
    let mut builder = HealthyMapBuilder::new(preprocess::model_grid().shape);
    let n = scans.min(brains.len());
    for number in (0..n).map(|i| i * brains.len() / n) {
        let (image, brain) = volumes(&brains[number]);
        builder.add_score(&map(format!("train-{number}"), &image, &brain)?, &brain);
    }
    for (image, brain) in brains.iter().map(volumes) {
        builder.add_intensity(&score::smoothed_intensity(&image), &brain);
    }
    builder.finish()
}

/// Intensities in 0..1 and the brain's mask.
fn volumes(brain: &Brain) -> (Volume<f32>, Volume<u8>) {
    let grid = preprocess::model_grid();
    let image = brain.image.iter().map(|&v| f32::from(v) / 255.).collect();
    (Volume { grid, data: image }, Volume { grid, data: brain.mask.clone() })
}

/// The value below which the share `q` lies.
fn quantile(values: &mut [f32], q: f64) -> f32 {
    if values.is_empty() {
        return f32::NAN;
    }
    let place = ((values.len() - 1) as f64 * q).round() as usize;
    *values.select_nth_unstable_by(place, f32::total_cmp).1
}
