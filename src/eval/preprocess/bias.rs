//! Known bias fields that are added to a scan and then corrected.

use rand::Rng;

use super::geometry::{centroid, random_axis};
use crate::preprocess::{self, BiasConfig, Steps, template};
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Volume};

/// The known fields range from 1 - this to 1 + this in the brain.
const STRENGTH: f64 = 0.3;

/// Number of fields added to every scan, one at a time.
const FIELDS: usize = 2;

/// Smallest white matter share of the template at which a voxel counts as white matter.
const WHITE: f32 = 0.9;

/// For each field: the coefficient of variation in white matter after the field was added and corrected, relative to the
/// original scan and relative to the original scan after correction.
pub(super) fn add_and_correct(steps: &Steps, cfg: &BiasConfig, rng: &mut impl Rng) -> Vec<[f64; 2]> {
    let white = white_matter(steps);
    let original = variation(&steps.working, &white);
    let corrected = variation(&steps.corrected, &white);
    (0..FIELDS)
        .map(|_| {
            let known = known_field(&steps.brain.mask, rng);
            let mut biased = steps.working.clone();
            biased.data.iter_mut().zip(&known.data).for_each(|(v, f)| *v *= f);
            let field = preprocess::estimate_bias(&biased, &steps.first_mask, cfg);
            let again = field.on(&biased.grid, &Affine::identity());
            biased.data.iter_mut().zip(&again.data).for_each(|(v, f)| *v /= f);
            let after = variation(&biased, &white);
            [after / original, after / corrected]
        })
        .collect()
}

/// White matter voxels of the working grid: white matter in the template, and closer to the median of white matter in the
/// corrected scan than half the distance between white and grey matter. The second condition excludes lesions and errors
/// of the registration.
fn white_matter(steps: &Steps) -> Vec<usize> {
    let on_scan = |map: &Volume| trilinear(map, &steps.working.grid, &steps.prepared.to_mni);
    let (white, grey) = (on_scan(&template().white), on_scan(&template().grey));
    let inside = |map: &Volume| -> Vec<usize> {
        (0..map.data.len()).filter(|&i| map.data[i] >= WHITE && steps.brain.mask.data[i] != 0).collect()
    };
    let median = |voxels: &[usize]| {
        let mut values: Vec<f32> = voxels.iter().map(|&i| steps.corrected.data[i]).collect();
        values.sort_unstable_by(f32::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let candidates = inside(&white);
    let (of_white, of_grey) = (median(&candidates), median(&inside(&grey)));
    let half = (of_white - of_grey).abs() / 2.0;
    candidates.into_iter().filter(|&i| (steps.corrected.data[i] - of_white).abs() < half).collect()
}

/// Coefficient of variation: standard deviation over mean.
fn variation(volume: &Volume, voxels: &[usize]) -> f64 {
    let n = voxels.len().max(1) as f64;
    let mean = voxels.iter().map(|&i| f64::from(volume.data[i])).sum::<f64>() / n;
    let variance = voxels.iter().map(|&i| (f64::from(volume.data[i]) - mean).powi(2)).sum::<f64>() / n;
    variance.sqrt() / mean
}

/// A smooth field: three waves of 200 to 500 mm in random directions, scaled to reach [`STRENGTH`] in the brain.
fn known_field(brain: &Volume<u8>, rng: &mut impl Rng) -> Volume {
    let centre = centroid(brain);
    let waves: [([f64; 3], f64, f64); 3] = std::array::from_fn(|_| {
        let per_mm = std::f64::consts::TAU / rng.random_range(200.0..500.0);
        (random_axis(rng).map(|c| c * per_mm), rng.random_range(0.0..std::f64::consts::TAU), rng.random_range(0.5..1.0))
    });
    let [nx, ny, _] = brain.grid.shape;
    let raw: Vec<f64> = (0..brain.data.len())
        .map(|i| {
            let p = brain.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
            let phase = |k: [f64; 3]| (0..3).map(|a| k[a] * (p[a] - centre[a])).sum::<f64>();
            waves.iter().map(|&(k, offset, size)| size * (phase(k) + offset).sin()).sum()
        })
        .collect();
    let inside = || raw.iter().zip(&brain.data).filter(|&(_, &b)| b != 0).map(|(&v, _)| v);
    let (low, high) = inside().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let (middle, half) = ((low + high) / 2.0, ((high - low) / 2.0).max(1e-9));
    let field = raw.iter().map(|v| (1.0 + STRENGTH * ((v - middle) / half).clamp(-1.5, 1.5)) as f32);
    Volume::new(brain.grid, field.collect())
}
