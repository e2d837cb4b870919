//! Fits the weights of the regression that places the brain's border: [`fit`] gives the text of `assets/brain_border.toml`.
//!
//! Takes whole heads with their brain masks. Each head is used unchanged and in a few copies that simulate another scanner:
//! rotated, with another voxel size and contrast, a bias field and noise. Each copy is preprocessed up to registration, so
//! that the regression is fitted on masks and maps like those that it is applied to. The fit is a ridge-penalised logistic
//! regression by iteratively reweighted least squares (Hastie, Tibshirani, Friedman, The Elements of Statistical Learning,
//! 4.4.1) in f64. The same heads give the same text. Heads that preprocessing refuses or takes for bare brains are skipped.
//! A list without a usable head is refused.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::preprocess::border::{BorderWeights, FEATURES, Shell, trimmed};
use crate::preprocess::linear::solve_damped;
use crate::preprocess::{self, PreprocessConfig};
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Grid, Volume};

/// Number of copies of each head, in addition to the head itself.
const COPIES: usize = 2;

/// Number of voxels used from each copy.
const VOXELS: usize = 2000;

/// Penalty on the squares of the standardised weights; one voxel weighs 1.
const RIDGE: f64 = 20.0;

/// Number of reweightings; the weights converge after about ten.
const ROUNDS: usize = 15;

/// The features and a constant.
const TERMS: usize = FEATURES + 1;

/// Features of one voxel, and whether it is brain.
type Example = ([f32; FEATURES], bool);

/// The text of the asset, fitted on heads with their brain masks (above 0 is brain). A mask may have any grid in the head's
/// world. `source` is written into the asset: where the heads come from, and their licence.
///
/// # Errors
/// [`Error::Config`] where no head is usable, or the heads do not determine the weights.
pub fn fit(cases: &[(Volume, Volume)], cfg: &PreprocessConfig, source: &str) -> Result<String> {
    let images: Vec<Vec<Example>> = (0..cases.len() * (1 + COPIES))
        .into_par_iter()
        .map(|index| {
            let (head, reference) = &cases[index / (1 + COPIES)];
            if index % (1 + COPIES) == 0 {
                return examples(head, reference, cfg);
            }
            let (head, reference) = copy(head, reference, &mut ChaCha8Rng::seed_from_u64(index as u64));
            examples(&head, &reference, cfg)
        })
        .collect();
    let used = images.iter().filter(|image| !image.is_empty()).count();
    let examples = images.concat();
    if examples.is_empty() {
        return Err(Error::Config(
            "no head is usable to fit the brain's border: give whole T1-weighted heads with their brain masks".into(),
        ));
    }
    let weights = regression(&examples)?;
    let correct = examples.iter().filter(|(seen, brain)| (weights.log_odds(seen) > 0.0) == *brain).count();
    let text = toml::to_string(&weights).map_err(|e| Error::Bug(format!("the weights are not TOML: {e}")))?;
    Ok(format!(
        "# The regression of src/preprocess/border.rs, fitted by src/eval/preprocess/border.rs.\n# Fitted on: {source}\n\
         # {} heads, {used} images of them, {} voxels, {:.1} % of them classified correctly.\n{text}",
        cases.len(),
        examples.len(),
        100.0 * correct as f64 / examples.len() as f64
    ))
}

/// Evenly spaced voxels around the border of the mask that preprocessing starts from.
fn examples(head: &Volume, reference: &Volume, cfg: &PreprocessConfig) -> Vec<Example> {
    let Ok(steps) = preprocess::steps(head, cfg) else { return Vec::new() };
    if steps.brain.stripped_input {
        return Vec::new();
    }
    let to_mni = &steps.registration.to_mni;
    let mask = trimmed(&steps.first_mask, to_mni, &cfg.skull_strip);
    let Some(shell) = Shell::new(&mask, &steps.working, to_mni) else { return Vec::new() };
    let brain = Volume::new(reference.grid, reference.data.iter().map(|&v| u8::from(v > 0.0)).collect());
    let brain = preprocess::mask_to(&brain, shell.grid(), &Affine::identity());
    let seen: Vec<Example> =
        brain.data.iter().enumerate().filter_map(|(i, &b)| Some((shell.features(i)?, b != 0))).collect();
    let stride = (seen.len() / VOXELS).max(1);
    seen.into_iter().step_by(stride).collect()
}

/// A copy of the head as from another scanner, and its mask: rotated up to 30 degrees, with another voxel size and
/// contrast, a bias field and noise.
fn copy(head: &Volume, reference: &Volume, rng: &mut impl Rng) -> (Volume, Volume) {
    let native = head.grid.to_ras();
    let middle = native.affine.apply(native.shape.map(|n| (n as f64 - 1.0) / 2.0));
    let spacing = rng.random_range(0.9..2.0);
    let shape = std::array::from_fn(|a| (native.shape[a] as f64 * native.spacing()[a] / spacing).ceil() as usize);
    let scale = [[spacing, 0.0, 0.0, 0.0], [0.0, spacing, 0.0, 0.0], [0.0, 0.0, spacing, 0.0]];
    let centred = Affine::translation(shape.map(|n| (1.0 - n as f64) / 2.0));
    let affine = centred.then(&Affine::from_rows(scale)).then(&Affine::translation(middle));
    let turn = Affine::rotation(std::array::from_fn(|_| rng.random_range(-0.3..0.3)));
    let turn = Affine::translation(middle.map(|c| -c)).then(&turn).then(&Affine::translation(middle));
    let grid = Grid { shape, affine };
    let mut image = trilinear(head, &grid, &turn);
    acquire(&mut image, middle, rng);
    (image, trilinear(reference, &grid, &turn))
}

