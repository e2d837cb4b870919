//! Intensities to the scale 0..1.
//!
//! Takes the bias-corrected brain on the model's grid in the scanner's units, air at 0; gives intensities 0..1 with white
//! matter at `white_matter_level`, and 0 outside the brain. There are four methods:
//!
//! | method | anchors | source |
//! |---|---|---|
//! | `percentile` | air, and a high percentile of the brain, which lies in white matter | |
//! | `white_stripe` | mode of white matter, and the spread of the voxels around it | Shinohara et al., NeuroImage Clin 6:9, 2014 |
//! | `nyul` | eleven percentiles of the brain, mapped to a standard scale | Nyúl et al., IEEE Trans Med Imaging 19:143, 2000 |
//! | `tissue` | air, fluid by a low percentile, grey and white matter by the template's maps | |
//!
//! `neurosieve eval preprocess` prints how well each makes the tissues of two sites agree, and how much of a lesion's
//! contrast it keeps; these tables decided the default. Refuses, by giving `None`, a brain that is not brighter
//! than air or has no contrast.

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::conform::model_grid;
use super::statistics::percentile;
use super::template::template;
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Volume};

/// How the anchors of the intensity scale are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeMethod {
    /// Air and a high percentile of the brain.
    Percentile,
    /// Mode and spread of white matter.
    WhiteStripe,
    /// Percentiles, mapped to a standard scale.
    Nyul,
    /// Fluid by a percentile, grey and white matter by the template's maps.
    Tissue,
}

impl NormalizeMethod {
    /// All methods, for comparisons.
    pub const ALL: [Self; 4] = [Self::Percentile, Self::WhiteStripe, Self::Nyul, Self::Tissue];
}

impl fmt::Display for NormalizeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Percentile => "percentile",
            Self::WhiteStripe => "white_stripe",
            Self::Nyul => "nyul",
            Self::Tissue => "tissue",
        })
    }
}

/// Parameters of the intensity scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormalizeConfig {
    /// How the anchors are found.
    pub method: NormalizeMethod,
    /// `percentile`: the percentile of brain intensities that stands for white matter (0..1).
    pub white_matter_percentile: f64,
    /// Level of white matter on the scale 0..1.
    pub white_matter_level: f32,
    /// `tissue`: level of grey matter on the scale 0..1.
    pub grey_matter_level: f32,
    /// `tissue`: the percentile of brain intensities that stands for fluid (0..1).
    pub fluid_percentile: f64,
    /// `tissue`: level of fluid on the scale 0..1.
    pub fluid_level: f32,
    /// `white_stripe`: one standard deviation of the stripe on the scale 0..1.
    pub white_stripe_gain: f32,
    /// `nyul`: levels of the percentiles 1, 10, 20, .., 90, 99 of the brain on the scale 0..1.
    pub nyul_scale: [f32; 11],
}

impl Default for NormalizeConfig {
    fn default() -> Self {
        Self {
            method: NormalizeMethod::Tissue,
            white_matter_percentile: 0.8,
            white_matter_level: 0.7,
            grey_matter_level: 0.5,
            fluid_percentile: 0.02,
            fluid_level: 0.2,
            white_stripe_gain: 0.016,
            nyul_scale: [0.1, 0.27, 0.37, 0.44, 0.49, 0.54, 0.59, 0.64, 0.69, 0.72, 0.76],
        }
    }
}

impl Validate for NormalizeConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.normalize");
        let percentiles =
            [("white_matter_percentile", self.white_matter_percentile), ("fluid_percentile", self.fluid_percentile)];
        section.all_within(&percentiles, 0. ..=1.)?;
        let levels = [
            ("white_matter_level", self.white_matter_level),
            ("grey_matter_level", self.grey_matter_level),
            ("fluid_level", self.fluid_level),
            ("white_stripe_gain", self.white_stripe_gain),
        ];
        section.all_within(&levels, 0. ..=1.)?;
        self.nyul_scale.iter().try_for_each(|&level| section.within("nyul_scale", level, 0. ..=1.))
    }
}

/// Percentiles that Nyúl's method maps.
const NYUL_PERCENTILES: [f64; 11] = [0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99];

/// Percentile of the brain (0..1) above which the mode of white matter is sought.
const WHITE_FROM: f64 = 0.5;

/// Half the width of the white stripe, as a share of the brain's voxels.
const STRIPE: f64 = 0.05;

/// Share of a tissue in the template from which a voxel is taken to be that tissue. Grey matter is thin: after affine
/// registration few voxels are certainly cortex.
const TISSUE_SHARE_MIN: f32 = 0.85;

/// Fewest voxels (8 ml) that represent a tissue.
const TISSUE_MIN_VOXELS: usize = 1000;

