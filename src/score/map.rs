//! From inferences to a score per voxel, a mask, findings and figures per scan.

use rayon::prelude::*;

use super::cells::{mean_in_brain, token_brain_fraction};
use super::config::{Evidence, Method, Pooling};
use super::findings::{Finding, components};
use super::finite::refuse_not_finite;
use super::infer::Inference;
use super::settings::Settings;
use crate::error::Result;
use crate::volume::Volume;

/// Residual (of an intensity in 0..1) from which the probability counts in full.
const FULL_RESIDUAL: f32 = 0.15;

/// Standard deviation of the Gaussian that smooths the residual under [`Evidence::Combined`], mm.
const RESIDUAL_SMOOTH_MM: f64 = 2.;

/// Added to the standard deviation of healthy scores at a place, so that noise does not count as a deviation where
/// healthy scans score close to 0.
const LEAST_SCORE_SD: f32 = 0.01;

/// Standard deviation of the Gaussian that smooths the intensity before it is compared with healthy scans, mm.
const INTENSITY_SMOOTH_MM: f64 = 3.;

/// The sum of both deviations that gives a score of one half.
const HALF_DEVIATION: f32 = 40.;

/// Weight of a standard deviation of the intensity under [`Evidence::Intensity`], which brings its scores to the range
/// of the others.
const INTENSITY_ALONE: f32 = 8.;

/// The volume whose mean score is a scan's score, ml.
const SCAN_SCORE_ML: f64 = 2.;

/// The results for one scan.
#[derive(Debug, Clone)]
pub struct Assessment {
    /// Score per voxel on the model's grid, 0..1, 0 outside the brain.
    pub score: Volume<f32>,
    /// 1 where the score is above the threshold and the component is large enough.
    pub mask: Volume<u8>,
    /// Connected components of the mask, largest first.
    pub findings: Vec<Finding>,
    /// Mean |image - restoration| of each token's brain pixels, like [`Inference::codes`].
    pub token_residual: Vec<f32>,
    /// Share of each token's cell that is brain, like [`Inference::codes`].
    pub token_brain: Vec<f32>,
    /// Mean score of the highest-scoring 2 ml of the brain.
    pub anomaly_score: f32,
    /// Volume of the mask in millilitres.
    pub anomaly_volume_ml: f64,
}

/// Turns an inference into maps and findings. `image` and `brain` are the scan that was inferred from.
///
/// # Errors
/// [`Error::NotFinite`](crate::Error::NotFinite) as [`score_map`].
pub fn assess(
    inference: &Inference,
    image: &Volume<f32>,
    brain: &Volume<u8>,
    settings: &Settings,
) -> Result<Assessment> {
    let score = score_map(inference, image, brain, settings)?;
    let above: Vec<u8> = score.data.iter().map(|&s| u8::from(s > settings.mask_threshold)).collect();
    let above = Volume { grid: score.grid, data: above };
    let (mask, findings) = components(&above, &score, settings.config.min_finding_ml);
    let voxels = mask.data.iter().filter(|&&v| v > 0).count();
    Ok(Assessment {
        anomaly_score: scan_score(&score),
        anomaly_volume_ml: voxels as f64 * score.grid.voxel_ml(),
        token_residual: token_residual(inference, brain),
        token_brain: token_brain_fraction(brain, &inference.slices, inference.tokens),
        score,
        mask,
        findings,
    })
}

/// Score per voxel, 0..1; 0 outside the brain.
///
/// | method | evidence | score |
/// |---|---|---|
/// | [`Method::Mim`] | [`Evidence::Combined`] | smoothed probability, halved where the restoration equals the image |
/// | | [`Evidence::Detector`] | smoothed probability |
/// | | [`Evidence::Residual`] | pooled residual |
/// | [`Method::Ar`] | | pooled residual |
/// | [`Method::Threshold`] | | pooled intensity score |
///
/// With a healthy map ([`Settings::healthy`]) the score becomes d / (d + 40). Here d is a sum of two terms: the
/// deviation of the score above from healthy scans at the same place, if positive, and `intensity_weight` times the
/// absolute deviation of the intensity from the one that the map predicts; both are in standard deviations.
/// [`Evidence::Intensity`] uses the second term alone.
///
/// # Errors
/// [`Error::NotFinite`](crate::Error::NotFinite) where a voxel's score is not a finite number.
pub fn score_map(
    inference: &Inference,
    image: &Volume<f32>,
    brain: &Volume<u8>,
    settings: &Settings,
) -> Result<Volume<f32>> {
    let data = scores(inference, image, brain, settings);
    refuse_not_finite("score of a voxel", &data)?;
    Ok(Volume { grid: image.grid, data })
}

