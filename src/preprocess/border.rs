//! The border of the brain, found again with the template as prior.
//!
//! Takes a brain mask, the T1-weighted head it was found in (both on the 2 mm working grid) and the map to MNI space;
//! gives the mask with its border moved. Parts of the mask that lie far outside the template's brain are leaks and are
//! cut. In a shell around what is left, a logistic regression says for each voxel whether it is brain (with cortical
//! CSF), from the distances to the mask and to the template and from the intensities along the normal; the odds are
//! smoothed and the largest piece above evens is the brain. Where the scan is not T1-weighted the intensities mean
//! something else, and leaks are cut only. The regression's weights are `assets/brain_border.toml`; `neurosieve fit-border` fits
//! them to what [`Sight`] sees, the same that is looked at here.

use std::sync::LazyLock;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance::signed_distance;
use super::morphology::{count, fill_holes, largest_component};
use super::percentile;
use super::prior::prior;
use super::skull_strip::SkullStripConfig;
use crate::volume::{Affine, Grid, Volume};

/// Offsets along the normal in mm, inside to outside, at which intensities are read.
const PROFILE_MM: [f32; 13] = [-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0];

/// The mask's own distance counts as far as this, in mm.
const REACH_MM: f32 = 8.0;

/// Odds (natural logarithm) of voxels that need no second look, and the limit of all others.
const SURE: f32 = 6.0;

/// Share of the mask's volume by which its border may move before a second round is worth its time.
const SETTLED: f64 = 0.06;

/// Depths in mm below the template's surface that are mostly white matter, and mostly cortex and CSF.
const DEPTHS_MM: [[f32; 2]; 2] = [[-20.0, -14.0], [-8.0, 0.0]];

/// Numbers that the regression sees of one voxel.
pub(crate) const FEATURES: usize = 64;

/// The fitted regression.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weights {
    /// Logarithm of the odds where all features are 0.
    pub(crate) constant: f32,
    /// Change of the logarithm of the odds with every feature, [`FEATURES`] of them in the order of `features`.
    pub(crate) features: Vec<f32>,
}

impl Weights {
    /// Logarithm of the odds that a voxel is brain.
    pub(crate) fn log_odds(&self, seen: &[f32; FEATURES]) -> f32 {
        self.constant + seen.iter().zip(&self.features).map(|(f, w)| f * w).sum::<f32>()
    }
}

/// The weights in use, read once.
fn weights() -> &'static Weights {
    static WEIGHTS: LazyLock<Weights> = LazyLock::new(|| {
        let weights: Weights =
            toml::from_str(include_str!("../../assets/brain_border.toml")).expect("the embedded weights are TOML");
        assert_eq!(weights.features.len(), FEATURES, "the embedded weights are those of other features");
        weights
    });
    &WEIGHTS
}

/// `mask` with its border moved to where `head` and the template see it. `to_mni` takes the mask's world mm to MNI mm.
pub fn refine(mask: &Volume<u8>, head: &Volume, to_mni: &Affine, cfg: &SkullStripConfig) -> Volume<u8> {
    let trimmed = trimmed(mask, to_mni, cfg);
    let Some(sight) = Sight::new(&trimmed, head, to_mni) else { return trimmed };
    let moved = sight.brain(weights());
    let changed = mask.data.iter().zip(&moved.data).filter(|(a, b)| a != b).count() as f64;
    if changed < SETTLED * count(mask) as f64 {
        return moved;
    }
    match Sight::new(&moved, head, to_mni) {
        Some(sight) => sight.brain(weights()),
        None => moved,
    }
}

/// The mask without what lies too far outside of the template.
pub(crate) fn trimmed(mask: &Volume<u8>, to_mni: &Affine, cfg: &SkullStripConfig) -> Volume<u8> {
    let [nx, ny, _] = mask.grid.shape;
    let map = mask.grid.affine.then(to_mni);
    let mut kept = mask.clone();
    for (i, v) in kept.data.iter_mut().enumerate().filter(|(_, v)| **v != 0) {
        let p = map.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64)).map(|c| c as f32);
        *v = u8::from(prior().distance(p).0 <= cfg.leak_mm);
    }
    kept
}

