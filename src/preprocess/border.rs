//! Refines the border of the brain, with the template as prior.
//!
//! Takes a brain mask, the T1-weighted head it was found in (both on the 2 mm working grid) and the map to MNI space;
//! gives the mask with its border moved. Parts of the mask far outside the template's brain are leaks and are cut. In a
//! [`Shell`] around the rest, a logistic regression decides for each voxel whether it is brain (with cortical CSF), from
//! its distances to the mask and to the template's surface and from the intensities along the normal. The log odds are
//! smoothed, and the largest piece with positive ones is the brain. Refuses nothing: where the scan is not T1-weighted,
//! the regression does not apply and only leaks are cut. The regression's weights are `assets/brain_border.toml`, fitted
//! to the same features by `neurosieve fit-border`.

use std::sync::LazyLock;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance::signed_distance;
use super::mask::{bounds, count};
use super::morphology::{fill_holes, largest_component};
use super::skull_strip::SkullStripConfig;
use super::statistics::{air_level, percentile, values_in};
use super::template_surface::template_surface;
use crate::volume::{Affine, Grid, Volume};

/// Offsets along the normal in mm, from inside to outside, at which intensities are sampled.
const PROFILE_MM: [f32; 13] = [-12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0];

/// Half the thickness of the shell around the mask's border, in mm.
const REACH_MM: f32 = 8.0;

/// Log odds of voxels outside the shell, and the limit of those within it.
const SURE: f32 = 6.0;

/// Share of the mask's volume that must change in the first round for a second one to be worth its time.
const SETTLED: f64 = 0.06;

/// Distances in mm to the template's surface (negative inside) that hold mostly white matter, and mostly cortex and CSF.
const DEPTHS_MM: [[f32; 2]; 2] = [[-20.0, -14.0], [-8.0, 0.0]];

/// Number of features of one voxel.
pub(crate) const FEATURES: usize = 64;

/// The fitted regression.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BorderWeights {
    /// Log odds where all features are 0.
    pub(crate) constant: f32,
    /// Change of the log odds with every feature, [`FEATURES`] of them in the order of `features`.
    pub(crate) features: Vec<f32>,
}

impl BorderWeights {
    /// Natural logarithm of the odds that a voxel is brain.
    pub(crate) fn log_odds(&self, features: &[f32; FEATURES]) -> f32 {
        self.constant + features.iter().zip(&self.features).map(|(f, w)| f * w).sum::<f32>()
    }
}

/// The embedded weights, parsed once.
fn weights() -> &'static BorderWeights {
    static WEIGHTS: LazyLock<BorderWeights> = LazyLock::new(|| {
        let weights: BorderWeights =
            toml::from_str(include_str!("../../assets/brain_border.toml")).expect("the embedded weights are TOML");
        assert_eq!(weights.features.len(), FEATURES, "the embedded weights belong to other features");
        weights
    });
    &WEIGHTS
}

/// `mask` with its border moved by the regression. `head` lies on the same grid; `to_mni` maps its world mm to MNI mm.
pub(super) fn refine(mask: &Volume<u8>, head: &Volume, to_mni: &Affine, cfg: &SkullStripConfig) -> Volume<u8> {
    let trimmed = trimmed(mask, to_mni, cfg);
    let Some(shell) = Shell::new(&trimmed, head, to_mni) else { return trimmed };
    let moved = shell.brain(weights());
    let changed = mask.data.iter().zip(&moved.data).filter(|(a, b)| a != b).count() as f64;
    if changed < SETTLED * count(mask) as f64 {
        return moved;
    }
    match Shell::new(&moved, head, to_mni) {
        Some(shell) => shell.brain(weights()),
        None => moved,
    }
}

/// The mask without its parts too far outside the template's brain.
pub(crate) fn trimmed(mask: &Volume<u8>, to_mni: &Affine, cfg: &SkullStripConfig) -> Volume<u8> {
    let to_template = Grid { affine: mask.grid.affine.then(to_mni), ..mask.grid };
    let mut kept = mask.clone();
    for (i, v) in kept.data.iter_mut().enumerate().filter(|(_, v)| **v != 0) {
        *v = u8::from(template_surface().distance(to_template.world_mm(i).map(|c| c as f32)).0 <= cfg.leak_mm);
    }
    kept
}

/// The voxels around a mask's border that the regression decides on, in a box around the mask with room for the border
/// to move.
pub(crate) struct Shell<'a> {
    head: &'a Volume,
    scale: IntensityScale,
    /// Distance in mm to the mask's border, on the box.
    distance: Volume<f32>,
    /// The box's first voxel in the head.
    first: [usize; 3],
    /// Voxel index of the box to MNI mm.
    to_mni: Affine,
}

impl<'a> Shell<'a> {
    /// `None` where the head is not T1-weighted or the mask is empty. Mask and head share one grid.
    pub(crate) fn new(mask: &Volume<u8>, head: &'a Volume, to_mni: &Affine) -> Option<Self> {
        let scale = IntensityScale::of(head, mask)?;
        if !is_t1_weighted(head, mask, to_mni) {
            return None;
        }
        let (first, mask) = boxed(mask)?;
        let to_mni = mask.grid.affine.then(to_mni);
        Some(Self { head, scale, distance: signed_distance(&mask, REACH_MM), first, to_mni })
    }

    /// The box, in the world of the head.
    pub(crate) fn grid(&self) -> &Grid {
        &self.distance.grid
    }

