//! What is no MRI scan of a brain, told by what was measured on it.
//!
//! | refused as | before | what it is | measured |
//! |---|---|---|---|
//! | `not_mri` | anything else | CT in Hounsfield units | air near -1000 in a large share, the rest around 0 |
//! | `no_brain` | skull stripping | noise, an empty bore | neighbouring voxels have nothing to do with each other |
//! | `no_brain` | normalizing | a uniform phantom | what was taken for the brain is of one intensity |
//! | `no_brain` | normalizing | a phantom with inserts, another body part | no likeness with the template |

use serde::{Deserialize, Serialize};

use super::measure::block_means;
use crate::error::{Error, Result};
use crate::preprocess::morphology::erode;
use crate::preprocess::percentile;
use crate::volume::Volume;

/// When a scan is refused. Measured ranges are those of the training split's heads and bare brains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefuseConfig {
    /// Share of voxels between -1100 and -900 from which a scan may be CT.
    pub ct_air_min: f64,
    /// Lowest correlation of neighbouring voxels on the working grid.
    pub coherence_min: f64,
    /// Lowest spread of intensities in the brain: 5th to 95th percentile of 4 mm blocks
    /// inside its rim over the median.
    pub spread_min: f32,
    /// Lowest correlation with the template.
    pub ncc_min: f32,
}

impl Default for RefuseConfig {
    fn default() -> Self {
        // Measured: coherence 0.91 to 0.99, noise 0.0; spread 0.38 (FLAIR) to 1.0, a uniform ball 0.03; likeness 0.51 (FLAIR) to
        // 0.68, phantoms at most 0.14.
        Self { ct_air_min: 0.1, coherence_min: 0.6, spread_min: 0.15, ncc_min: 0.3 }
    }
}

/// Refuses, before the brain is sought, CT and volumes that hold only noise. `working` is `native` on the working grid.
///
/// # Errors
/// [`Error::Input`] of kind `not_mri` or `no_brain`.
pub fn refuse_scan(native: &Volume<f32>, working: &Volume<f32>, cfg: &RefuseConfig) -> Result<()> {
    // A few hundred thousand voxels tell shares to a tenth of a percent.
    let stride = (native.data.len() / 200_000).max(1) | 1;
    let looked_at = native.data.iter().copied().step_by(stride);
    let air = looked_at.clone().filter(|v| (-1100.0..=-900.0).contains(v)).count() as f64;
    if air > cfg.ct_air_min * looked_at.len() as f64 {
        let rest: Vec<f32> = looked_at.filter(|&v| v > -900.0).collect();
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

/// Refuses, once it is found and registered, a brain that is none. `corrected` is the scan on the working grid divided
/// by its bias field, `brain` the mask on the same grid, `ncc` its correlation with the template.
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

/// Correlation of voxels with their neighbours along x, in every fourth row, of values up to the 99th percentile.
fn coherence(volume: &Volume<f32>) -> f64 {
    let nx = volume.grid.shape[0];
    let some: Vec<f32> = volume.data.iter().copied().step_by(17).collect();
    // A single bright voxel must not decide.
    let top = f64::from(percentile(&some, 0.99));
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

/// 5th to 95th percentile over the median of 4 mm blocks in the brain; 0 for none.
fn spread(image: &Volume<f32>, brain: &Volume<u8>) -> f32 {
    // The rim is a mixture with what lies outside.
    let means = block_means(image, &erode(brain, 2));
    let [low, middle, high] = [0.05, 0.5, 0.95].map(|q| percentile(&means, q));
    if middle > 0.0 { (high - low) / middle } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    /// `voxel` of world mm and index on a 2 mm grid of 200 mm.
    fn volume(voxel: impl Fn([f64; 3], usize) -> f32) -> Volume {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -99.0], [0.0, 2.0, 0.0, -99.0], [0.0, 0.0, 2.0, -99.0]]);
        let grid = Grid { shape: [100; 3], affine };
        let at = |i: usize| affine.apply([i % 100, i / 100 % 100, i / 10_000].map(|c| c as f64));
        Volume::new(grid, (0..grid.len()).map(|i| voxel(at(i), i)).collect())
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
        let mask = Volume::new(ball.grid, ball.data.iter().map(|v| u8::from(*v > 0.0)).collect());
        assert_eq!(kind(refuse_scan(&ball, &ball, &cfg)), None);
        assert_eq!(kind(refuse_brain(&ball, &mask, 0.9, &cfg)), Some("no_brain"));
        let shells = volume(|p, _| if radius(p) < 50.0 { 500.0 } else { 300.0 });
        assert_eq!(kind(refuse_brain(&shells, &mask, 0.9, &cfg)), None);
        assert_eq!(kind(refuse_brain(&shells, &mask, 0.2, &cfg)), Some("no_brain"));
    }
}