/// A mask in its head, as the regression sees it: the box around the mask with room for the border to move.
pub(crate) struct Sight<'a> {
    head: &'a Volume,
    levels: Levels,
    /// Distance to the mask, on the box.
    own: Volume<f32>,
    /// The box's first voxel in the head.
    first: [usize; 3],
    /// Voxel of the box to MNI mm.
    map: Affine,
}

impl<'a> Sight<'a> {
    /// `None` where the head is not T1-weighted or the mask is empty. Mask and head share one grid.
    pub(crate) fn new(mask: &Volume<u8>, head: &'a Volume, to_mni: &Affine) -> Option<Self> {
        let levels = Levels::of(head, mask)?;
        if !levels.t1_weighted(head, mask, to_mni) {
            return None;
        }
        let (first, mask) = boxed(mask);
        let map = mask.grid.affine.then(to_mni);
        Some(Self { head, levels, own: signed_distance(&mask, REACH_MM), first, map })
    }

    /// The box that is looked at, in the world of the head.
    pub(crate) fn grid(&self) -> &Grid {
        &self.own.grid
    }

    /// What the regression sees of a voxel of the box; `None` where the mask is right beyond doubt.
    pub(crate) fn features(&self, i: usize) -> Option<[f32; FEATURES]> {
        let d_mask = self.own.data[i];
        if d_mask.abs() >= REACH_MM {
            return None;
        }
        let [nx, ny, _] = self.own.grid.shape;
        let index = [i % nx, i / nx % ny, i / (nx * ny)];
        let (d_template, gradient) = prior().distance(self.map.apply(index.map(|c| c as f64)).map(|c| c as f32));
        let inside = d_template < -5.0 && d_mask < -5.0;
        if inside || d_template > 12.0 || (d_template > 6.0 && d_mask > 6.0) {
            return None;
        }
        let normal: [f32; 3] = std::array::from_fn(|c| (0..3).map(|r| self.map.0[r][c] as f32 * gradient[r]).sum());
        let at = std::array::from_fn(|a| (index[a] + self.first[a]) as f32);
        Some(features(d_template, d_mask, &self.levels.profile(self.head, at, normal)))
    }

    /// The largest piece whose smoothed odds are above evens, on the head's grid.
    fn brain(&self, weights: &Weights) -> Volume<u8> {
        let shape @ [nx, ny, _] = self.own.grid.shape;
        let voxels = (0..self.own.data.len()).into_par_iter().with_min_len(nx * ny);
        let odds = voxels.map(|i| match self.features(i) {
            Some(seen) => weights.log_odds(&seen).clamp(-SURE, SURE),
            None => -SURE * self.own.data[i].signum(),
        });
        let mut odds: Vec<f32> = odds.collect();
        smooth(&mut odds, shape);
        let brain = odds.iter().map(|&o| u8::from(o > 0.0)).collect();
        let brain = fill_holes(&largest_component(&Volume::new(self.own.grid, brain)));
        let mut whole = Volume::<u8>::zeros(self.head.grid);
        let [x, y, z] = self.first;
        for (row, voxels) in brain.data.chunks(nx).enumerate() {
            let start = whole.index(x, y + row % ny, z + row / ny);
            whole.data[start..start + nx].copy_from_slice(voxels);
        }
        whole
    }
}

