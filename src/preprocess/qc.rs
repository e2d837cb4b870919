//! Quality of one preprocessed scan: two numbers and a list of flags. Flags never stop a scan.
//!
//! | flag | meaning |
//! |---|---|
//! | `small_brain`, `large_brain` | brain volume outside `brain_volume_ml` of the settings |
//! | `cut_by_field_of_view` | the brain reaches the border of the scan over more than `edge_area_cm2` |
//! | `outside_model_grid` | more than 0.5 % of the brain lies outside the model's grid |
//! | `low_snr` | SNR below `snr_min` |
//! | `skull_strip_fallback` | the surface failed and thresholds found the brain: parts may be missing |
//! | `thick_slices` | the largest voxel side is above `slice_max_mm` |

use serde::{Deserialize, Serialize};

use super::conform::SPACING_MM;
use super::morphology::{close, count, dilate, fill_holes, largest_component};
use super::{Brain, percentile};
use crate::volume::{Grid, Volume};

/// Thresholds of the flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QcConfig {
    /// Smallest and largest ordinary brain volume in ml.
    pub brain_volume_ml: [f64; 2],
    /// Lowest ordinary signal-to-noise ratio.
    pub snr_min: f32,
    /// Largest area in cm2 over which a whole brain may touch the border of the scan (the brain stem does).
    pub edge_area_cm2: f64,
    /// Largest ordinary voxel side in mm.
    pub slice_max_mm: f64,
}

