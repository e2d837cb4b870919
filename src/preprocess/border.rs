//! The border of the brain, found again with the template as prior.
//!
//! Takes a brain mask, the T1-weighted head it was found in (both on the 2 mm working grid) and the map to MNI space;
//! gives the mask with its border moved. Parts of the mask that lie far outside the template's brain are leaks and are
//! cut. In a shell around what is left, a logistic regression says for each voxel whether it is brain (with cortical
//! CSF), from the distances to the mask and to the template and from the intensities along the normal; the odds are
//! smoothed and the largest piece above evens is the brain. A large leak draws the template's fit, so that one is done
//! twice. Where the scan is not T1-weighted the intensities mean something else, and leaks are cut only.

use rayon::prelude::*;

use super::distance::signed_distance;
use super::morphology::{count, fill_holes, largest_component};
use super::percentile;
use super::prior::prior;
use super::skull_strip::SkullStripConfig;
use crate::volume::{Affine, Volume};

/// Offsets along the normal in mm, inside to outside, at which intensities are read.
const PROFILE_MM: [f32; 13] = [-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0];

/// The mask's own distance counts as far as this, in mm.
const REACH_MM: f32 = 8.0;

/// Rounds of the template's fit to a mask as it comes, and after leaks were cut.
const FIT_ROUNDS: [usize; 2] = [12, 8];

/// Odds (natural logarithm) of voxels that need no second look, and the limit of all others.
const SURE: f32 = 6.0;

/// Share of the mask's volume by which its border may move before a second round is worth its time.
const SETTLED: f64 = 0.06;

const FEATURES: usize = 64;

// Fitted by ridge-penalised logistic regression to every second head of the IXI training split, the same heads turned
// up to 30 degrees, resampled to 0.8 and 1.5 mm and with other contrasts, and heads of `synth::put_in_head` at a
// quarter of their weight. In the order of `features`.
const BIAS: f32 = -0.9943;
#[rustfmt::skip]
const WEIGHTS: [f32; FEATURES] = [
    // Distances: template, mask, mask without sign, squares.
    -0.4164, -0.1117, -0.1172, -0.2234, -0.0625,
    // Intensities along the normal, their squares, their products with the two distances.
    -0.7669, 0.2134, -2.0883, 0.7572, 1.4363, 4.7864, -3.9637, 0.2430, -0.4933, -1.1150, -0.9716, -0.8783, 2.5326,
    0.5622, -0.2675, 0.7361, -1.0813, -0.8444, -2.3274, 0.1701, -2.4219, -0.8676, 0.3416, 0.1599, 0.0485, -1.6038,
    -0.2434, -0.0691, -0.1813, 1.1435, 0.8174, -1.2670, -0.8500, -0.1933, 1.0030, 0.3835, 0.2813, 0.0414, 0.4094,
    -0.2068, 0.0015, 0.0090, -0.3303, -0.5680, 0.0958, 0.7777, -0.9659, -0.8586, 0.0607, -0.0243, 0.0874, 0.2112,
    // Extremes along the normal; product of the distances.
    3.5889, -0.5819, -1.1662, 1.7069, -1.5785, 5.0828, 0.3292,
];

/// `mask` with its border moved to where `head` and the template see it. `to_mni` takes the mask's world mm to MNI mm;
/// it needs to be right to a centimetre and 15 degrees only, as the template is fitted to the mask's surface from there.
pub fn refine(mask: &Volume<u8>, head: &Volume, to_mni: &Affine, cfg: &SkullStripConfig) -> Volume<u8> {
    let Some(levels) = Levels::of(head, mask) else { return mask.clone() };
    let (trimmed, fitted) = trimmed(mask, to_mni, cfg);
    if !levels.t1_weighted(head, &trimmed) {
        return trimmed;
    }
    let moved = border(&trimmed, head, &fitted, &levels);
    let changed = mask.data.iter().zip(&moved.data).filter(|(a, b)| a != b).count() as f64;
    if changed < SETTLED * count(mask) as f64 {
        return moved;
    }
    let (again, fitted) = self::trimmed(&moved, &fitted, cfg);
    border(&again, head, &fitted, &levels)
}

