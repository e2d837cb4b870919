//! Training of the detector: tell tokens of synthetic anomalies from healthy ones.
//!
//! Most slices are corrupted in image space, with their neighbours, and tokenized; in some, blocks of tokens are replaced
//! by random ones or by those of another slice of the same batch.

use rand::Rng;
use rayon::prelude::*;
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use super::anomaly::{Slab, corrupt};
use super::data::Slice;
use super::{Context, data, draw_rng, updates};
use crate::error::Result;
use crate::model::{CONTEXT, DOWNSAMPLING, Detector, Tokenizer};

/// Share of slices corrupted in image space, and of slices with swapped token blocks.
const IMAGE_SHARE: f64 = 0.7;
const TOKEN_SHARE: f64 = 0.25;

/// The slice that is judged, among [`CONTEXT`].
const MIDDLE: usize = CONTEXT.len() / 2;

/// A batch: codes `[B, 3, h, w]`, heights `[B]`, targets in 0..1 `[B, h, w]`, brain fraction `[B, h, w]`.
struct Batch {
    codes: Tensor,
    z_mm: Tensor,
    target: Tensor,
    brain: Tensor,
}

/// Trains, then measures on held-out slices with anomalies of their own.
pub(super) fn train(
    context: &Context<'_>,
    store: &VarStore,
    tokenizer: &Tokenizer,
    detector: &Detector,
) -> Result<Vec<(&'static str, f64)>> {
    let stage = &context.pipeline.train.detector;
    updates(context, "detector", store, (stage.steps, stage.learning_rate), |step| {
        let batch = batch(context, tokenizer, &context.train, "detector", step, stage.batch);
        let logits = detector.forward(&batch.codes, &batch.z_mm, context.kind);
        let loss =
            logits.binary_cross_entropy_with_logits(&batch.target, None::<Tensor>, None::<Tensor>, Reduction::None);
        let weight = batch.brain.gt(0.1).to_kind(Kind::Float);
        let loss = (loss * &weight).sum(Kind::Float) / weight.sum(Kind::Float);
        (loss.shallow_clone(), vec![("bce", loss)])
    })?;
    Ok(measure(context, tokenizer, detector))
}

fn batch(
    context: &Context<'_>,
    tokenizer: &Tokenizer,
    from: &data::Slices,
    stage: &str,
    step: i64,
    size: usize,
) -> Batch {
    let seed = context.pipeline.train.seed;
    let width = from.shape[0];
    let (slabs, truth): (Vec<Vec<Slice>>, Vec<Vec<f32>>) = (0..size)
        .into_par_iter()
        .map(|item| {
            let mut rng = draw_rng(seed, stage, step, item);
            let mut slices = from.draw(&CONTEXT, &mut rng);
            let foreign = from.draw_near(slices[MIDDLE].z_mm, &CONTEXT, &mut rng);
            let truth = if rng.random_bool(IMAGE_SHARE) {
                corrupt(&mut Slab { slices: &mut slices, offsets: &CONTEXT, width }, &foreign, &mut rng)
            } else {
                vec![0.; slices[MIDDLE].pixels.len()]
            };
            (slices, truth)
        })
        .unzip();
    let middle: Vec<Slice> = slabs.iter().map(|slices| slices[MIDDLE].clone()).collect();
    let device = context.device;
    let (image, z_mm) = data::stack(&slabs.concat(), width, device);
    let z_mm = z_mm.view([size as i64, -1]).select(1, MIDDLE as i64);
    let codes = tch::no_grad(|| tokenizer.encode(&image.to_kind(context.kind)));
    let codes = codes.unflatten(0, [size as i64, CONTEXT.len() as i64]);
    let hard: Vec<Vec<f32>> = truth.iter().map(|t| t.iter().map(|&v| f32::from(u8::from(v > 0.5))).collect()).collect();
    let target = data::cell_fraction(&hard, width, DOWNSAMPLING, device);
    let brain = data::brain_fraction(&middle, width, DOWNSAMPLING, device);
    let (codes, target) = swap_blocks(context, &codes, &target, &brain, stage, step, tokenizer.config().codes());
    Batch { codes, z_mm, target, brain }
}

