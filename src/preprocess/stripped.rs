//! Tells a scan whose skull is already removed from a whole head.
//!
//! Takes the native scan; gives the brain mask on the 2 mm working grid where the input is a bare
//! brain, `None` where it is a head. A bare brain differs from a head, also from a head whose air was set to zero or
//! whose face was removed, in two things: a large part of the field of view is exactly the background value, and what
//! is left has the volume of a brain. An adult head down to the chin holds more than 3 litres.

use serde::{Deserialize, Serialize};

use super::conform::{SPACING_MM, working_volume};
use super::distance::signed_distance;
use super::morphology::{close, count, fill_holes, largest_component};
use crate::volume::resample::nearest;
use crate::volume::{Affine, Grid, Volume};

/// Parameters of recognising a bare brain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StrippedConfig {
    /// Smallest share of voxels at exactly the background value (0..1).
    pub background_min: f64,
    /// Smallest volume of the foreground in ml.
    pub volume_min_ml: f64,
    /// Largest volume of the foreground in ml: above it, it is a head.
    pub volume_max_ml: f64,
}

impl Default for StrippedConfig {
    fn default() -> Self {
        Self { background_min: 0.4, volume_min_ml: 400.0, volume_max_ml: 2300.0 }
    }
}

/// The brain mask on the working grid where `native` already is a bare brain; `None` for a whole head.
pub fn stripped_brain(native: &Volume, cfg: &StrippedConfig) -> Option<Volume<u8>> {
    let background = background_value(native);
    let empty = native.data.iter().filter(|&&v| v == background).count();
    if (empty as f64) < cfg.background_min * native.data.len() as f64 {
        return None;
    }
    let foreground = native.data.iter().map(|&v| f32::from(u8::from(v != background))).collect();
    // Through the same interpolation as the image: at least half of a working voxel is foreground.
    let share = working_volume(&Volume::new(native.grid, foreground));
    let foreground = Volume::new(share.grid, share.data.iter().map(|&s| u8::from(s >= 0.5)).collect());
    let piece = fill_holes(&close(&largest_component(&foreground), 1));
    let ml = count(&piece) as f64 * piece.grid.voxel_ml();
    (cfg.volume_min_ml..=cfg.volume_max_ml).contains(&ml).then_some(piece)
}

/// The space that a bare brain fills, sulci included: its foreground, closed over gaps of twice `sulcus_mm` and filled,
/// on a 2 mm world-aligned grid that reaches `margin_mm` beyond the scan. `None` where the foreground is not one piece
/// of a brain's volume.
pub fn brain_hull(native: &Volume, sulcus_mm: f32, margin_mm: f64) -> Option<Volume<u8>> {
    let brain = stripped_brain(native, &StrippedConfig { background_min: 0.0, ..StrippedConfig::default() })?;
    let room = (margin_mm / SPACING_MM).ceil();
    let grid = Grid {
        shape: brain.grid.shape.map(|n| n + 2 * room as usize),
        affine: Affine::translation([-room; 3]).then(&brain.grid.affine),
    };
    let brain = nearest(&brain, &grid, &Affine::identity());
    let near = |mask: &Volume<u8>, mm: f32| {
        let distance = signed_distance(mask, sulcus_mm + 4.0);
        Volume::new(grid, distance.data.iter().map(|&d| u8::from(d <= mm)).collect::<Vec<u8>>())
    };
    Some(fill_holes(&near(&near(&brain, sulcus_mm), -sulcus_mm)))
}

/// The value that stands for "nothing here": 0 or the minimum, whichever more voxels have.
fn background_value(volume: &Volume) -> f32 {
    let minimum = volume.data.iter().copied().fold(f32::INFINITY, f32::min);
    let with = |value: f32| volume.data.iter().filter(|&&v| v == value).count();
    if with(minimum) > with(0.0) { minimum } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ball of radius `radius_mm` and value 100 in a 240 mm field of view filled with `air`.
    fn ball(radius_mm: f64, air: impl Fn(usize) -> f32) -> Volume {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -119.0], [0.0, 2.0, 0.0, -119.0], [0.0, 0.0, 2.0, -119.0]]);
        let grid = Grid { shape: [120; 3], affine };
        let data = (0..grid.len()).map(|i| {
            let p = affine.apply([i % 120, i / 120 % 120, i / 14400].map(|c| c as f64));
            if p.iter().map(|c| c * c).sum::<f64>() < radius_mm * radius_mm { 100.0 } else { air(i) }
        });
        Volume::new(grid, data.collect())
    }

    fn recognised(volume: &Volume) -> bool {
        stripped_brain(volume, &StrippedConfig::default()).is_some()
    }

    #[test]
    fn a_brain_sized_piece_in_exact_background_is_a_bare_brain() {
        let cfg = StrippedConfig::default();
        let volume = ball(67.0, |_| 0.0);
        let mask = stripped_brain(&volume, &cfg).expect("a bare brain");
        let ball_ml = 4.0 / 3.0 * std::f64::consts::PI * 6.7f64.powi(3);
        assert!((count(&mask) as f64 * 0.008 / ball_ml - 1.0).abs() < 0.01);
        assert!(recognised(&ball(67.0, |_| -1024.0)), "a negative background is a background");
    }

    #[test]
    fn a_head_in_zeroed_air_and_a_brain_in_noise_are_not() {
        assert!(!recognised(&ball(100.0, |_| 0.0)), "4.2 litres are a head");
        assert!(!recognised(&ball(67.0, |i| (i * 7919 % 13) as f32)), "air with noise was never cleaned");
    }
}
