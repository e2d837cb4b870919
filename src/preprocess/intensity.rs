//! Intensities as the other steps expect them: of an ordinary size, and with air below all tissue.
//!
//! Takes a scan, all voxels finite. Two kinds of scans are changed; all others pass untouched:
//!
//! | scan | how it is recognised | what is done |
//! |---|---|---|
//! | of tiny or huge numbers | the size of its bright voxels is outside [`ORDINARY`] | multiplied by a power of two, which is exact |
//! | centred, such as z-scores | many voxels have one value, and a good part of the others is clearly darker | its background gets the level that air has in T1w |
//!
//! A z-score inside a brain mask leaves the background at 0, in the middle of the tissue. The other steps divide by the bias
//! field and measure intensities from air, so air must be below all tissue, as in the scanner's own units. Centring loses the
//! level of air; it is estimated from the brain's darkest and brightest tissues, fluid and white matter.

use std::borrow::Cow;

use super::morphology::{close, fill_holes};
use super::statistics::percentile;
use crate::volume::Volume;

/// Sizes of bright voxels, as powers of two, that pass: 1/16 to 16 million.
const ORDINARY: std::ops::RangeInclusive<i32> = -4..=24;

/// The size that other scans get, as a power of two.
const USUAL: i32 = 8;

/// The size of a scan's bright voxels is this percentile of the absolute values.
const BRIGHT_PERCENTILE: f64 = 0.99;

/// Smallest share of voxels (0..1) at the background value of a centred scan.
const BACKGROUND_MIN: f64 = 0.2;

/// Smallest share of the other voxels (0..1) that are clearly darker than the background of a centred scan.
const DARKER_MIN: f64 = 0.1;

/// How much darker is clearly darker, as a share of the range of the other voxels (0..1): more than noise in air.
const CLEARLY: f32 = 0.05;

/// Percentiles of the tissue that stand for fluid and for white matter, and how far air lies below fluid, as a multiple of
/// the difference of the two: in T1w fluid is at 0.2 and white matter at 0.7 of the scale from air.
const FLUID_PERCENTILE: f64 = 0.02;
const WHITE_PERCENTILE: f64 = 0.8;
const AIR_BELOW_FLUID: f32 = 0.4;