/// The mask without what lies too far outside of the template, and the map that fits it to the template.
fn trimmed(mask: &Volume<u8>, to_mni: &Affine, cfg: &SkullStripConfig) -> (Volume<u8>, Affine) {
    let [first, second] = FIT_ROUNDS;
    let fitted = prior().fit(mask, to_mni, first);
    let [nx, ny, _] = mask.grid.shape;
    let map = mask.grid.affine.then(&fitted);
    let mut kept = mask.clone();
    for (i, v) in kept.data.iter_mut().enumerate().filter(|(_, v)| **v != 0) {
        let p = map.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64)).map(|c| c as f32);
        *v = u8::from(prior().distance(p).0 <= cfg.leak_mm);
    }
    let leaked = count(mask) - count(&kept);
    if leaked * 200 < count(mask) {
        return (kept, fitted);
    }
    let fitted = prior().fit(&kept, &fitted, second);
    (kept, fitted)
}

/// The largest piece whose smoothed odds are above evens.
fn border(mask: &Volume<u8>, head: &Volume, to_mni: &Affine, levels: &Levels) -> Volume<u8> {
    let own = signed_distance(mask, REACH_MM);
    let [nx, ny, _] = head.grid.shape;
    let map = head.grid.affine.then(to_mni);
    let mut odds: Vec<f32> = own.data.iter().map(|d| -SURE * d.signum()).collect();
    odds.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slab)| {
        for (i, odds) in slab.iter_mut().enumerate() {
            let d_mask = own.data[z * nx * ny + i];
            if d_mask.abs() >= REACH_MM {
                continue;
            }
            let index = [i % nx, i / nx, z].map(|c| c as f64);
            let (d_template, gradient) = prior().distance(map.apply(index).map(|c| c as f32));
            let inside = d_template < -5.0 && d_mask < -5.0;
            if inside || d_template > 12.0 || (d_template > 6.0 && d_mask > 6.0) {
                continue;
            }
            let normal: [f32; 3] = std::array::from_fn(|c| (0..3).map(|r| map.0[r][c] as f32 * gradient[r]).sum());
            let index = index.map(|c| c as f32);
            let features = features(d_template, d_mask, &levels.profile(head, index, normal));
            let sum: f32 = features.iter().zip(&WEIGHTS).map(|(f, w)| f * w).sum();
            *odds = (BIAS + sum).clamp(-SURE, SURE);
        }
    });
    smooth(&mut odds, head.grid.shape);
    let brain = odds.iter().map(|&o| u8::from(o > 0.0)).collect();
    fill_holes(&largest_component(&Volume::new(head.grid, brain)))
}

/// What the regression sees of one voxel.
fn features(template: f32, mask: f32, profile: &[f32; 13]) -> [f32; FEATURES] {
    let low = |range: std::ops::Range<usize>| profile[range].iter().copied().fold(f32::INFINITY, f32::min);
    let high = |range: std::ops::Range<usize>| profile[range].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut all = [0.0; FEATURES];
    all[..5].copy_from_slice(&[template, mask, mask.abs(), 0.1 * template * template, 0.1 * mask * mask]);
    for (k, &v) in profile.iter().enumerate() {
        (all[5 + k], all[18 + k], all[31 + k], all[44 + k]) = (v, v * v, 0.2 * template * v, 0.2 * mask * v);
    }
    let extremes = [low(2..7), low(4..7), high(6..10), high(6..13), low(6..10), low(0..7)];
    all[57..63].copy_from_slice(&extremes);
    all[63] = 0.1 * template * mask;
    all
}

/// The scale of intensities: 0 at the background, 1 at white matter.
struct Levels {
    background: f32,
    per_unit: f32,
}

impl Levels {
    /// `None` where the mask is not brighter than the background.
    fn of(head: &Volume, mask: &Volume<u8>) -> Option<Self> {
        // Every seventh voxel tells a percentile as well as all.
        let background = percentile(&mut head.data.iter().copied().step_by(7).collect::<Vec<f32>>(), 0.02);
        let inside = head.data.iter().zip(&mask.data).filter(|&(_, &m)| m != 0);
        let white = percentile(&mut inside.map(|(&v, _)| v).collect::<Vec<f32>>(), 0.8);
        (white > background).then(|| Self { background, per_unit: 1.0 / (white - background) })
    }

    /// True where the depth of the brain, mostly white matter, is brighter than its rim, mostly cortex and CSF.
    fn t1_weighted(&self, head: &Volume, mask: &Volume<u8>) -> bool {
        let depth = signed_distance(mask, 20.0);
        let median = |from: f32, to: f32| {
            let here = head.data.iter().zip(&depth.data).filter(|&(_, &d)| (from..to).contains(&d));
            percentile(&mut here.map(|(&v, _)| v).collect::<Vec<f32>>(), 0.5)
        };
        median(-19.9, -14.0) > median(-8.0, 0.0)
    }