impl Default for QcConfig {
    fn default() -> Self {
        Self { brain_volume_ml: [700.0, 2200.0], snr_min: 8.0, edge_area_cm2: 15.0, slice_max_mm: 3.5 }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Qc {
    /// Median brain intensity over the standard deviation of the noise in air; `None` where the air was set to zero.
    pub snr: Option<f32>,
    /// Brain volume over the volume of the whole head in view; 1 for a bare brain.
    pub mask_ratio: f32,
    /// Flags, in the order of the table above.
    pub flags: Vec<&'static str>,
}

/// Judges the brain `found` on the working grid `head`. `kept` is the share of the brain inside the model's grid.
pub fn judge(native: &Grid, head: &Volume, found: &Brain, kept: f64, cfg: &QcConfig) -> Qc {
    let brain = &found.mask;
    let brain_ml = count(brain) as f64 * brain.grid.voxel_ml();
    let (snr, mask_ratio) = if found.stripped_input {
        (None, 1.0)
    } else {
        let whole = foreground(head);
        let ratio = count(brain) as f32 / count(&whole).max(1) as f32;
        (signal_to_noise(head, brain, &whole), ratio.min(1.0))
    };
    let slice = native.spacing().into_iter().fold(0.0, f64::max);
    let tests = [
        ("small_brain", brain_ml < cfg.brain_volume_ml[0]),
        ("large_brain", brain_ml > cfg.brain_volume_ml[1]),
        ("cut_by_field_of_view", edge_area_cm2(brain) > cfg.edge_area_cm2),
        ("outside_model_grid", kept < 0.995),
        ("low_snr", snr.is_some_and(|snr| snr < cfg.snr_min)),
        ("skull_strip_fallback", found.fallback),
        ("thick_slices", slice > cfg.slice_max_mm),
    ];
    let flags = tests.into_iter().filter(|(_, raised)| *raised).map(|(flag, _)| flag).collect();
    Qc { snr, mask_ratio, flags }
}

/// The head without the air around it: the largest piece above the threshold that separates two classes best.
fn foreground(head: &Volume) -> Volume<u8> {
    let level = otsu(&head.data);
    let above = head.data.iter().map(|&v| u8::from(v > level)).collect();
    fill_holes(&close(&largest_component(&Volume::new(head.grid, above)), 2))
}

/// The threshold with the largest variance between the classes below and above it (Otsu, IEEE Transactions on
/// Systems, Man and Cybernetics 9:62, 1979), over 128 bins up to the 98th percentile.
fn otsu(values: &[f32]) -> f32 {
    const BINS: usize = 128;
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = percentile(&mut values.to_vec(), 0.98).max(low + f32::EPSILON);
    let width = (high - low) / BINS as f32;
    let mut histogram = [0f64; BINS];
    for v in values {
        histogram[(((v - low) / width) as usize).min(BINS - 1)] += 1.0;
    }
    let total = values.len() as f64;
    let sum: f64 = histogram.iter().enumerate().map(|(bin, n)| bin as f64 * n).sum();
    let (mut below, mut sum_below, mut best, mut best_bin) = (0.0, 0.0, 0.0, 0);
    for (bin, n) in histogram.iter().enumerate().take(BINS - 1) {
        below += n;
        sum_below += bin as f64 * n;
        let above = total - below;
        if below > 0.0 && above > 0.0 {
            let between = below * above * (sum_below / below - (sum - sum_below) / above).powi(2);
            if between > best {
                (best, best_bin) = (between, bin);
            }
        }
    }
    low + (best_bin + 1) as f32 * width
}

/// Median of the brain over the noise in air. In magnitude images the noise in air is Rayleigh distributed: its mean
/// square is twice the variance of the noise in tissue (Gudbjartsson and Patz, Magn Reson Med 34:910, 1995).
fn signal_to_noise(head: &Volume, brain: &Volume<u8>, whole: &Volume<u8>) -> Option<f32> {
    let near = dilate(whole, 5);
    let air: Vec<f32> = head.data.iter().zip(&near.data).filter(|&(_, &m)| m == 0).map(|(&v, _)| v).collect();
    let nonzero = air.iter().filter(|&&v| v != 0.0).count();
    // Air that is almost nowhere above zero was cleaned and tells nothing.
    if nonzero * 20 < air.len() || air.len() < 1000 {
        return None;
    }
    let mean_square = air.iter().map(|&v| v as f64 * v as f64).sum::<f64>() / air.len() as f64;
    let mut inside: Vec<f32> = head.data.iter().zip(&brain.data).filter(|&(_, &m)| m != 0).map(|(&v, _)| v).collect();
    let signal = percentile(&mut inside, 0.5);
    Some(signal / (mean_square / 2.0).sqrt() as f32)
}

/// Area over which the mask touches the border of its grid.
fn edge_area_cm2(brain: &Volume<u8>) -> f64 {
    let [nx, ny, nz] = brain.grid.shape;
    let on_edge = |i: usize| {
        let (x, y, z) = (i % nx, i / nx % ny, i / (nx * ny));
        x == 0 || y == 0 || z == 0 || x + 1 == nx || y + 1 == ny || z + 1 == nz
    };
    let voxels = (0..brain.data.len()).filter(|&i| brain.data[i] != 0 && on_edge(i)).count();
    voxels as f64 * SPACING_MM * SPACING_MM / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Affine;
    use rand::{Rng, SeedableRng};

    /// A ball of 140 mm and intensity 100 as head, its inner 110 mm as brain, with noise of standard deviation `sigma`
    /// in both channels of a magnitude image.
    fn phantom(sigma: f32) -> (Volume, Brain) {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -99.0], [0.0, 0.0, 2.0, -99.0]]);
        let grid = Grid { shape: [100; 3], affine };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut gauss = move || {
            let (u, v): (f32, f32) = (rng.random(), rng.random());
            (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos() * sigma
        };
        let radius = |i: usize| {
            let p = affine.apply([i % 100, i / 100 % 100, i / 10_000].map(|c| c as f64));
            p.iter().map(|c| c * c).sum::<f64>().sqrt()
        };
        let head = (0..grid.len()).map(|i| {
            let signal = if radius(i) < 70.0 { 100.0 } else { 0.0 };
            (signal + gauss()).hypot(gauss())
        });
        let head = Volume::new(grid, head.collect());
        let mask = Volume::new(grid, (0..grid.len()).map(|i| u8::from(radius(i) < 55.0)).collect());
        (head, Brain { mask, stripped_input: false, fallback: false })
    }

    #[test]
    fn snr_and_mask_ratio_of_a_phantom_are_those_it_was_made_with() {
        let (head, brain) = phantom(5.0);
        let qc = judge(&head.grid, &head, &brain, 1.0, &QcConfig::default());
        let snr = qc.snr.expect("air holds noise");
        assert!((snr / 20.0 - 1.0).abs() < 0.05, "SNR {snr}, made with 100 / 5");
        assert!((qc.mask_ratio / (55f32 / 70.0).powi(3) - 1.0).abs() < 0.05, "ratio {}", qc.mask_ratio);
        assert_eq!(qc.flags, ["small_brain"]);
    }

    #[test]
    fn flags_name_what_is_wrong() {
        let (head, mut brain) = phantom(20.0);
        brain.mask.data[..40_000].fill(1);
        brain.fallback = true;
        let native = Grid {
            shape: [100, 100, 40],
            affine: Affine::from_rows([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]]),
        };
        let qc = judge(&native, &head, &brain, 0.9, &QcConfig::default());
        assert_eq!(
            qc.flags,
            ["cut_by_field_of_view", "outside_model_grid", "low_snr", "skull_strip_fallback", "thick_slices"]
        );
    }

    #[test]
    fn cleaned_air_has_no_snr() {
        let (head, brain) = phantom(0.0);
        assert_eq!(judge(&head.grid, &head, &brain, 1.0, &QcConfig::default()).snr, None);
    }
}
