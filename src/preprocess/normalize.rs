//! Intensities to 0..1.
//!
//! Takes the brain on the model's grid in the scanner's units; gives 0 outside the brain and `white_matter_level` at
//! the intensity of white matter, clipped to 0..1. The anchor is a high percentile of the brain, which lies in white
//! matter whether or not the mask holds cortical CSF. A lesion of 100 ml, bright or dark, moves a percentile by a few
//! hundredths of the scale at most; the extremes (vessels, rim of fat) do not move it at all.

use serde::{Deserialize, Serialize};

use super::percentile;
use crate::volume::Volume;

/// Parameters of the intensity scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormalizeConfig {
    /// The percentile of brain intensities that stands for white matter (0..1).
    pub white_matter_percentile: f64,
    /// Where that intensity goes on the scale 0..1.
    pub white_matter_level: f32,
}

impl Default for NormalizeConfig {
    fn default() -> Self {
        Self { white_matter_percentile: 0.8, white_matter_level: 0.7 }
    }
}

/// Scales `image` in place; `background` is the intensity that goes to 0. False where the brain is not brighter than
/// the background, which leaves nothing to scale.
pub fn normalize(image: &mut Volume, brain: &Volume<u8>, background: f32, cfg: &NormalizeConfig) -> bool {
    let inside = image.data.iter().zip(&brain.data).filter(|&(_, &b)| b != 0);
    let mut values: Vec<f32> = inside.map(|(&v, _)| v).collect();
    let white_matter = percentile(&mut values, cfg.white_matter_percentile);
    if white_matter <= background || white_matter.is_nan() {
        return false;
    }
    let scale = cfg.white_matter_level / (white_matter - background);
    for (v, &b) in image.data.iter_mut().zip(&brain.data) {
        *v = if b != 0 { ((*v - background) * scale).clamp(0.0, 1.0) } else { 0.0 };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    /// 100,000 brain voxels in the scanner's units times `gain` above `offset`: CSF, grey and white matter.
    fn brain(gain: f32, offset: f32) -> (Volume, Volume<u8>) {
        let grid = Grid { shape: [100, 100, 20], affine: Affine::identity() };
        let data = (0..grid.len()).map(|i| {
            let noise = (i * 7919 % 101) as f32 / 101.0 - 0.5;
            let tissue = match i % 20 {
                0..3 => 30.0,
                3..12 => 70.0,
                _ => 100.0,
            };
            offset + gain * (tissue + 8.0 * noise)
        });
        let mask = Volume::new(grid, (0..grid.len()).map(|i| u8::from(i < 100_000)).collect());
        (Volume::new(grid, data.collect()), mask)
    }

    fn scaled(mut image: Volume, mask: &Volume<u8>, background: f32) -> Volume {
        assert!(normalize(&mut image, mask, background, &NormalizeConfig::default()));
        image
    }

    #[test]
    fn white_matter_lands_on_its_level_whatever_the_scanners_units() {
        let level = NormalizeConfig::default().white_matter_level;
        for (gain, offset) in [(1.0, 0.0), (37.5, 0.0), (0.01, -1024.0)] {
            let (image, mask) = brain(gain, offset);
            let image = scaled(image, &mask, offset);
            let white: Vec<f32> = (0..100_000).filter(|i| i % 20 >= 12).map(|i| image.data[i]).collect();
            let mean = white.iter().sum::<f32>() / white.len() as f32;
            assert!((mean - level).abs() < 0.02, "gain {gain}: white matter at {mean}");
            assert!(image.data[100_000..].iter().all(|&v| v == 0.0), "0 outside the brain");
        }
    }

    #[test]
    fn a_lesion_of_a_tenth_of_the_brain_hardly_moves_the_healthy_rest() {
        let (image, mask) = brain(1.0, 0.0);
        let healthy = scaled(image.clone(), &mask, 0.0);
        for lesion in [5.0, 180.0] {
            let mut with = image.clone();
            with.data[..10_000].fill(lesion);
            let with = scaled(with, &mask, 0.0);
            let worst = (10_000..100_000).map(|i| (with.data[i] - healthy.data[i]).abs()).fold(0.0, f32::max);
            assert!(worst < 0.03, "a lesion at {lesion} moved the rest by {worst}");
        }
    }
}