    /// Intensities along `normal` through the voxel `index`, cut at one and a half times white matter.
    fn profile(&self, head: &Volume, index: [f32; 3], normal: [f32; 3]) -> [f32; 13] {
        let length = normal.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-6) * head.grid.spacing()[0] as f32;
        PROFILE_MM.map(|mm| {
            let at = std::array::from_fn(|a| index[a] + normal[a] * mm / length);
            ((interpolated(head, at) - self.background) * self.per_unit).clamp(0.0, 1.5)
        })
    }
}

/// Trilinear interpolation at a position in voxels; at the border of the grid beyond it.
fn interpolated(head: &Volume, at: [f32; 3]) -> f32 {
    let [nx, ny, _] = head.grid.shape;
    let [(x, fx), (y, fy), (z, fz)] = std::array::from_fn(|a| {
        let v = at[a].clamp(0.0, head.grid.shape[a] as f32 - 1.001);
        (v as usize, v.fract())
    });
    let corner = x + nx * (y + ny * z);
    let along = |i: usize| head.data[i] + fx * (head.data[i + 1] - head.data[i]);
    let plane = |i: usize| along(i) + fy * (along(i + nx) - along(i));
    plane(corner) + fz * (plane(corner + nx * ny) - plane(corner))
}

/// Weights 1/4, 1/2, 1/4 along each axis: a Gaussian of 0.7 voxels. The grid's border is air on all sides.
fn smooth(values: &mut [f32], shape: [usize; 3]) {
    for step in [1, shape[0], shape[0] * shape[1]] {
        let source = values.to_vec();
        let neighbours = source.iter().zip(&source[2 * step..]);
        for ((value, middle), (before, after)) in values[step..].iter_mut().zip(&source[step..]).zip(neighbours) {
            *value = 0.5 * middle + 0.25 * (before + after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Grid;

    /// The template's brain as a T1-weighted head of layers by distance, and its true mask, in MNI space.
    fn head() -> (Volume, Volume<u8>) {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -139.0], [0.0, 0.0, 2.0, -99.0]]);
        let grid = Grid { shape: [100, 120, 105], affine };
        let distance = |i: usize| {
            let p = affine.apply([i % 100, i / 100 % 120, i / 12_000].map(|c| c as f64));
            prior().distance(p.map(|c| c as f32)).0
        };
        let image = (0..grid.len()).map(|i| match distance(i) {
            d if d < -8.0 => 100.0,
            d if d < -2.0 => 70.0,
            d if d < 1.0 => 25.0,
            d if d < 8.0 => 6.0,
            d if d < 14.0 => 110.0,
            _ => 0.0,
        });
        let brain = (0..grid.len()).map(|i| u8::from(distance(i) < 0.0));
        (Volume::new(grid, image.collect()), Volume::new(grid, brain.collect()))
    }

    fn dice(a: &Volume<u8>, b: &Volume<u8>) -> f64 {
        let both = a.data.iter().zip(&b.data).filter(|(a, b)| **a != 0 && **b != 0).count();
        2.0 * both as f64 / (count(a) + count(b)) as f64
    }

    #[test]
    fn a_leak_is_cut_and_the_brain_kept() {
        let (head, brain) = head();
        let mut leaking = brain.clone();
        for z in 15..40 {
            for y in 80..110 {
                let row = leaking.index(40, y, z);
                leaking.data[row..row + 20].fill(1);
            }
        }
        let start = Affine::translation([4.0, -6.0, 5.0]);
        let refined = refine(&leaking, &head, &start, &SkullStripConfig::default());
        let (before, after) = (dice(&leaking, &brain), dice(&refined, &brain));
        assert!(after > 0.96 && after > before, "Dice {before} before, {after} after");
    }

    #[test]
    fn without_t1_contrast_the_border_stays() {
        let (mut head, brain) = head();
        head.data.iter_mut().for_each(|v| *v = if *v > 0.0 { 130.0 - *v } else { 0.0 });
        let refined = refine(&brain, &head, &Affine::identity(), &SkullStripConfig::default());
        assert!(dice(&refined, &brain) > 0.999);
    }
}
