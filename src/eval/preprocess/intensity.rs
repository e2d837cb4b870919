//! Agreement of two sites' intensities, by normalization method.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Case;
use crate::preprocess::{NormalizeConfig, NormalizeMethod, Steps, model_grid, normalize, template};
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Volume};

/// Number of quantiles that represent a distribution.
const QUANTILES: usize = 200;

/// Centre (MNI mm) and radius (mm) of the dark ball (58 ml) that simulates a large lesion.
const LESION: ([f64; 3], f64) = ([-28.0, -20.0, 25.0], 24.0);

/// Intensity of that ball relative to white matter.
const LESION_LEVEL: f32 = 0.45;

/// Smallest tissue share of the template at which a voxel counts as grey or white matter. It is lower than the share that
/// normalization itself uses.
const TISSUE: f32 = 0.7;

/// The figures of one normalization method.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the method. `whole image` maps percentiles 1 and 99 of the whole scan to 0 and 1.
    pub method: String,
    /// Mean distance between the two sites' mean quantile functions of in-brain intensities (the Wasserstein distance
    /// of their barycentres), in percent of white matter's intensity.
    pub site_distance_percent: f64,
    /// The distance of `whole image` divided by this distance.
    pub times_closer: f64,
    /// Mean distance of a scan from its own site's mean, in percent of white matter's intensity.
    pub within_site_percent: f64,
    /// Difference of the sites' mean medians of grey matter, in percent of white matter's intensity.
    pub grey_difference_percent: f64,
    /// Difference of the sites' mean medians of white matter, in percent of white matter's intensity.
    pub white_difference_percent: f64,
    /// Mean change of healthy tissue caused by a dark lesion of 58 ml, in percent of white matter's intensity.
    pub lesion_shift_percent: Option<f64>,
}

/// Compares two sites by every method; `None` unless the scans come from exactly two sites. The first row is `whole image`.
pub(super) fn compare<'a>(
    scans: impl Iterator<Item = (&'a Case, &'a Steps)> + Clone,
    cfg: &NormalizeConfig,
) -> Option<Vec<Row>> {
    let tissues = [&template().grey, &template().white].map(|map| trilinear(map, &model_grid(), &Affine::identity()));
    let raw = row(
        "whole image",
        1.0,
        None,
        &tissues,
        scans.clone().map(|(case, steps)| (case, whole_image(case, steps), steps)),
    )?;
    let raw_distance = raw.site_distance_percent;
    let mut rows = vec![raw];
    for method in NormalizeMethod::ALL {
        let cfg = NormalizeConfig { method, ..cfg.clone() };
        let scaled = |image: &Volume, steps: &Steps| {
            normalize(image, &steps.prepared.brain, &cfg).unwrap_or_else(|| image.clone())
        };
        let shifts: Vec<f64> = scans.clone().map(|(_, steps)| lesion_shift(steps, &tissues[1], scaled)).collect();
        let shift = shifts.iter().sum::<f64>() / shifts.len().max(1) as f64;
        let images = scans.clone().map(|(case, steps)| (case, scaled(&steps.resampled, steps), steps));
        rows.push(row(&method.to_string(), raw_distance, Some(shift), &tissues, images)?);
    }
    Some(rows)
}

/// The brain on the model's grid, uncorrected, with percentiles 1 and 99 of the whole native scan at 0 and 1.
fn whole_image(case: &Case, steps: &Steps) -> Volume {
    let mut sorted = case.native.data.clone();
    sorted.sort_unstable_by(f32::total_cmp);
    let at = |q: f64| sorted[((sorted.len() - 1) as f64 * q) as usize];
    let (low, high) = (at(0.01), at(0.99));
    let from_mni = steps.prepared.to_mni.inverse().unwrap_or(Affine::identity());
    let mut image = trilinear(&case.native, &model_grid(), &from_mni);
    image.data.iter_mut().for_each(|v| *v = (*v - low) / (high - low).max(f32::MIN_POSITIVE));
    image
}

/// Intensities of one scan: quantiles of the brain, medians of grey and white matter.
struct Profile {
    quantiles: Vec<f64>,
    medians: [f64; 2],
}

