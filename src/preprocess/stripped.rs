//! Recognises a scan whose skull is already removed.
//!
//! Takes the native scan, all voxels finite; gives the brain mask on the 2 mm working grid where the input is a bare
//! brain, `None` where it is a head. A bare brain differs from a head, even from a head with zeroed air or without a
//! face, in three respects:
//!
//! - A large part of the field of view holds the background value, up to the ringing of an interpolation.
//! - The rest has the volume of a brain. An adult head down to the chin has more than 3 litres.
//! - The rest is one piece. Zeroed bone divides a head into brain and scalp.

use serde::{Deserialize, Serialize};

use super::conform::{SPACING_MM, conformed};
use super::distance::signed_distance;
use super::mask::{count, volume_ml};
use super::morphology::{close, fill_holes, largest_component};
use super::statistics::percentile;
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::volume::resample::nearest;
use crate::volume::{Affine, Grid, Volume};

/// Parameters for recognising a bare brain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StrippedConfig {
    /// Smallest share of voxels at the background value (0..1).
    pub background_min: f64,
    /// The same for a scan that is cropped to the brain.
    pub cropped_background_min: f64,
    /// Largest share of the border's voxels (0..1) that the brain of a cropped scan may touch.
    pub border_max: f64,
    /// Largest deviation of background from the background value, as a share of the range of intensities (0..1).
    pub tolerance: f32,
    /// Smallest share of the foreground that is one piece (0..1).
    pub one_piece_min: f64,
    /// Smallest volume of the foreground in ml.
    pub volume_min_ml: f64,
    /// Largest volume of the foreground in ml; a larger one is a head.
    pub volume_max_ml: f64,
}

impl Default for StrippedConfig {
    fn default() -> Self {
        Self {
            background_min: 0.4,
            cropped_background_min: 0.2,
            border_max: 0.2,
            tolerance: 0.01,
            one_piece_min: 0.9,
            volume_min_ml: 400.0,
            // Brains stretched to MNI space have 1.9 l. A few defaced IXI heads with cleaned air that are also cut off
            // below the brain have less than 2050 ml and are still taken for bare brains.
            volume_max_ml: 2050.0,
        }
    }
}

impl Validate for StrippedConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.stripped");
        let shares = [
            ("background_min", self.background_min),
            ("cropped_background_min", self.cropped_background_min),
            ("border_max", self.border_max),
            ("one_piece_min", self.one_piece_min),
        ];
        section.all_within(&shares, 0. ..=1.)?;
        section.within("tolerance", self.tolerance, 0. ..=1.)?;
        let volumes = [("volume_min_ml", self.volume_min_ml), ("volume_max_ml", self.volume_max_ml)];
        section.all_within(&volumes, 0. ..=10_000.)
    }
}

/// The brain mask on the working grid where `native` is already a bare brain; `None` for a whole head.
pub(super) fn stripped_brain(native: &Volume, cfg: &StrippedConfig) -> Option<Volume<u8>> {
    let foreground = foreground(native, cfg.tolerance);
    let empty = foreground.data.iter().filter(|&&v| v == 0.0).count() as f64 / foreground.data.len() as f64;
    if empty < cfg.cropped_background_min {
        return None;
    }
    if empty < cfg.background_min && on_border(&foreground) > cfg.border_max {
        return None;
    }
    // By the same interpolation as the image: a working voxel is foreground where at least half of it is.
    let foreground = conformed(&foreground).working.map(|s| u8::from(s >= 0.5));
    let largest = largest_component(&foreground);
    if (count(&largest) as f64) < cfg.one_piece_min * count(&foreground) as f64 {
        return None;
    }
    let piece = fill_holes(&close(&largest, 1));
    (cfg.volume_min_ml..=cfg.volume_max_ml).contains(&volume_ml(&piece)).then_some(piece)
}

/// 1 where the scan differs from its background value, 0 elsewhere.
fn foreground(native: &Volume, tolerance: f32) -> Volume {
    // A few hundred thousand voxels are enough for a percentile.
    let stride = (native.data.len() / 200_000).max(1) | 1;
    let some: Vec<f32> = native.data.iter().copied().step_by(stride).collect();
    let low = percentile(&some, 0.02);
    let within = tolerance * (percentile(&some, 0.98) - low);
    let near = |value: f32| native.data.iter().filter(|&&v| (v - value).abs() <= within).count();
    // The background value is 0 or another value below all tissue, apart from a few undershoots.
    let background = if near(low) > near(0.0) { low } else { 0.0 };
    native.map(|v| f32::from(u8::from((v - background).abs() > within)))
}