/// `image` on the scale 0..1, and 0 outside `brain`; both lie on the model's grid. `None` where the brain is not brighter
/// than air or has no contrast.
pub fn normalize(image: &Volume, brain: &Volume<u8>, cfg: &NormalizeConfig) -> Option<Volume> {
    let inside = voxels(brain);
    let scale = Scale::find(image, brain, &inside, cfg)?;
    let mut scaled = Volume::zeros(image.grid);
    inside.iter().for_each(|&i| scaled.data[i] = scale.apply(image.data[i]).clamp(0.0, 1.0));
    Some(scaled)
}

/// The places of a mask's voxels. Most of a mask is empty, so that whole lines are skipped at once.
fn voxels(mask: &Volume<u8>) -> Vec<usize> {
    const LINE: usize = 32;
    let lines = mask.data.chunks(LINE).enumerate().filter(|(_, line)| line.iter().fold(0, |any, v| any | v) != 0);
    lines.flat_map(|(at, line)| (0..line.len()).filter(|&i| line[i] != 0).map(move |i| at * LINE + i)).collect()
}

/// A monotone, piecewise linear map, extrapolated linearly beyond its ends.
struct Scale {
    /// Pairs of an intensity in the scanner's units, ascending, and its level on the scale 0..1.
    knots: Vec<[f32; 2]>,
}

impl Scale {
    /// `inside` are the voxels of `brain`.
    fn find(image: &Volume, brain: &Volume<u8>, inside: &[usize], cfg: &NormalizeConfig) -> Option<Self> {
        let values: Vec<f32> = inside.iter().map(|&i| image.data[i]).collect();
        let knots = match cfg.method {
            NormalizeMethod::Percentile => {
                let white = percentile(&values, cfg.white_matter_percentile);
                vec![[0.0, 0.0], [white, cfg.white_matter_level]]
            }
            NormalizeMethod::WhiteStripe => {
                let (mode, spread) = white_stripe(values);
                vec![[mode - spread, cfg.white_matter_level - cfg.white_stripe_gain], [mode, cfg.white_matter_level]]
            }
            NormalizeMethod::Nyul => {
                let mut ranks = NYUL_PERCENTILES.map(|q| percentile(&values, q)).to_vec();
                ranks.dedup();
                if ranks.len() < NYUL_PERCENTILES.len() {
                    return None;
                }
                ranks.into_iter().zip(cfg.nyul_scale).map(|(from, to)| [from, to]).collect()
            }
            NormalizeMethod::Tissue => {
                let [grey, white] = tissue_medians(image, brain)?;
                let fluid = percentile(&values, cfg.fluid_percentile);
                let levels = [cfg.fluid_level, cfg.grey_matter_level, cfg.white_matter_level];
                let knots = [fluid, grey, white].into_iter().zip(levels).map(|(from, to)| [from, to]);
                std::iter::once([0.0, 0.0]).chain(knots).collect()
            }
        };
        if knots.windows(2).all(|pair| pair[0][0] < pair[1][0]) {
            return Some(Self { knots });
        }
        // Grey matter is brighter than white, as in FLAIR and T2w: these tissues do not fit the scale of T1w.
        let percentile = NormalizeConfig { method: NormalizeMethod::Percentile, ..cfg.clone() };
        (cfg.method == NormalizeMethod::Tissue).then(|| Self::find(image, brain, inside, &percentile)).flatten()
    }

    fn apply(&self, v: f32) -> f32 {
        let piece = self.knots[1..self.knots.len() - 1].partition_point(|knot| knot[0] <= v);
        let [[x0, y0], [x1, y1]] = [self.knots[piece], self.knots[piece + 1]];
        y0 + (v - x0) * (y1 - y0) / (x1 - x0)
    }
}

/// Mode of the bright half of the brain, and the standard deviation of the tenth of the brain's voxels around it.
fn white_stripe(mut values: Vec<f32>) -> (f32, f32) {
    const BINS: usize = 100;
    values.sort_unstable_by(f32::total_cmp);
    let n = values.len();
    let (from, to) = ((n as f64 * WHITE_FROM) as usize, (n as f64 * 0.995) as usize);
    let bright = &values[from.min(n)..to.max(from).min(n)];
    let (Some(&low), Some(&high)) = (bright.first(), bright.last()) else { return (0.0, 0.0) };
    let width = (high - low).max(f32::MIN_POSITIVE) / BINS as f32;
    let mut histogram = [0f32; BINS];
    for v in bright {
        histogram[(((v - low) / width) as usize).min(BINS - 1)] += 1.0;
    }
    // Sums of five bins: the mode of single bins is noise.
    let smooth = |b: usize| histogram[b.saturating_sub(2)..(b + 3).min(BINS)].iter().sum::<f32>();
    let peak = (0..BINS).max_by(|&a, &b| smooth(a).total_cmp(&smooth(b))).unwrap_or(0);
    let mode = low + (peak as f32 + 0.5) * width;
    let at = values.partition_point(|&v| v < mode);
    let half = (n as f64 * STRIPE) as usize;
    let stripe = &values[at.saturating_sub(half)..(at + half).min(n)];
    let variance = stripe.iter().map(|v| (v - mode).powi(2)).sum::<f32>() / stripe.len().max(1) as f32;
    (mode, variance.sqrt())
}