    /// The features of the box's voxel at place `i`; `None` where the mask is right beyond doubt.
    pub(crate) fn features(&self, i: usize) -> Option<[f32; FEATURES]> {
        let d_mask = self.distance.data[i];
        if d_mask.abs() >= REACH_MM {
            return None;
        }
        let index = self.distance.grid.ijk(i);
        let p = self.to_mni.apply(index.map(|c| c as f64)).map(|c| c as f32);
        let (d_template, gradient) = template_surface().distance(p);
        let inside = d_template < -5.0 && d_mask < -5.0;
        if inside || d_template > 12.0 || (d_template > 6.0 && d_mask > 6.0) {
            return None;
        }
        let normal: [f32; 3] = std::array::from_fn(|c| (0..3).map(|r| self.to_mni.0[r][c] as f32 * gradient[r]).sum());
        let at = std::array::from_fn(|a| (index[a] + self.first[a]) as f32);
        Some(features(d_template, d_mask, &self.scale.profile(self.head, at, normal)))
    }

    /// The largest piece with positive smoothed log odds, on the head's grid.
    fn brain(&self, weights: &BorderWeights) -> Volume<u8> {
        let shape @ [nx, ny, _] = self.distance.grid.shape;
        let voxels = (0..self.distance.data.len()).into_par_iter().with_min_len(nx * ny);
        let log_odds = voxels.map(|i| match self.features(i) {
            Some(features) => weights.log_odds(&features).clamp(-SURE, SURE),
            None => -SURE * self.distance.data[i].signum(),
        });
        let mut log_odds: Vec<f32> = log_odds.collect();
        smooth(&mut log_odds, shape);
        let brain = log_odds.iter().map(|&o| u8::from(o > 0.0)).collect();
        let brain = fill_holes(&largest_component(&Volume::new(self.distance.grid, brain)));
        let mut whole = Volume::<u8>::zeros(self.head.grid);
        let [x, y, z] = self.first;
        for (row, voxels) in brain.data.chunks(nx).enumerate() {
            let start = whole.index(x, y + row % ny, z + row / ny);
            whole.data[start..start + nx].copy_from_slice(voxels);
        }
        whole
    }
}

/// First voxel of a box around the mask with room for its border to move, and the mask in that box; `None` for an empty
/// mask.
fn boxed(mask: &Volume<u8>) -> Option<([usize; 3], Volume<u8>)> {
    let room = (REACH_MM / mask.grid.spacing()[0] as f32).ceil() as usize + 2;
    let (low, high) = bounds(mask)?;
    let first = low.map(|c| c.saturating_sub(room));
    let shape: [usize; 3] = std::array::from_fn(|a| (high[a] + room + 1).min(mask.grid.shape[a]) - first[a]);
    let affine = Affine::translation(first.map(|n| n as f64)).then(&mask.grid.affine);
    let mut cut = Volume::zeros(Grid { shape, affine });
    for (row, voxels) in cut.data.chunks_mut(shape[0]).enumerate() {
        let start = mask.index(first[0], first[1] + row % shape[1], first[2] + row / shape[1]);
        voxels.copy_from_slice(&mask.data[start..start + shape[0]]);
    }
    Some((first, cut))
}

/// The features of one voxel: its distances in mm to the template's and the mask's surface, the intensity profile, their
/// squares and products, and extremes of the profile.
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

/// True where the deep brain, mostly white matter, is brighter than its rim, mostly cortex and CSF.
fn is_t1_weighted(head: &Volume, mask: &Volume<u8>, to_mni: &Affine) -> bool {
    let to_template = Grid { affine: mask.grid.affine.then(to_mni), ..mask.grid };
    let mut layers = [Vec::new(), Vec::new()];
    // Every third voxel is enough for a median.
    for i in (0..mask.data.len()).step_by(3).filter(|&i| mask.data[i] != 0) {
        let depth = template_surface().distance(to_template.world_mm(i).map(|c| c as f32)).0;
        for (layer, [from, to]) in layers.iter_mut().zip(DEPTHS_MM) {
            if (from..to).contains(&depth) {
                layer.push(head.data[i]);
            }
        }
    }
    let [deep, rim] = layers.map(|layer| percentile(&layer, 0.5));
    deep > rim
}

/// The scale of intensities: 0 at the background, 1 at white matter.
struct IntensityScale {
    background: f32,
    per_unit: f32,
}

impl IntensityScale {
    /// `None` where the mask is not brighter than the background.
    fn of(head: &Volume, mask: &Volume<u8>) -> Option<Self> {
        let background = air_level(head);
        let white = percentile(&values_in(head, mask), 0.8);
        (white > background).then(|| Self { background, per_unit: 1.0 / (white - background) })
    }

    /// Intensities along `normal` through the voxel `index`, clamped to one and a half times white matter.
    fn profile(&self, head: &Volume, index: [f32; 3], normal: [f32; 3]) -> [f32; 13] {
        let length = normal.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-6) * head.grid.spacing()[0] as f32;
        PROFILE_MM.map(|mm| {
            let at = std::array::from_fn(|a| index[a] + normal[a] * mm / length);
            ((interpolated(head, at) - self.background) * self.per_unit).clamp(0.0, 1.5)
        })
    }
}

/// Trilinear interpolation at a position in voxels, clamped to the grid. The fraction is computed by way of an integer:
/// `fract` is a function call on the oldest x86-64 processors.
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

/// Smooths with weights 1/4, 1/2, 1/4 along each axis, a Gaussian of 0.7 voxels. The grid's border is air on all sides.
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
    use crate::preprocess::mask::dice;

    /// The template's brain as a T1-weighted head of layers by distance, and its true mask, in MNI space.
    fn head() -> (Volume, Volume<u8>) {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -139.0], [0.0, 0.0, 2.0, -99.0]]);
        let grid = Grid { shape: [100, 120, 105], affine };
        let distance = |i: usize| template_surface().distance(grid.world_mm(i).map(|c| c as f32)).0;
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