/// The share of the voxels on the six faces of the grid that are foreground.
fn on_border(foreground: &Volume) -> f64 {
    let (mut all, mut touched) = (0usize, 0usize);
    for (i, &v) in foreground.data.iter().enumerate() {
        let index = foreground.grid.ijk(i);
        if index.iter().zip(foreground.grid.shape).any(|(&c, n)| c == 0 || c + 1 == n) {
            all += 1;
            touched += usize::from(v != 0.0);
        }
    }
    touched as f64 / all.max(1) as f64
}

/// The space of a bare brain with its sulci: its foreground, with gaps of up to twice `sulcus_mm` closed and holes filled,
/// on a 2 mm world-aligned grid that extends `margin_mm` beyond the scan. `None` where the foreground is not one piece
/// with the volume of a brain.
pub fn brain_hull(native: &Volume, sulcus_mm: f32, margin_mm: f64) -> Option<Volume<u8>> {
    let brain = stripped_brain(
        native,
        &StrippedConfig { background_min: 0.0, cropped_background_min: 0.0, ..StrippedConfig::default() },
    )?;
    let room = (margin_mm / SPACING_MM).ceil();
    let grid = Grid {
        shape: brain.grid.shape.map(|n| n + 2 * room as usize),
        affine: Affine::translation([-room; 3]).then(&brain.grid.affine),
    };
    let brain = nearest(&brain, &grid, &Affine::identity());
    let near = |mask: &Volume<u8>, mm: f32| {
        let distance = signed_distance(mask, sulcus_mm + 4.0);
        distance.map(|d| u8::from(d <= mm))
    };
    Some(fill_holes(&near(&near(&brain, sulcus_mm), -sulcus_mm)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ball of radius `radius_mm` and value 100 in a 240 mm field of view filled with `air`.
    fn ball(radius_mm: f64, air: impl Fn(usize) -> f32) -> Volume {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -119.0], [0.0, 2.0, 0.0, -119.0], [0.0, 0.0, 2.0, -119.0]]);
        let grid = Grid { shape: [120; 3], affine };
        let data = (0..grid.len()).map(|i| {
            if grid.world_mm(i).iter().map(|c| c * c).sum::<f64>() < radius_mm * radius_mm { 100.0 } else { air(i) }
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
        assert!((volume_ml(&mask) / ball_ml - 1.0).abs() < 0.01);
        assert!(recognised(&ball(67.0, |_| -1024.0)), "a negative background is a background");
    }

    #[test]
    fn a_bare_brain_with_ringing_or_a_tight_crop_is_recognised() {
        let ringing = |i: usize| 0.009 * 100.0 * ((i * 7919 % 101) as f32 / 50.0 - 1.0);
        assert!(recognised(&ball(67.0, ringing)), "a background with ringing below 1 %");
        assert!(recognised(&ball(67.0, |i| -1.0 + ringing(i) / 9.0)), "ringing around a negative background");
        // A rounded box of 1070 ml that just reaches all six faces of its grid, of which it leaves 30 % empty.
        let grid = Grid { shape: [55, 67, 51], affine: ball(1.0, |_| 0.0).grid.affine };
        let data = (0..grid.len()).map(|i| {
            let index = grid.ijk(i);
            let off: [f64; 3] = std::array::from_fn(|a| (2.0 * index[a] as f64 + 1.0) / grid.shape[a] as f64 - 1.0);
            if off.iter().map(|c| c.abs().powi(3)).sum::<f64>() < 1.0 { 100.0 } else { 0.0 }
        });
        let cropped = Volume::new(grid, data.collect());
        let empty = cropped.data.iter().filter(|&&v| v == 0.0).count() as f64 / grid.len() as f64;
        assert!(empty < 0.4 && recognised(&cropped), "{empty} of a tight crop is background");
    }

    #[test]
    fn a_head_whose_bone_was_zeroed_with_its_air_is_not_a_bare_brain() {
        let mut head = ball(67.0, |_| 0.0);
        let scalp = ball(82.0, |_| 0.0);
        let skull = ball(75.0, |_| 0.0);
        for (v, (s, k)) in head.data.iter_mut().zip(scalp.data.iter().zip(&skull.data)) {
            *v += s - k;
        }
        assert!(!recognised(&head), "brain and scalp are two pieces");
    }

    #[test]
    fn a_head_in_zeroed_air_and_a_brain_in_noise_are_not_bare_brains() {
        assert!(!recognised(&ball(100.0, |_| 0.0)), "4.2 litres are a head");
        assert!(!recognised(&ball(67.0, |i| (i * 7919 % 13) as f32)), "noise in air means that it was not cleaned");
    }
}