/// Median intensities of the brain's voxels in the template's grey matter and in its white matter. `None` where the scan
/// holds too few voxels of either.
fn tissue_medians(image: &Volume, brain: &Volume<u8>) -> Option<[f32; 2]> {
    let median = |tissue: &[usize]| {
        let inside = tissue.iter().filter(|&&i| brain.data[i] != 0);
        let values: Vec<f32> = inside.map(|&i| image.data[i]).collect();
        (values.len() >= TISSUE_MIN_VOXELS).then(|| percentile(&values, 0.5))
    };
    let [grey, white] = TISSUES.each_ref();
    Some([median(grey)?, median(white)?])
}

/// The voxels of the model's grid in the template's grey matter, and those in its white matter.
static TISSUES: LazyLock<[Vec<usize>; 2]> = LazyLock::new(|| {
    [&template().grey, &template().white].map(|map| {
        let share = trilinear(map, &model_grid(), &Affine::identity());
        (0..share.data.len()).filter(|&i| share.data[i] >= TISSUE_SHARE_MIN).collect()
    })
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::conform::mask_to;

    /// Shares of grey and white matter on the model's grid.
    fn shares() -> [Volume; 2] {
        [&template().grey, &template().white].map(|map| trilinear(map, &model_grid(), &Affine::identity()))
    }

    /// The template's brain on the model's grid in the scanner's units times `gain`, with noise: fluid 30,
    /// grey matter 70, white matter 100.
    fn brain(gain: f32) -> (Volume, Volume<u8>) {
        let [grey, white] = shares();
        let mask = mask_to(&template().brain, &model_grid(), &Affine::identity());
        let data = (0..mask.data.len()).map(|i| {
            let noise = (i * 7919 % 101) as f32 / 101.0 - 0.5;
            let (g, w) = (grey.data[i], white.data[i]);
            let tissue = 70.0 * g + 100.0 * w + 30.0 * (1.0 - g - w).max(0.0);
            gain * (tissue + 8.0 * noise)
        });
        (Volume::new(model_grid(), data.collect()), mask)
    }

    fn scaled(image: &Volume, mask: &Volume<u8>, method: NormalizeMethod) -> Volume {
        normalize(image, mask, &NormalizeConfig { method, ..NormalizeConfig::default() })
            .expect("a brain with contrast")
    }

    #[test]
    fn the_scanners_units_do_not_matter_and_voxels_outside_the_brain_are_zero() {
        for method in NormalizeMethod::ALL {
            let (image, mask) = brain(1.0);
            let reference = scaled(&image, &mask, method);
            assert!(reference.data.iter().zip(&mask.data).all(|(&v, &b)| b != 0 || v == 0.0), "0 outside the brain");
            for gain in [37.5, 0.01] {
                let (image, mask) = brain(gain);
                let image = scaled(&image, &mask, method);
                let worst = image.data.iter().zip(&reference.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 0.01, "{method}, gain {gain}: off by {worst}");
            }
        }
    }

    #[test]
    fn tissues_get_their_levels() {
        let cfg = NormalizeConfig::default();
        let (image, mask) = brain(3.0);
        let image = scaled(&image, &mask, NormalizeMethod::Tissue);
        for (tissue, level) in shares().iter().zip([cfg.grey_matter_level, cfg.white_matter_level]) {
            let inside: Vec<f32> = (0..image.data.len())
                .filter(|&i| mask.data[i] != 0 && tissue.data[i] > 0.95)
                .map(|i| image.data[i])
                .collect();
            let mean = inside.iter().sum::<f32>() / inside.len() as f32;
            assert!((mean - level).abs() < 0.02, "{mean}, not {level}");
        }
    }

    #[test]
    fn a_lesion_of_a_tenth_of_the_brain_hardly_moves_the_healthy_rest() {
        let (image, mask) = brain(1.0);
        let healthy = scaled(&image, &mask, NormalizeMethod::Tissue);
        let inside = voxels(&mask);
        let (lesion, rest) = inside.split_at(inside.len() / 10);
        // As dark as fluid, and brighter than white matter. Only a large lesion darker than fluid moves the scale's dark end.
        for level in [30.0, 180.0] {
            let mut with = image.clone();
            lesion.iter().for_each(|&i| with.data[i] = level);
            let with = scaled(&with, &mask, NormalizeMethod::Tissue);
            let moved: f32 = rest.iter().map(|&i| (with.data[i] - healthy.data[i]).abs()).sum();
            let mean = moved / rest.len() as f32;
            assert!(mean < 0.02, "a lesion at {level} moved the rest by {mean}");
        }
    }

    #[test]
    fn a_brain_without_contrast_is_not_scaled() {
        let (image, mask) = brain(1.0);
        for method in NormalizeMethod::ALL {
            let flat = Volume::zeros(image.grid);
            let cfg = NormalizeConfig { method, ..NormalizeConfig::default() };
            assert!(normalize(&flat, &mask, &cfg).is_none(), "{method}");
        }
    }
}