/// The row of one method, from the normalized images of all scans.
fn row<'a>(
    method: &str,
    raw_distance: f64,
    lesion_shift_percent: Option<f64>,
    tissues: &[Volume; 2],
    images: impl Iterator<Item = (&'a Case, Volume, &'a Steps)>,
) -> Option<Row> {
    let mut sites = BTreeMap::<&str, Vec<Profile>>::new();
    for (case, image, steps) in images {
        let brain = &steps.prepared.brain;
        let pick = |keep: &dyn Fn(usize) -> bool| {
            let mut values: Vec<f32> =
                (0..image.data.len()).filter(|&i| brain.data[i] != 0 && keep(i)).map(|i| image.data[i]).collect();
            values.sort_unstable_by(f32::total_cmp);
            values
        };
        let at = |sorted: &[f32], q: f64| {
            let last = sorted.len().saturating_sub(1);
            f64::from(sorted.get((last as f64 * q) as usize).copied().unwrap_or_default())
        };
        let all = pick(&|_| true);
        let quantiles = (0..QUANTILES).map(|k| at(&all, (k as f64 + 0.5) / QUANTILES as f64)).collect();
        let medians = [0, 1].map(|t| at(&pick(&|i| tissues[t].data[i] >= TISSUE), 0.5));
        sites.entry(&case.site).or_default().push(Profile { quantiles, medians });
    }
    let [a, b] = <[Vec<Profile>; 2]>::try_from(sites.into_values().collect::<Vec<_>>()).ok()?;
    let mean = |site: &[Profile], of: &dyn Fn(&Profile) -> f64| site.iter().map(of).sum::<f64>() / site.len() as f64;
    let curve = |site: &[Profile]| -> Vec<f64> { (0..QUANTILES).map(|k| mean(site, &|p| p.quantiles[k])).collect() };
    let apart = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).sum::<f64>() / QUANTILES as f64;
    let curves = [curve(&a), curve(&b)];
    let white = (mean(&a, &|p| p.medians[1]) + mean(&b, &|p| p.medians[1])) / 2.0;
    let percent = 100.0 / white;
    let site_distance_percent = percent * apart(&curves[0], &curves[1]);
    let from_own: Vec<f64> =
        [&a, &b].into_iter().zip(&curves).flat_map(|(site, c)| site.iter().map(|p| apart(&p.quantiles, c))).collect();
    let difference = |t: usize| percent * (mean(&a, &|p| p.medians[t]) - mean(&b, &|p| p.medians[t])).abs();
    Some(Row {
        method: method.to_owned(),
        site_distance_percent,
        times_closer: if lesion_shift_percent.is_some() { raw_distance / site_distance_percent } else { 1.0 },
        within_site_percent: percent * from_own.iter().sum::<f64>() / from_own.len() as f64,
        grey_difference_percent: difference(0),
        white_difference_percent: difference(1),
        lesion_shift_percent,
    })
}

/// Mean change of healthy voxels when a dark ball is placed in the brain, in percent of white matter's intensity.
fn lesion_shift(steps: &Steps, white: &Volume, scaled: impl Fn(&Volume, &Steps) -> Volume) -> f64 {
    let (image, brain) = (&steps.resampled, &steps.prepared.brain);
    let [nx, ny, _] = image.grid.shape;
    let in_ball = |i: usize| {
        let p = image.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
        (0..3).map(|a| (p[a] - LESION.0[a]).powi(2)).sum::<f64>() < LESION.1 * LESION.1
    };
    let mean_white = |volume: &Volume| {
        let voxels = (0..white.data.len()).filter(|&i| white.data[i] >= TISSUE && brain.data[i] != 0);
        let (sum, n) = voxels.fold((0.0, 0.0), |(sum, n), i| (sum + volume.data[i], n + 1.0));
        sum / f32::max(n, 1.0)
    };
    let level = LESION_LEVEL * mean_white(image);
    let mut with = image.clone();
    let inside: Vec<bool> = (0..with.data.len()).map(in_ball).collect();
    with.data.iter_mut().zip(&inside).filter(|(_, ball)| **ball).for_each(|(v, _)| *v = level);
    let (healthy, with) = (scaled(image, steps), scaled(&with, steps));
    let outside = (0..inside.len()).filter(|&i| !inside[i] && brain.data[i] != 0);
    let (sum, n) =
        outside.fold((0.0, 0.0), |(sum, n), i| (sum + f64::from((with.data[i] - healthy.data[i]).abs()), n + 1.0));
    100.0 * sum / f64::max(n, 1.0) / f64::from(mean_white(&healthy))
}
