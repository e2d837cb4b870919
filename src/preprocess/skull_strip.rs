//! The brain in a whole-head T1-weighted scan.
//!
//! Takes the head on a 2 mm world-aligned RAS grid and gives a mask (brain and cortical CSF) on the same grid. A
//! deformable surface in the manner of BET ([`super::surface`]) starts from the upper part of the head, so that a
//! field of view reaching down to the shoulders does not draw it into the neck; an opening then cuts what has leaked
//! through the holes of the skull's base. Where the surface ends with an implausible volume, thresholds and
//! morphology take its place. Refuses nothing: the caller judges the volume of what was found.

use serde::{Deserialize, Serialize};

use super::morphology::{close, count, dilate, erode, fill_holes, largest_component, open};
use super::percentile;
use super::surface::{Levels, Mesh};
use crate::volume::Volume;

/// Parameters of skull stripping. Defaults chosen on 40 heads of the IXI training split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkullStripConfig {
    /// Height of head below its top in which the brain is sought, in mm.
    pub head_height_mm: f32,
    /// Iterations of the coarse surface of 642 vertices.
    pub coarse_iterations: usize,
    /// Iterations of the fine surface of 2562 vertices that follow.
    pub fine_iterations: usize,
    /// Where between the local minimum and maximum the border lies (0..1); larger gives a smaller brain.
    pub fractional_threshold: f32,
    /// How much that threshold falls from the middle of the head to its top, and rises to its base.
    pub threshold_gradient: f32,
    /// Curvature radius in mm below which the surface is fully smoothed.
    pub curvature_radius_min_mm: f32,
    /// Curvature radius in mm above which the surface is hardly smoothed.
    pub curvature_radius_max_mm: f32,
    /// Weight of the intensity term per mean edge length.
    pub data_weight: f32,
    /// How far inwards the local minimum is sought, in mm.
    pub search_min_mm: f32,
    /// How far inwards the local maximum is sought, in mm.
    pub search_max_mm: f32,
    /// Radius in mm of the opening that cuts leaks at the base of the skull.
    pub opening_mm: f32,
    /// Distance in mm outside of the template's brain above which the mask has leaked.
    pub leak_mm: f32,
    /// Smallest and largest volume in ml at which the surface is believed.
    pub plausible_ml: [f64; 2],
}

impl Default for SkullStripConfig {
    fn default() -> Self {
        Self {
            head_height_mm: 150.0,
            coarse_iterations: 300,
            fine_iterations: 100,
            fractional_threshold: 0.63,
            threshold_gradient: 0.2,
            curvature_radius_min_mm: 5.0,
            curvature_radius_max_mm: 14.0,
            data_weight: 0.05,
            search_min_mm: 20.0,
            search_max_mm: 10.0,
            opening_mm: 6.0,
            leak_mm: 6.0,
            plausible_ml: [700.0, 2200.0],
        }
    }
}

/// The brain mask of `head`, a whole head on a world-aligned 2 mm RAS grid, and whether the surface found it (true) or
/// the thresholds that take its place (false).
pub fn skull_strip(head: &Volume, cfg: &SkullStripConfig) -> (Volume<u8>, bool) {
    let start = Start::find(head, cfg);
    let by_surface = by_surface(head, &start, cfg);
    let plausible = |mask: &Volume<u8>| {
        let ml = count(mask) as f64 * mask.grid.voxel_ml();
        (cfg.plausible_ml[0]..=cfg.plausible_ml[1]).contains(&ml)
    };
    if plausible(&by_surface) {
        return (by_surface, true);
    }
    let by_threshold = by_threshold(head, &start);
    if plausible(&by_threshold) { (by_threshold, false) } else { (by_surface, true) }
}

/// The inside of the deformable surface, opened.
fn by_surface(head: &Volume, start: &Start, cfg: &SkullStripConfig) -> Volume<u8> {
    let mut mesh = Mesh::sphere(start.centre, start.radius * 0.5, 3);
    mesh.evolve(head, start.levels, cfg.coarse_iterations, cfg);
    mesh.subdivide();
    mesh.evolve(head, start.levels, cfg.fine_iterations, cfg);
    let steps = (cfg.opening_mm as f64 / head.grid.spacing()[0]).round() as usize;
    largest_component(&open(&mesh.fill(head), steps))
}

/// The largest piece of tissue as bright as brain that stays connected when 4 mm are taken off all around.
fn by_threshold(head: &Volume, start: &Start) -> Volume<u8> {
    let Levels { t2, tm, .. } = start.levels;
    let (low, high) = (t2 + 0.5 * (tm - t2), t2 + 1.7 * (tm - t2));
    let slice = head.grid.shape[0] * head.grid.shape[1];
    let tissue =
        head.data.iter().enumerate().map(|(i, v)| u8::from(i / slice >= start.bottom && (low..high).contains(v)));
    let tissue = Volume::new(head.grid, tissue.collect());
    let core = largest_component(&erode(&tissue, 2));
    fill_holes(&close(&dilate(&core, 3), 6))
}

/// Where the surface starts and which intensities steer it.
struct Start {
    levels: Levels,
    /// mm along the grid's axes.
    centre: [f32; 3],
    /// Radius in mm of a ball with the volume of the upper head.
    radius: f32,
    /// Lowest plane (index z) in which the brain is sought.
    bottom: usize,
}