/// The scores of [`score_map`].
fn scores(inference: &Inference, image: &Volume<f32>, brain: &Volume<u8>, settings: &Settings) -> Vec<f32> {
    let config = &settings.config;
    let shape @ [nx, ny, nz] = image.grid.shape;
    let plane = nx * ny;
    // The slices of the inference at their places in a volume; 0 elsewhere.
    let volume = |pixels: &[f32]| {
        let mut volume = vec![0f32; plane * nz];
        for (pixels, &z) in pixels.chunks(plane).zip(&inference.slices) {
            volume[z * plane..(z + 1) * plane].copy_from_slice(pixels);
        }
        volume
    };
    let (probability, residual) = (volume(&inference.p_pixel), volume(&inference.residual));
    let spacing = image.grid.spacing();
    let sigma = spacing.map(|mm| (config.smooth_mm / mm) as f32);
    let fine = spacing.map(|mm| (RESIDUAL_SMOOTH_MM / mm) as f32);
    let residuals = || match config.pooling.unwrap_or(config.method.pooling()) {
        Pooling::Gaussian => smooth(&residual, shape, sigma),
        Pooling::MinMean => {
            let least = pooled(&residual, shape, [3; 3], f32::INFINITY, f32::min);
            let sum = pooled(&least, shape, [7, 7, 3], 0., |a, b| a + b);
            sum.iter().map(|s| s / 147.).collect()
        }
    };
    let score: Vec<f32> = match (config.method, config.evidence) {
        (Method::Mim, Evidence::Detector) => smooth(&probability, shape, sigma),
        (Method::Mim, Evidence::Combined) => {
            let (probability, residual) =
                rayon::join(|| smooth(&probability, shape, sigma), || smooth(&residual, shape, fine));
            let agrees = residual.iter().map(|r| 0.5 + 0.5 * (r / FULL_RESIDUAL).min(1.));
            probability.iter().zip(agrees).map(|(p, share)| p * share).collect()
        }
        (Method::Mim | Method::Ar | Method::Threshold, _) => residuals(),
    };
    let Some(healthy) = &settings.healthy else {
        let inside = score.iter().zip(&brain.data);
        return inside.map(|(s, &b)| if b == 0 { 0. } else { s.clamp(0., 1.) }).collect();
    };
    let intensity = healthy.intensity.deviations(&smoothed_intensity(image), brain);
    let weight = config.intensity_weight as f32;
    let deviation = |i: usize| {
        let above_healthy = healthy.score.deviation(score[i], LEAST_SCORE_SD, i, shape).max(0.);
        match config.evidence {
            Evidence::Intensity => INTENSITY_ALONE * intensity[i].abs(),
            _ => above_healthy + weight * intensity[i].abs(),
        }
    };
    let relative = |i: usize| {
        let deviation = if brain.data[i] == 0 { 0. } else { deviation(i) };
        deviation / (deviation + HALF_DEVIATION)
    };
    (0..score.len()).into_par_iter().map(relative).collect()
}

/// The intensity, smoothed as the healthy map needs it.
pub fn smoothed_intensity(image: &Volume<f32>) -> Volume<f32> {
    let sigma = image.grid.spacing().map(|mm| (INTENSITY_SMOOTH_MM / mm) as f32);
    Volume { grid: image.grid, data: smooth(&image.data, image.grid.shape, sigma) }
}

/// Folds each voxel's neighbours in a box of `size` voxels with `join`, along one axis after the other. Voxels outside
/// the grid have the value `outside`.
fn pooled(data: &[f32], shape: [usize; 3], size: [usize; 3], outside: f32, join: fn(f32, f32) -> f32) -> Vec<f32> {
    let strides = [1, shape[0], shape[0] * shape[1]];
    (0..3).fold(data.to_vec(), |now, axis| {
        let reach = size[axis] / 2;
        (0..now.len())
            .map(|i| {
                let place = i / strides[axis] % shape[axis];
                let from = i - place.min(reach) * strides[axis];
                let to = i + (shape[axis] - 1 - place).min(reach) * strides[axis];
                (from..=to).step_by(strides[axis]).fold(outside, |sum, j| join(sum, now[j]))
            })
            .collect()
    })
}

/// Separable Gaussian, sigma in voxels along x, y, z; zero outside the grid.
fn smooth(data: &[f32], shape: [usize; 3], sigma: [f32; 3]) -> Vec<f32> {
    let strides = [1, shape[0], shape[0] * shape[1]];
    let mut now = data.to_vec();
    for axis in 0..3 {
        if sigma[axis] < 0.1 {
            continue;
        }
        let radius = (2.5 * sigma[axis]).ceil() as usize;
        let kernel: Vec<f32> =
            (0..=2 * radius).map(|k| (-((k as f32 - radius as f32) / sigma[axis]).powi(2) / 2.).exp()).collect();
        let total: f32 = kernel.iter().sum();
        let (n, stride) = (shape[axis], strides[axis]);
        let mut out = vec![0f32; now.len()];
        // For each weight of the kernel, whole lines, planes or volumes are added at a shift.
        for (out, from) in out.chunks_mut(n * stride).zip(now.chunks(n * stride)) {
            for (k, weight) in kernel.iter().enumerate() {
                let (first, end) = (radius.saturating_sub(k), (n + radius).saturating_sub(k).min(n));
                if first >= end {
                    continue;
                }
                let (to, moved) = (first * stride..end * stride, (first + k - radius) * stride);
                out[to].iter_mut().zip(&from[moved..]).for_each(|(sum, value)| *sum += weight * value);
            }
            out.iter_mut().for_each(|sum| *sum /= total);
        }
        now = out;
    }
    now
}