/// Adds another contrast (a power of the intensity), a bias field that rises along one direction, and noise.
fn acquire(image: &mut Volume, middle: [f64; 3], rng: &mut impl Rng) {
    let top = image.data.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let power = rng.random_range(0.75f32..1.35);
    let noise = rng.random_range(0.0f32..0.015);
    let slope: [f64; 3] = std::array::from_fn(|_| rng.random_range(-0.001..0.001));
    let [nx, ny, _] = image.grid.shape;
    for (i, value) in image.data.iter_mut().enumerate() {
        let p = image.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
        let gain = (0..3).map(|a| slope[a] * (p[a] - middle[a])).sum::<f64>().exp() as f32;
        // A sum of uniform numbers with variance 1; magnitudes are never negative.
        let grain: f32 = (0..4).map(|_| rng.random_range(-0.866f32..0.866)).sum();
        *value = top * ((*value / top).max(0.0).powf(power) * gain + noise * grain).abs();
    }
}

/// The weights that maximise the penalised likelihood of the examples; [`Error::Config`] where they are not determined.
fn regression(examples: &[Example]) -> Result<BorderWeights> {
    let n = examples.len() as f64;
    let moment = |of: &dyn Fn(usize, f64) -> f64| -> [f64; FEATURES] {
        std::array::from_fn(|k| examples.iter().map(|(seen, _)| of(k, f64::from(seen[k]))).sum::<f64>() / n)
    };
    let mean = moment(&|_, v| v);
    let deviation = moment(&|k, v| (v - mean[k]).powi(2)).map(|v| v.sqrt().max(1e-6));
    let mut weights = [0.0; TERMS];
    for _ in 0..ROUNDS {
        let (mut normal, mut right) = ([[0.0; TERMS]; TERMS], [0.0; TERMS]);
        for (seen, brain) in examples {
            let terms: [f64; TERMS] = std::array::from_fn(|k| match k {
                FEATURES => 1.0,
                k => (f64::from(seen[k]) - mean[k]) / deviation[k],
            });
            let odds: f64 = terms.iter().zip(&weights).map(|(t, w)| t * w).sum();
            let share = 1.0 / (1.0 + (-odds).exp());
            // A minimum curvature keeps the step short where every voxel is classified with certainty.
            let curvature = share * (1.0 - share) + 1e-4;
            let miss = f64::from(u8::from(*brain)) - share;
            for (i, row) in normal.iter_mut().enumerate() {
                let weighted = curvature * terms[i];
                row.iter_mut().zip(&terms).for_each(|(v, t)| *v += weighted * t);
                right[i] += miss * terms[i];
            }
        }
        for k in 0..TERMS {
            normal[k][k] += RIDGE;
            right[k] -= if k < FEATURES { RIDGE * weights[k] } else { 0.0 };
        }
        let steps = solve_damped(normal, right, 0.0).ok_or_else(|| {
            Error::Config(
                "the heads do not determine the brain's border: give more heads, with masks that fit them".into(),
            )
        })?;
        weights.iter_mut().zip(steps).for_each(|(w, step)| *w += step);
    }
    let raw: [f64; FEATURES] = std::array::from_fn(|k| weights[k] / deviation[k]);
    let constant = weights[FEATURES] - raw.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>();
    // Four decimals change the odds by less than their error, and keep the asset readable.
    let rounded = |w: f64| ((w * 1e4).round() / 1e4) as f32;
    Ok(BorderWeights { constant: rounded(constant), features: raw.map(rounded).to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_regression_finds_the_weights_that_examples_were_drawn_from() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let truth: [f32; FEATURES] = std::array::from_fn(|k| if k < 4 { 1.5 - k as f32 } else { 0.0 });
        let mut draw = || {
            let seen: [f32; FEATURES] = std::array::from_fn(|_| rng.random_range(-2.0f32..2.0));
            let odds = 0.5 + seen.iter().zip(&truth).map(|(v, w)| v * w).sum::<f32>();
            (seen, rng.random_range(0.0f32..1.0) < 1.0 / (1.0 + (-odds).exp()))
        };
        let examples: Vec<Example> = (0..8000).map(|_| draw()).collect();
        let found = regression(&examples).expect("weights");
        // The standard error of a weight is about 0.03 here.
        assert!((found.constant - 0.5).abs() < 0.15, "constant {}", found.constant);
        for (k, (found, truth)) in found.features.iter().zip(truth).enumerate() {
            assert!((found - truth).abs() < 0.15, "weight {k}: {found}, drawn from {truth}");
        }
    }

    #[test]
    fn a_copy_of_a_head_takes_its_mask_along() {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -60.0], [0.0, 2.0, 0.0, -60.0], [0.0, 0.0, 2.0, -60.0]]);
        let grid = Grid { shape: [60; 3], affine };
        let inside = |i: usize| [i % 60, i / 60 % 60, i / 3600].iter().all(|c| (20..35).contains(c));
        let mask = Volume::new(grid, (0..grid.len()).map(|i| f32::from(u8::from(inside(i)))).collect());
        let head = Volume::new(grid, mask.data.iter().map(|v| 100.0 * v).collect());
        let (image, reference) = copy(&head, &mask, &mut ChaCha8Rng::seed_from_u64(5));
        assert!(image.grid == reference.grid && image.grid != grid);
        let ml = reference.data.iter().sum::<f32>() * reference.grid.voxel_ml() as f32;
        assert!((ml / 27.0 - 1.0).abs() < 0.03, "{ml} ml of 27");
        assert!(
            image.data.iter().zip(&reference.data).all(|(&v, &m)| (v > 50.0) == (m > 0.5) || (0.2..0.8).contains(&m))
        );
        assert!(fit(&[(head, mask)], &PreprocessConfig::default(), "a cube").is_err());
    }
}
