//! Refuses what is no MRI scan of a brain.
//!
//! | kind | before | what it is | how it is recognised |
//! |---|---|---|---|
//! | `not_mri` | skull stripping | CT in Hounsfield units | a large share of air near -1000, the rest around 0 |
//! | `no_brain` | skull stripping | noise, an empty bore | neighbouring voxels are uncorrelated |
//! | `no_brain` | normalizing | a uniform phantom | the supposed brain has one intensity |
//! | `no_brain` | normalizing | a phantom with inserts, another body part | no resemblance to the template |

use serde::{Deserialize, Serialize};

use super::measure::block_means;
use crate::config::{Section, Validate};
use crate::error::{Error, Result};
use crate::preprocess::morphology::erode;
use crate::preprocess::statistics::percentile;
use crate::volume::Volume;

/// Thresholds for refusing a scan, chosen on the training split's heads and bare brains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefuseConfig {
    /// Share of voxels between -1100 and -900 from which a scan may be CT.
    pub ct_air_min: f64,
    /// Lowest correlation of neighbouring voxels on the working grid.
    pub coherence_min: f64,
    /// Lowest spread of intensities in the brain: the difference between the 95th and the 5th percentile of 4 mm blocks
    /// below its rim, over their median.
    pub spread_min: f32,
    /// Lowest correlation with the template in the brain.
    pub ncc_min: f32,
}

impl Validate for RefuseConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.refuse");
        section.within("ct_air_min", self.ct_air_min, 0. ..=1.)?;
        section.within("coherence_min", self.coherence_min, -1. ..=1.)?;
        section.within("spread_min", self.spread_min, 0. ..=1000.)?;
        section.within("ncc_min", self.ncc_min, -1. ..=1.)
    }
}

impl Default for RefuseConfig {
    fn default() -> Self {
        // Measured: coherence 0.91 to 0.99, noise 0.0; spread 0.38 (FLAIR) to 1.0, a uniform ball 0.03; correlation with
        // the template 0.51 (FLAIR) to 0.68, phantoms at most 0.14.
        Self { ct_air_min: 0.1, coherence_min: 0.6, spread_min: 0.15, ncc_min: 0.3 }
    }
}

/// Refuses CT and volumes that hold only noise, before the brain is located. `working` is `native` on the working grid.
///
/// # Errors
/// [`Error::Input`] of kind `not_mri` or `no_brain`.
pub fn refuse_scan(native: &Volume<f32>, working: &Volume<f32>, cfg: &RefuseConfig) -> Result<()> {
    // A few hundred thousand voxels give shares to a tenth of a percent.
    let stride = (native.data.len() / 200_000).max(1) | 1;
    let sample = native.data.iter().copied().step_by(stride);
    let air = sample.clone().filter(|v| (-1100.0..=-900.0).contains(v)).count() as f64;
    if air > cfg.ct_air_min * sample.len() as f64 {
        let rest: Vec<f32> = sample.filter(|&v| v > -900.0).collect();
        let middle = percentile(&rest, 0.5);
        if (-300.0..=300.0).contains(&middle) {
            return Err(Error::input(
                "not_mri",
                "intensities are Hounsfield units (air near -1000, tissue near 0): this is a CT scan; leave it out",
            ));
        }
    }
    let coherence = coherence(working);
    if coherence < cfg.coherence_min {
        return Err(Error::input(
            "no_brain",
            format!(
                "neighbouring voxels hardly agree (correlation {coherence:.2}, at least {}): the volume holds noise; \
                 check that the right series was exported",
                cfg.coherence_min
            ),
        ));
    }
    Ok(())
}

/// Refuses, after registration, a mask that holds no brain. `corrected` is the scan on the working grid divided by its
/// bias field, `brain` the mask on the same grid, `ncc` the correlation with the template.
///
/// # Errors
/// [`Error::Input`] of kind `no_brain`.
pub fn refuse_brain(corrected: &Volume<f32>, brain: &Volume<u8>, ncc: f32, cfg: &RefuseConfig) -> Result<()> {
    let spread = spread(corrected, brain);
    if spread < cfg.spread_min {
        return Err(Error::input(
            "no_brain",
            format!(
                "what looks like a brain is of one intensity (spread {spread:.2}, at least {}): a uniform phantom? \
                 Leave it out",
                cfg.spread_min
            ),
        ));
    }
    if ncc < cfg.ncc_min {
        return Err(Error::input(
            "no_brain",
            format!(
                "what looks like a brain does not resemble the template (correlation {ncc:.2}, at least {}): a \
                 phantom or another body part; if it is a head, check the orientation in its header",
                cfg.ncc_min
            ),
        ));
    }
    Ok(())
}

