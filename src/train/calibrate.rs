//! Calibration on healthy scans, after the networks are trained: the healthy map and the thresholds.

use std::sync::Arc;

use super::context::{Context, Figures};
use super::dataset::Brain;
use crate::error::Result;
use crate::model::{Calibration, HealthyMap, HealthyMapBuilder, Networks};
use crate::preprocess;
use crate::score::{self, Scan, Settings};
use crate::terminal::errln;
use crate::volume::Volume;

/// Share of healthy tokens below the likelihood limit of the method `ar` (Naval Marimont and Tarroni, arXiv
/// 2012.06765).
const AR_QUANTILE: f64 = 0.9;

/// Name of a figure: median volume of the anomaly mask in held-out healthy scans.
pub(super) const MEDIAN_ML: &str = "healthy_val_median_anomaly_ml";

/// What a calibration gives.
pub(super) struct Calibrated {
    pub(super) calibration: Calibration,
    /// The healthy map; `None` where `train.healthy_map_scans` is 0.
    pub(super) healthy: Option<HealthyMap>,
    /// Figures of the held-out scans.
    pub(super) figures: Figures,
}

/// An image, 0..1, and its brain mask, 0 or 1.
type Case = (Volume<f32>, Volume<u8>);

/// Calibrates in three steps, each with the results of those before it:
/// 1. token threshold: a quantile of `p_anomalous` of held-out tokens;
/// 2. healthy map: scores of training scans;
/// 3. mask threshold: a quantile of the scores of held-out voxels.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) where libtorch fails, [`Error::Input`](crate::Error::Input) where a scan has
/// no brain.
pub(super) fn calibrate(context: &Context<'_>, networks: &Networks) -> Result<Calibrated> {
    let config = context.config();
    let val: Vec<Case> = context.val.brains().iter().map(case).collect();
    let (token_threshold, ar_limit_nats) = token_thresholds(context, networks, &val)?;
    let mut settings = Settings {
        config: context.pipeline.score.clone(),
        token_threshold,
        mask_threshold: f32::INFINITY,
        ar_limit_nats: ar_limit_nats.unwrap_or(f64::INFINITY),
        healthy: None,
    };
    let healthy = match config.healthy_map_scans {
        0 => None,
        scans => Some(healthy_map(networks, context.train.brains(), scans, &settings)?),
    };
    settings.healthy = healthy.clone().map(Arc::new);

    let maps: Vec<Volume<f32>> = val
        .iter()
        .enumerate()
        .map(|(number, case)| score_map(networks, &format!("val-{number}"), case, &settings))
        .collect::<Result<_>>()?;
    let mut scores: Vec<f32> = maps
        .iter()
        .zip(&val)
        .flat_map(|(map, (_, brain))| map.data.iter().zip(&brain.data).filter(|&(_, &b)| b > 0).map(|(&s, _)| s))
        .collect();
    settings.mask_threshold = quantile(&mut scores, config.healthy_quantile);
    let mut volumes_ml: Vec<f32> = maps.iter().map(|map| mask_ml(map, &settings)).collect();
    let median_ml = quantile(&mut volumes_ml, 0.5);
    errln!(
        "thresholds on {} healthy scans: token {token_threshold:.4}, mask {:.4}; median anomaly volume {median_ml:.2} ml",
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

/// Quantiles of held-out tokens: of `p_anomalous`, and of the negative log-likelihood (nats) where there is a prior.
fn token_thresholds(context: &Context<'_>, networks: &Networks, val: &[Case]) -> Result<(f32, Option<f64>)> {
    let batch = score::batch_slices(context.pipeline.score.batch_slices, networks.device);
    let (mut probabilities, mut nll) = (Vec::new(), Vec::new());
    for (image, brain) in val {
        let scan = Scan { scan_id: "", image, brain };
        probabilities.extend(score::detect(networks, scan, batch)?);
        if networks.prior.is_some() {
            nll.extend(score::surprise(networks, scan, batch)?);
        }
    }
    let token_threshold = quantile(&mut probabilities, context.config().token_quantile);
    let ar_limit_nats = networks.prior.is_some().then(|| f64::from(quantile(&mut nll, AR_QUANTILE)));
    Ok((token_threshold, ar_limit_nats))
}

/// The healthy map from the intensities of all brains, and from the scores of at most `scans` of them, evenly spread.
fn healthy_map(networks: &Networks, brains: &[Brain], scans: usize, settings: &Settings) -> Result<HealthyMap> {
    let mut builder = HealthyMapBuilder::new(preprocess::model_grid().shape);
    let n = scans.min(brains.len());
    for number in (0..n).map(|i| i * brains.len() / n) {
        let case = case(&brains[number]);
        builder.add_score(&score_map(networks, &format!("train-{number}"), &case, settings)?, &case.1);
    }
    for (image, brain) in brains.iter().map(case) {
        builder.add_intensity(&score::smoothed_intensity(&image), &brain);
    }
    builder.finish()
}

/// The score of every voxel; `scan_id` seeds the draws.
fn score_map(networks: &Networks, scan_id: &str, case: &Case, settings: &Settings) -> Result<Volume<f32>> {
    let (image, brain) = case;
    let inferences = score::infer(networks, &[Scan { scan_id, image, brain }], settings)?;
    score::score_map(&inferences[0], image, brain, settings)
}

/// Volume of the anomaly mask, ml.
fn mask_ml(map: &Volume<f32>, settings: &Settings) -> f32 {
    let above = map.data.iter().map(|&s| u8::from(s > settings.mask_threshold)).collect();
    let above = Volume { grid: map.grid, data: above };
    let (mask, _) = score::components(&above, map, settings.config.min_finding_ml);
    mask.data.iter().filter(|&&v| v > 0).count() as f32 * map.grid.voxel_ml() as f32
}

fn case(brain: &Brain) -> Case {
    let grid = preprocess::model_grid();
    let image = brain.image.iter().map(|&v| f32::from(v) / 255.).collect();
    (Volume { grid, data: image }, Volume { grid, data: brain.mask.clone() })
}

/// The `q` quantile of values, nearest rank; not a number where there are none.
fn quantile(values: &mut [f32], q: f64) -> f32 {
    if values.is_empty() {
        return f32::NAN;
    }
    let place = ((values.len() - 1) as f64 * q).round() as usize;
    *values.select_nth_unstable_by(place, f32::total_cmp).1
}