impl Start {
    fn find(head: &Volume, cfg: &SkullStripConfig) -> Self {
        let spacing = head.grid.spacing()[0] as f32;
        let [nx, ny, nz] = head.grid.shape;
        let slice = nx * ny;
        let (_, t) = threshold(&head.data);
        // The top of the head: the highest slice with 15 cm2 above the threshold.
        let enough = (1500.0 / (spacing * spacing)) as usize;
        let area = |z: usize| head.data[z * slice..(z + 1) * slice].iter().filter(|&&v| v > t).count();
        let top = (0..nz).rev().find(|&z| area(z) > enough).unwrap_or(nz - 1);
        let bottom = top.saturating_sub((cfg.head_height_mm / spacing) as usize);
        let slab = &head.data[bottom * slice..(top + 1) * slice];
        let ((t2, t98), t) = threshold(slab);
        let (mut sum, mut weight, mut voxels) = ([0f64; 3], 0f64, 0usize);
        for (i, &v) in slab.iter().enumerate() {
            if v > t {
                let w = (v.min(t98) - t2) as f64;
                let p = [i % nx, i / nx % ny, i / slice + bottom];
                for (s, c) in sum.iter_mut().zip(p) {
                    *s += w * c as f64;
                }
                weight += w;
                voxels += 1;
            }
        }
        let centre = sum.map(|s| (s / weight.max(1e-9)) as f32 * spacing);
        let radius = (voxels as f32 * spacing.powi(3) * 3.0 / (4.0 * std::f32::consts::PI)).cbrt();
        let mut inside: Vec<f32> = Vec::new();
        for (i, &v) in slab.iter().enumerate() {
            let p = [i % nx, i / nx % ny, i / slice + bottom].map(|c| c as f32 * spacing);
            let d2: f32 = (0..3).map(|a| (p[a] - centre[a]).powi(2)).sum();
            if d2 < radius * radius && v > t2 && v < t98 {
                inside.push(v);
            }
        }
        let tm = percentile(&inside, 0.5);
        Self { levels: Levels { t2, t, tm, middle_mm: centre[2], radius_mm: radius }, centre, radius, bottom }
    }
}

/// The 2nd and 98th percentiles, and BET's rough threshold a tenth of the way between them.
fn threshold(values: &[f32]) -> ((f32, f32), f32) {
    let low = percentile(values, 0.02);
    let high = percentile(values, 0.98);
    ((low, high), low + 0.1 * (high - low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    /// Half axes of the phantom's brain in mm (1483 ml) and its centre.
    const BRAIN: [f64; 3] = [68.0, 84.0, 62.0];
    const CENTRE: [f64; 3] = [3.0, -5.0, 30.0];

    /// How many mm `p` lies outside the brain, along the ray from its centre (negative inside).
    fn outside_mm(p: [f64; 3]) -> f64 {
        let d = [0, 1, 2].map(|a| p[a] - CENTRE[a]);
        let length = d.iter().map(|c| c * c).sum::<f64>().sqrt();
        let scale = [0, 1, 2].map(|a| (d[a] / BRAIN[a]).powi(2)).iter().sum::<f64>().sqrt();
        if scale == 0.0 { -62.0 } else { length - length / scale }
    }

    /// White matter, grey matter, CSF, bone, scalp and a neck in T1 intensities, times `gain`.
    fn head(gain: f32) -> Volume {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -119.0], [0.0, 2.0, 0.0, -119.0], [0.0, 0.0, 2.0, -139.0]]);
        let grid = Grid { shape: [120, 120, 130], affine };
        let data = (0..grid.len()).map(|i| {
            let p = affine.apply([i % 120, i / 120 % 120, i / 14400].map(|c| c as f64));
            let neck = p[2] < -10.0 && (p[0].powi(2) + (p[1] + 10.0).powi(2)) < 60f64.powi(2);
            gain * match outside_mm(p) {
                d if d < -8.0 => 100.0,
                d if d < -2.0 => 70.0,
                d if d < 1.0 => 25.0,
                d if d < 8.0 => 6.0,
                d if d < 14.0 => 120.0,
                _ if neck => 75.0,
                _ => 0.0,
            }
        });
        Volume::new(grid, data.collect())
    }

    fn dice(mask: &Volume<u8>) -> f64 {
        let [nx, ny, _] = mask.grid.shape;
        let (mut both, mut sum) = (0, 0);
        for (i, &found) in mask.data.iter().enumerate() {
            let p = mask.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
            let brain = outside_mm(p) < 0.0;
            both += usize::from(brain && found != 0);
            sum += usize::from(brain) + usize::from(found != 0);
        }
        2.0 * both as f64 / sum as f64
    }

    #[test]
    fn the_brain_of_a_phantom_head_with_a_long_neck_is_found() {
        let (mask, by_surface) = skull_strip(&head(1.0), &SkullStripConfig::default());
        assert!(by_surface);
        let dice = dice(&mask);
        assert!(dice > 0.96, "Dice {dice}");
        // The scanner's gain is arbitrary: the same head in other units has the same brain.
        assert!(mask == skull_strip(&head(16.0), &SkullStripConfig::default()).0, "the gain changed the brain");
    }

    #[test]
    fn thresholds_take_over_where_the_surface_stays_implausibly_small() {
        let stuck = SkullStripConfig { coarse_iterations: 0, fine_iterations: 0, ..SkullStripConfig::default() };
        let (mask, by_surface) = skull_strip(&head(1.0), &stuck);
        assert!(!by_surface);
        let dice = dice(&mask);
        assert!(dice > 0.9, "Dice {dice}");
    }
}