/// Correlation of voxels with their neighbours along x, in every fifth row, with values clamped to the 99th percentile.
fn coherence(volume: &Volume<f32>) -> f64 {
    let nx = volume.grid.shape[0];
    let sample: Vec<f32> = volume.data.iter().copied().step_by(17).collect();
    // The clamp limits the weight of a single bright voxel.
    let top = f64::from(percentile(&sample, 0.99));
    let (mut n, mut sums) = (0.0, [0f64; 5]);
    for row in volume.data.chunks(nx).step_by(5) {
        for pair in row.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|v| f64::from(v).min(top));
            n += 1.0;
            sums = [sums[0] + a, sums[1] + b, sums[2] + a * a, sums[3] + b * b, sums[4] + a * b];
        }
    }
    let [a, b, aa, bb, ab] = sums.map(|s| s / f64::max(n, 1.0));
    (ab - a * b) / ((aa - a * a) * (bb - b * b)).sqrt().max(f64::MIN_POSITIVE)
}

/// Difference between the 95th and the 5th percentile of 4 mm blocks in the brain, over their median; 0 without a
/// positive median.
fn spread(image: &Volume<f32>, brain: &Volume<u8>) -> f32 {
    // The rim is mixed with the tissue outside.
    let means = block_means(image, &erode(brain, 2));
    let [low, middle, high] = [0.05, 0.5, 0.95].map(|q| percentile(&means, q));
    if middle > 0.0 { (high - low) / middle } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    /// A volume on a 2 mm grid of 200 mm; `voxel` gives the value from world mm and the place in the data.
    fn volume(voxel: impl Fn([f64; 3], usize) -> f32) -> Volume {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -99.0], [0.0, 0.0, 2.0, -99.0]]);
        let grid = Grid { shape: [100; 3], affine };
        Volume::new(grid, (0..grid.len()).map(|i| voxel(grid.world_mm(i), i)).collect())
    }

    fn radius(p: [f64; 3]) -> f64 {
        p.iter().map(|c| c * c).sum::<f64>().sqrt()
    }

    fn noise(i: usize) -> f32 {
        (i.wrapping_mul(2_654_435_761) % 65_536) as f32 / 65_536.0
    }

    fn kind(result: Result<()>) -> Option<&'static str> {
        result.err().map(|e| e.kind())
    }

    #[test]
    fn a_ct_head_is_refused_and_an_mri_head_with_the_same_shape_is_not() {
        let cfg = RefuseConfig::default();
        let tissue = |p: [f64; 3], levels: [f32; 3]| match radius(p) {
            r if r < 70.0 => levels[0],
            r if r < 78.0 => levels[1],
            _ => levels[2],
        };
        let ct = volume(|p, i| tissue(p, [35.0, 1000.0, -1000.0]) + 20.0 * noise(i));
        assert_eq!(kind(refuse_scan(&ct, &ct, &cfg)), Some("not_mri"));
        let mri = volume(|p, i| tissue(p, [600.0, 50.0, 0.0]) + 20.0 * noise(i));
        assert_eq!(kind(refuse_scan(&mri, &mri, &cfg)), None);
        let offset = volume(|p, i| tissue(p, [600.0, 900.0, -1024.0]) + 20.0 * noise(i));
        assert_eq!(kind(refuse_scan(&offset, &offset, &cfg)), None, "a background of -1024 alone is not CT");
    }

    #[test]
    fn noise_a_uniform_ball_and_what_does_not_match_the_template_are_no_brain() {
        let cfg = RefuseConfig::default();
        let empty = volume(|_, i| 100.0 * noise(i));
        assert_eq!(kind(refuse_scan(&empty, &empty, &cfg)), Some("no_brain"));
        let ball = volume(|p, i| if radius(p) < 70.0 { 500.0 + 50.0 * noise(i) } else { 0.0 });
        let mask = ball.map(|v| u8::from(v > 0.0));
        assert_eq!(kind(refuse_scan(&ball, &ball, &cfg)), None);
        assert_eq!(kind(refuse_brain(&ball, &mask, 0.9, &cfg)), Some("no_brain"));
        let shells = volume(|p, _| if radius(p) < 50.0 { 500.0 } else { 300.0 });
        assert_eq!(kind(refuse_brain(&shells, &mask, 0.9, &cfg)), None);
        assert_eq!(kind(refuse_brain(&shells, &mask, 0.2, &cfg)), Some("no_brain"));
    }
}
