//! Finds the brain in a whole-head T1-weighted scan.
//!
//! Takes the head on a 2 mm world-aligned RAS grid; gives a mask (brain and cortical CSF) on the same grid. A
//! deformable [`surface`] like that of BET starts in the upper part of the head, so that a field of view down to the
//! shoulders does not pull it into the neck. An opening then cuts leaks through the foramina of the skull's base. Where
//! the surface ends with an implausible volume, thresholds and morphology take its place. Refuses nothing: the caller
//! checks the volume.

mod config;
mod surface;

pub use config::SkullStripConfig;
use surface::{Mesh, Steering};

use super::mask::volume_ml;
use super::morphology::{close, dilate, erode, fill_holes, largest_component, open};
use super::statistics::percentile;
use crate::volume::Volume;

/// The brain mask of `head`, a whole head on a world-aligned 2 mm RAS grid; true where the surface found it, false where
/// the thresholds did.
pub fn skull_strip(head: &Volume, cfg: &SkullStripConfig) -> (Volume<u8>, bool) {
    let start = Start::find(head, cfg);
    let by_surface = by_surface(head, &start, cfg);
    let [least, most] = cfg.plausible_ml;
    let plausible = |mask: &Volume<u8>| (least..=most).contains(&volume_ml(mask));
    if plausible(&by_surface) {
        return (by_surface, true);
    }
    let by_threshold = by_threshold(head, &start);
    if plausible(&by_threshold) { (by_threshold, false) } else { (by_surface, true) }
}

/// The inside of the deformable surface, opened.
fn by_surface(head: &Volume, start: &Start, cfg: &SkullStripConfig) -> Volume<u8> {
    let mut mesh = Mesh::sphere(start.centre, start.radius * 0.5, 3);
    mesh.evolve(head, start.steering, cfg.coarse_iterations, cfg);
    mesh.subdivide();
    mesh.evolve(head, start.steering, cfg.fine_iterations, cfg);
    let steps = (cfg.opening_mm as f64 / head.grid.spacing()[0]).round() as usize;
    largest_component(&open(&mesh.fill(head), steps))
}

/// The largest piece of tissue as bright as brain that stays connected after an erosion by 4 mm.
fn by_threshold(head: &Volume, start: &Start) -> Volume<u8> {
    let Steering { t2, tm, .. } = start.steering;
    let (low, high) = (t2 + 0.5 * (tm - t2), t2 + 1.7 * (tm - t2));
    let slice = head.grid.shape[0] * head.grid.shape[1];
    let tissue =
        head.data.iter().enumerate().map(|(i, v)| u8::from(i / slice >= start.bottom && (low..high).contains(v)));
    let tissue = Volume::new(head.grid, tissue.collect());
    let core = largest_component(&erode(&tissue, 2));
    fill_holes(&close(&dilate(&core, 3), 6))
}

/// The sphere from which the surface starts, and what steers it.
struct Start {
    steering: Steering,
    /// mm along the grid's axes.
    centre: [f32; 3],
    /// Radius in mm of a ball with the volume of the upper head.
    radius: f32,
    /// Lowest plane (index z) of the search for the brain.
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
        Self { steering: Steering { t2, t, tm, middle_mm: centre[2], radius_mm: radius }, centre, radius, bottom }
    }
}

/// The 2nd and the 98th percentile, and BET's rough threshold a tenth of the way between them.
fn threshold(values: &[f32]) -> ((f32, f32), f32) {
    let low = percentile(values, 0.02);
    let high = percentile(values, 0.98);
    ((low, high), low + 0.1 * (high - low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::mask::dice;
    use crate::volume::{Affine, Grid};

    /// Half axes of the phantom's brain in mm (1483 ml) and its centre.
    const BRAIN: [f64; 3] = [68.0, 84.0, 62.0];
    const CENTRE: [f64; 3] = [3.0, -5.0, 30.0];

    /// Distance of `p` in mm from the brain's surface along the ray from its centre, negative inside.
    fn outside_mm(p: [f64; 3]) -> f64 {
        let d = [0, 1, 2].map(|a| p[a] - CENTRE[a]);
        let length = d.iter().map(|c| c * c).sum::<f64>().sqrt();
        let scale = [0, 1, 2].map(|a| (d[a] / BRAIN[a]).powi(2)).iter().sum::<f64>().sqrt();
        if scale == 0.0 { -62.0 } else { length - length / scale }
    }

    /// A head of white matter, grey matter, CSF, bone, scalp and a neck in T1 intensities, times `gain`.
    fn head(gain: f32) -> Volume {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -119.0], [0.0, 2.0, 0.0, -119.0], [0.0, 0.0, 2.0, -139.0]]);
        let grid = Grid { shape: [120, 120, 130], affine };
        let data = (0..grid.len()).map(|i| {
            let p = grid.world_mm(i);
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

    fn dice_with_truth(mask: &Volume<u8>) -> f64 {
        let truth = (0..mask.data.len()).map(|i| u8::from(outside_mm(mask.grid.world_mm(i)) < 0.0));
        dice(mask, &Volume::new(mask.grid, truth.collect()))
    }

    #[test]
    fn the_brain_of_a_phantom_head_with_a_long_neck_is_found() {
        let (mask, by_surface) = skull_strip(&head(1.0), &SkullStripConfig::default());
        assert!(by_surface);
        let dice = dice_with_truth(&mask);
        assert!(dice > 0.96, "Dice {dice}");
        // The scanner's gain is arbitrary: the same head in other units gives the same mask.
        assert!(mask == skull_strip(&head(16.0), &SkullStripConfig::default()).0, "the gain changed the brain");
    }

    #[test]
    fn thresholds_take_over_where_the_surface_stays_implausibly_small() {
        let stuck = SkullStripConfig { coarse_iterations: 0, fine_iterations: 0, ..SkullStripConfig::default() };
        let (mask, by_surface) = skull_strip(&head(1.0), &stuck);
        assert!(!by_surface);
        let dice = dice_with_truth(&mask);
        assert!(dice > 0.9, "Dice {dice}");
    }
}