/// The mask cut to its bounding box and the room around it that its border may move through, and the box's first voxel.
fn boxed(mask: &Volume<u8>) -> ([usize; 3], Volume<u8>) {
    let shape @ [nx, ny, _] = mask.grid.shape;
    let room = (REACH_MM / mask.grid.spacing()[0] as f32).ceil() as usize + 2;
    let (mut first, mut end) = (shape, [0; 3]);
    for (row, voxels) in mask.data.chunks(nx).enumerate() {
        let Some(low) = voxels.iter().position(|&v| v != 0) else { continue };
        let high = voxels.iter().rposition(|&v| v != 0).unwrap_or(low);
        for (a, [low, high]) in [[low, high], [row % ny; 2], [row / ny; 2]].into_iter().enumerate() {
            first[a] = first[a].min(low.saturating_sub(room));
            end[a] = end[a].max((high + room + 1).min(shape[a]));
        }
    }
    let inner: [usize; 3] = std::array::from_fn(|a| end[a].saturating_sub(first[a]));
    let affine = Affine::translation(first.map(|n| n as f64)).then(&mask.grid.affine);
    let mut cut = Volume::zeros(Grid { shape: inner, affine });
    for (row, voxels) in cut.data.chunks_mut(inner[0].max(1)).enumerate() {
        let start = mask.index(first[0], first[1] + row % inner[1], first[2] + row / inner[1]);
        voxels.copy_from_slice(&mask.data[start..start + inner[0]]);
    }
    (first, cut)
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
        let background = percentile(&head.data.iter().copied().step_by(7).collect::<Vec<f32>>(), 0.02);
        let inside = head.data.iter().zip(&mask.data).filter(|&(_, &m)| m != 0);
        let white = percentile(&inside.map(|(&v, _)| v).collect::<Vec<f32>>(), 0.8);
        (white > background).then(|| Self { background, per_unit: 1.0 / (white - background) })
    }

    /// True where the depth of the brain, mostly white matter, is brighter than its rim, mostly cortex and CSF.
    fn t1_weighted(&self, head: &Volume, mask: &Volume<u8>, to_mni: &Affine) -> bool {
        let [nx, ny, _] = mask.grid.shape;
        let map = mask.grid.affine.then(to_mni);
        let mut layers = [Vec::new(), Vec::new()];
        // Every third voxel tells a median as well as all.
        for i in (0..mask.data.len()).step_by(3).filter(|&i| mask.data[i] != 0) {
            let p = map.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64)).map(|c| c as f32);
            let depth = prior().distance(p).0;
            for (layer, [from, to]) in layers.iter_mut().zip(DEPTHS_MM) {
                if (from..to).contains(&depth) {
                    layer.push(head.data[i]);
                }
            }
        }
        let [deep, rim] = layers.map(|layer| percentile(&layer, 0.5));
        deep > rim
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

/// Trilinear interpolation at a position in voxels; at the border of the grid beyond it. Whole
/// and fraction by way of an integer: `fract` is a call on the oldest x86-64 processors.
fn interpolated(head: &Volume, at: [f32; 3]) -> f32 {
    let [nx, ny, _] = head.grid.shape;
    let [(x, fx), (y, fy), (z, fz)] = std::array::from_fn(|a| {
        let v = at[a].clamp(0.0, head.grid.shape[a] as f32 - 1.001);
        (v as usize, v - (v as i32) as f32)
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
        let start = Affine::translation([1.0, -2.0, 1.0]);
        let refined = refine(&leaking, &head, &start, &SkullStripConfig::default());
        let leaked = |mask: &Volume<u8>| {
            let voxels = mask.data.iter().zip(&leaking.data).zip(&brain.data);
            voxels.filter(|((m, l), b)| **m != 0 && **l != 0 && **b == 0).count()
        };
        let (before, after) = (leaked(&leaking), leaked(&refined));
        assert!(after * 2 < before, "{before} leaked voxels before, {after} after");
        let dice = dice(&refined, &brain);
        assert!(dice > 0.96, "Dice {dice}");
    }

    #[test]
    fn without_t1_contrast_the_border_stays() {
        let (mut head, brain) = head();
        head.data.iter_mut().for_each(|v| *v = if *v > 0.0 { 130.0 - *v } else { 0.0 });
        let refined = refine(&brain, &head, &Affine::identity(), &SkullStripConfig::default());
        assert!(dice(&refined, &brain) > 0.999);
    }
}