/// Mean score of the highest-scoring 2 ml.
pub fn scan_score(score: &Volume<f32>) -> f32 {
    let top = ((SCAN_SCORE_ML / score.grid.voxel_ml()).round() as usize).clamp(1, score.data.len());
    let mut values = score.data.clone();
    let (_, _, _) = values.select_nth_unstable_by(top - 1, |a, b| b.total_cmp(a));
    values[..top].sort_by(f32::total_cmp);
    values[..top].iter().sum::<f32>() / top as f32
}

/// Mean |image - restoration| over each token's brain pixels.
fn token_residual(inference: &Inference, brain: &Volume<u8>) -> Vec<f32> {
    let plane = brain.grid.shape[0] * brain.grid.shape[1];
    let mut slot = vec![usize::MAX; brain.grid.shape[2]];
    inference.slices.iter().enumerate().for_each(|(s, &z)| slot[z] = s);
    let residual = |i: usize| inference.residual[slot[i / plane] * plane + i % plane];
    mean_in_brain(brain, &inference.slices, inference.tokens, residual)
}

#[cfg(test)]
mod tests {
    use super::super::config::ScoreConfig;
    use super::*;
    use crate::volume::{Affine, Grid};

    fn grid(shape: [usize; 3]) -> Grid {
        Grid { shape, affine: Affine([[2., 0., 0., 0.], [0., 2., 0., 0.], [0., 0., 2., 0.]]) }
    }

    #[test]
    fn an_anomalous_token_scores_in_its_own_cell_and_not_outside_the_brain() {
        let grid = grid([16, 16, 3]);
        let image = Volume { grid, data: vec![0.5; 768] };
        let mut brain = Volume { grid, data: vec![1u8; 768] };
        brain.data[..256].fill(0);
        let mut p_pixel = vec![0.; 512];
        (4..8).for_each(|y| p_pixel[y * 16 + 4..y * 16 + 8].fill(1.)); // slice 1, row 1, column 1
        let inference = Inference {
            slices: vec![1, 2],
            tokens: [4, 4],
            codes: vec![0; 32],
            p_anomalous: vec![0.; 32],
            p_pixel,
            nll: vec![f32::NAN; 32],
            n_inpainted: 1,
            restored: vec![0.2; 512],
            residual: vec![0.3; 512],
        };
        let settings = Settings {
            config: ScoreConfig { smooth_mm: 0., ..ScoreConfig::default() },
            token_threshold: 0.5,
            mask_threshold: 0.5,
            ar_limit_nats: 5.,
            healthy: None,
        };
        let score = score_map(&inference, &image, &brain, &settings).unwrap();
        let peak = score.data.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        let (x, y, z) = (peak % 16, peak / 16 % 16, peak / 256);
        assert!((4..8).contains(&x) && (4..8).contains(&y) && z == 1, "peak at {x} {y} {z}");
        assert!(score.data[..256].iter().all(|&s| s == 0.));
        // The residual is 0.3 everywhere, twice FULL_RESIDUAL.
        let residual = token_residual(&inference, &brain);
        assert!(residual.iter().all(|r| (r - 0.3).abs() < 1e-6));
    }

    #[test]
    fn pooling_is_a_box_and_ends_at_the_grid() {
        let shape = [5, 4, 3];
        let mut data = vec![1f32; 60];
        data[2 + 5 * (1 + 4)] = 0.25;
        let least = pooled(&data, shape, [3; 3], f32::INFINITY, f32::min);
        assert_eq!(least.iter().filter(|&&v| v == 0.25).count(), 27);
        let sum = pooled(&data, shape, [7, 7, 3], 0., |a, b| a + b);
        // The corner sees 4 x 4 x 2 voxels, one of them a quarter.
        assert_eq!((sum[0], sum[2 + 5 * (1 + 4)]), (31.25, 59.25));
    }

    #[test]
    fn smoothing_keeps_the_sum_and_matches_the_gaussian() {
        let shape = [21, 21, 21];
        let mut data = vec![0f32; 9261];
        data[10 + 21 * (10 + 21 * 10)] = 1.;
        let out = smooth(&data, shape, [1.; 3]);
        assert!((out.iter().sum::<f32>() - 1.).abs() < 1e-4);
        // exp(-1/2) between neighbours of a unit Gaussian.
        let ratio = out[11 + 21 * (10 + 21 * 10)] / out[10 + 21 * (10 + 21 * 10)];
        assert!((ratio - (-0.5f32).exp()).abs() < 1e-4, "{ratio}");
    }

    #[test]
    fn the_scan_score_is_the_mean_of_the_top_two_millilitres() {
        let grid = grid([10, 10, 10]);
        // 8 mm3 voxels: 2 ml are 250 voxels.
        let data: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.).collect();
        let score = scan_score(&Volume { grid, data });
        assert!((score - (0.75 + 0.999) / 2.).abs() < 1e-5, "{score}");
    }
}