/// Replaces blocks of tokens inside the brain, in all slices of a slab; where a code of the middle slice changed, the
/// target becomes 1.
fn swap_blocks(
    context: &Context<'_>,
    codes: &Tensor,
    target: &Tensor,
    brain: &Tensor,
    stage: &str,
    step: i64,
    vocabulary: i64,
) -> (Tensor, Tensor) {
    let Ok((batch, slices, rows, columns)) = codes.size4() else {
        return (codes.shallow_clone(), target.shallow_clone());
    };
    let mut rng = draw_rng(context.pipeline.train.seed, stage, step, 4095);
    let mut values: Vec<i64> = Vec::try_from(codes.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default();
    let inside: Vec<f32> = Vec::try_from(brain.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default();
    let original = values.clone();
    let mut changed = vec![0f32; inside.len()];
    for b in 0..batch {
        if !rng.random_bool(TOKEN_SHARE) {
            continue;
        }
        let other = rng.random_range(0..batch);
        for _ in 0..rng.random_range(1..4) {
            let (height, width) = (data::block_side(&mut rng), data::block_side(&mut rng));
            let (top, left) = (rng.random_range(0..rows), rng.random_range(0..columns));
            let foreign = rng.random_bool(0.5);
            for (y, x) in
                (top..(top + height).min(rows)).flat_map(|y| (left..(left + width).min(columns)).map(move |x| (y, x)))
            {
                let judged = ((b * rows + y) * columns + x) as usize;
                if inside[judged] < 0.5 {
                    continue;
                }
                for slice in 0..slices {
                    let at = |b: i64| (((b * slices + slice) * rows + y) * columns + x) as usize;
                    values[at(b)] = if foreign { original[at(other)] } else { rng.random_range(0..vocabulary) };
                    if slice == MIDDLE as i64 {
                        changed[judged] = f32::from(u8::from(values[at(b)] != original[at(b)]));
                    }
                }
            }
        }
    }
    let changed = Tensor::from_slice(&changed).view_as(target).to_device(context.device);
    (Tensor::from_slice(&values).view_as(codes).to_device(context.device), target.maximum(&changed))
}

/// Area under the ROC curve and average precision over the brain's tokens.
fn measure(context: &Context<'_>, tokenizer: &Tokenizer, detector: &Detector) -> Vec<(&'static str, f64)> {
    let mut scored: Vec<(f32, bool)> = Vec::new();
    tch::no_grad(|| {
        for step in 0..12 {
            let batch = batch(context, tokenizer, &context.val, "detector-val", step, 24);
            let p = detector.forward(&batch.codes, &batch.z_mm, Kind::Float).sigmoid();
            let flat =
                |t: &Tensor| Vec::<f32>::try_from(t.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default();
            let (p, target, brain) = (flat(&p), flat(&batch.target), flat(&batch.brain));
            scored.extend((0..p.len()).filter(|&i| brain[i] > 0.5).map(|i| (p[i], target[i] > 0.5)));
        }
    });
    let (auroc, precision) = ranking(&mut scored);
    eprintln!("detector: held-out synthetic tokens, AUROC {auroc:.3}, average precision {precision:.3}");
    vec![("detector_val_auroc", auroc), ("detector_val_average_precision", precision)]
}

/// AUROC (Mann-Whitney) and average precision of scores.
fn ranking(scored: &mut [(f32, bool)]) -> (f64, f64) {
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = scored.iter().filter(|s| s.1).count() as f64;
    let negatives = scored.len() as f64 - positives;
    let (mut hits, mut below, mut precision) = (0., 0., 0.);
    for (rank, (_, positive)) in scored.iter().enumerate() {
        if *positive {
            hits += 1.;
            precision += hits / (rank + 1) as f64;
        } else {
            below += hits;
        }
    }
    (below / (positives * negatives), precision / positives)
}

#[cfg(test)]
mod tests {
    use super::ranking;

    #[test]
    fn ranking_figures_agree_with_scikit_learn() {
        // sklearn.metrics.roc_auc_score / average_precision_score of the same six scores.
        let mut scored = vec![(0.9, true), (0.8, false), (0.7, true), (0.4, false), (0.3, true), (0.1, false)];
        let (auroc, precision) = ranking(&mut scored);
        assert!((auroc - 2. / 3.).abs() < 1e-9, "{auroc}");
        assert!((precision - (1. + 2. / 3. + 3. / 5.) / 3.).abs() < 1e-9, "{precision}");
    }
}
