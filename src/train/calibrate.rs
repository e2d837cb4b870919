//! Thresholds fixed on healthy validation scans.

use super::Context;
use crate::error::Result;
use crate::model::{Calibration, Networks};
use crate::preprocess;
use crate::score::{self, Settings};
use crate::volume::Volume;

/// The token threshold (a quantile of healthy tokens' probabilities) and the mask threshold (a
/// quantile of healthy voxels' scores, given that token threshold), with figures on the same scans.
pub(super) fn thresholds(
    context: &Context<'_>,
    networks: &Networks,
) -> Result<(Calibration, Vec<(&'static str, f64)>)> {
    let config = &context.pipeline.train;
    let grid = preprocess::model_grid();
    let volumes: Vec<(Volume<f32>, Volume<u8>)> = context
        .val
        .brains()
        .iter()
        .map(|b| {
            let image = b.image.iter().map(|&v| f32::from(v) / 255.).collect();
            (Volume { grid, data: image }, Volume { grid, data: b.mask.clone() })
        })
        .collect();
    let batch = context.pipeline.score.batch_slices;

    let mut probabilities = Vec::new();
    for (image, brain) in &volumes {
        probabilities.extend(score::detect(networks, image, brain, batch)?);
    }
    let token_threshold = quantile(&mut probabilities, config.token_quantile);

    let mut settings =
        Settings { config: context.pipeline.score.clone(), token_threshold, mask_threshold: f32::INFINITY };
    let mut scores = Vec::new();
    let mut maps = Vec::new();
    for (number, (image, brain)) in volumes.iter().enumerate() {
        let inference = score::infer(networks, image, brain, &format!("val-{number}"), &settings)?;
        let map = score::score_map(&inference, image, brain, &settings.config);
        scores.extend(map.data.iter().zip(&brain.data).filter(|&(_, &b)| b > 0).map(|(&s, _)| s));
        maps.push(map);
    }
    settings.mask_threshold = quantile(&mut scores, config.healthy_quantile);
    let mut volumes_ml: Vec<f32> = maps
        .iter()
        .map(|map| {
            let above = map.data.iter().map(|&s| u8::from(s > settings.mask_threshold)).collect();
            let above = Volume { grid, data: above };
            let (mask, _) = score::components(&above, map, settings.config.min_finding_ml);
            mask.data.iter().filter(|&&v| v > 0).count() as f32 * grid.voxel_ml() as f32
        })
        .collect();
    let median_ml = quantile(&mut volumes_ml, 0.5);
    eprintln!(
        "thresholds on {} healthy scans: token {token_threshold:.4}, mask {:.4}; median {median_ml:.2} ml called anomalous",
        volumes.len(),
        settings.mask_threshold
    );
    Ok((
        Calibration {
            token_threshold: f64::from(token_threshold),
            mask_threshold: f64::from(settings.mask_threshold),
            healthy_quantile: config.healthy_quantile,
            scans: volumes.len(),
        },
        vec![("healthy_val_median_anomaly_ml", f64::from(median_ml))],
    ))
}

/// The value below which the share `q` lies.
fn quantile(values: &mut [f32], q: f64) -> f32 {
    if values.is_empty() {
        return f32::NAN;
    }
    let place = ((values.len() - 1) as f64 * q).round() as usize;
    *values.select_nth_unstable_by(place, f32::total_cmp).1
}