/// The scan with intensities of an ordinary size; itself where they are.
pub(super) fn of_ordinary_size(scan: Cow<'_, Volume>) -> Cow<'_, Volume> {
    let sizes: Vec<f32> = sample(&scan).map(f32::abs).collect();
    let mut bright = percentile(&sizes, BRIGHT_PERCENTILE);
    if bright == 0.0 {
        bright = scan.data.iter().fold(0.0, |most, v| most.max(v.abs()));
    }
    if bright == 0.0 {
        return scan;
    }
    // In f64, denormal numbers of f32 have an exponent as well.
    let size = f64::from(bright).log2().floor() as i32;
    if ORDINARY.contains(&size) {
        return scan;
    }
    let factor = 2f64.powi(USUAL - size);
    // A spike that is much brighter than the rest must not become infinite.
    let scaled = |v: f32| (f64::from(v) * factor).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
    Cow::Owned(scan.map(scaled))
}

/// The scan with its background below all tissue; itself where it is not centred.
pub(super) fn with_dark_air(scan: Cow<'_, Volume>) -> Cow<'_, Volume> {
    let Some(background) = centred_background(&scan) else { return scan };
    // A voxel of tissue may have the value of the background as well, and stays.
    let tissue = fill_holes(&close(&scan.map(|v| u8::from(v != background)), 1));
    let inside: Vec<f32> = scan.data.iter().copied().filter(|&v| v != background).collect();
    let [fluid, white] = [FLUID_PERCENTILE, WHITE_PERCENTILE].map(|q| percentile(&inside, q));
    let air = fluid - AIR_BELOW_FLUID * (white - fluid);
    let mut scan = scan.into_owned();
    scan.data.iter_mut().zip(&tissue.data).filter(|&(_, &t)| t == 0).for_each(|(v, _)| *v = air);
    // Fluid that is darker than the estimate would be below air.
    scan.data.iter_mut().for_each(|v| *v = v.max(air));
    Cow::Owned(scan)
}

/// The background value of a centred scan.
fn centred_background(scan: &Volume) -> Option<f32> {
    let values: Vec<f32> = sample(scan).collect();
    let share = |n: usize| n as f64 / values.len() as f64;
    // A value that a fifth of the voxels have is one of five percentiles a fifth apart.
    let candidates = [0.1, 0.3, 0.5, 0.7, 0.9].map(|q| percentile(&values, q));
    let n_equal = |value: f32| values.iter().filter(|&&v| v == value).count();
    let (background, n) = candidates.map(|value| (value, n_equal(value))).into_iter().max_by_key(|&(_, n)| n)?;
    if share(n) < BACKGROUND_MIN {
        return None;
    }
    let others: Vec<f32> = values.iter().copied().filter(|&v| v != background).collect();
    let range = percentile(&others, 0.98) - percentile(&others, 0.02);
    let darker = others.iter().filter(|&&v| v < background - CLEARLY * range).count();
    (darker > 0 && darker as f64 >= DARKER_MIN * others.len() as f64).then_some(background)
}

/// Some hundred thousand voxels, which are enough for shares and percentiles.
fn sample(scan: &Volume) -> impl Iterator<Item = f32> {
    let stride = (scan.data.len() / 200_000).max(1) | 1;
    scan.data.iter().copied().step_by(stride)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    /// A ball of tissue with values 20 to 100 in a box of `air`.
    fn ball(air: f32) -> Volume {
        let grid = Grid { shape: [40; 3], affine: Affine::identity() };
        let data = (0..grid.len()).map(|i| {
            let r2: f64 = grid.world_mm(i).iter().map(|c| (c - 19.5).powi(2)).sum();
            if r2 < 150.0 { 20.0 + (i * 7919 % 81) as f32 } else { air }
        });
        Volume::new(grid, data.collect())
    }

    fn untouched(scan: &Volume) -> bool {
        matches!(with_dark_air(of_ordinary_size(Cow::Borrowed(scan))), Cow::Borrowed(_))
    }

    #[test]
    fn ordinary_scans_pass_untouched() {
        for air in [0.0, 5.0, -20.0] {
            assert!(untouched(&ball(air)), "air at {air}");
            assert!(untouched(&ball(air).map(|v| v / 100.0)) && untouched(&ball(air).map(|v| v * 300.0)));
        }
        // Noise in air of a scan in few integers.
        let noisy = ball(0.0);
        let noise = (0..noisy.data.len()).map(|i| noisy.data[i].max((i * 31 % 4) as f32));
        assert!(untouched(&Volume::new(noisy.grid, noise.collect())));
        assert!(untouched(&Volume::zeros(noisy.grid)));
    }

    #[test]
    fn a_power_of_two_brings_any_size_to_the_same_scan() {
        let scan = ball(0.0);
        let reference = of_ordinary_size(Cow::Owned(scan.map(|v| v * 2f32.powi(-20)))).into_owned();
        for exponent in [-120, -60, -30, 30, 60, 118] {
            let scaled = scan.map(|v| v * 2f32.powi(exponent));
            assert_eq!(of_ordinary_size(Cow::Borrowed(&scaled)).data, reference.data, "2^{exponent}");
        }
    }

    #[test]
    fn a_centred_ball_gets_air_below_its_tissue_and_keeps_its_voxels() {
        let raw = ball(0.0);
        // z-scores, z-scores in which a voxel of tissue is exactly 0, all tissue below the background, and a background in
        // the middle that is not 0.
        for (name, scan) in [
            ("z-scores", raw.map(|v| if v == 0.0 { 0.0 } else { (v - 60.5) / 23.0 })),
            ("zeros inside", raw.map(|v| if v == 0.0 { 0.0 } else { v - 60.0 })),
            ("all negative", raw.map(|v| if v == 0.0 { 0.0 } else { v - 200.0 })),
            ("another value", raw.map(|v| if v == 0.0 { 55.0 } else { v })),
        ] {
            let found = with_dark_air(Cow::Borrowed(&scan));
            let air = found.data[0];
            let tissue = || scan.data.iter().zip(&found.data).zip(&raw.data).filter(|&(_, &raw)| raw != 0.0);
            let darkest = tissue().fold(f32::MAX, |low, ((&was, _), _)| low.min(was));
            assert!(air < darkest, "{name}: air {air}, tissue from {darkest}");
            // At the border, tissue with exactly the value of the background cannot be distinguished from it.
            let changed = tissue().filter(|((was, is), _)| was != is).count() as f64 / tissue().count() as f64;
            assert!(changed < 0.01, "{name}: {changed} of the tissue changed");
            assert!(raw.data.iter().zip(&found.data).all(|(raw, &v)| *raw != 0.0 || v == air), "{name}");
        }
    }
}
