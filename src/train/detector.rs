//! Training of the detector: tell tokens of synthetic anomalies from healthy ones.
//!
//! Most slices are corrupted in image space, with their neighbours, and tokenized; in some, blocks of tokens are replaced
//! by random ones, by those of another slice of the same batch, or by what the inpainter draws.

use rand::Rng;
use rayon::prelude::*;
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use super::anomaly::{Slab, corrupt};
use super::data::Slice;
use super::{Context, data, draw_rng, updates};
use crate::error::Result;
use crate::model::{CONTEXT, Decoding, Detector, Inpainter, Masked, Tokenizer};

/// The slice that is judged, among [`CONTEXT`].
const MIDDLE: usize = CONTEXT.len() / 2;

/// Slices with anomalies, and how far each pixel of the middle ones is anomalous.
type Drawn = Vec<(Vec<Slice>, Vec<f32>)>;

/// A batch: codes `[B, 3, h, w]`, heights `[B]`, tokens that hold brain `[B, h, w]`; pixels' targets 0 or 1 and brain, both
/// `[B, H, W]`.
struct Batch {
    codes: Tensor,
    z_mm: Tensor,
    inside: Tensor,
    target: Tensor,
    brain: Tensor,
}

/// Trains, then measures on held-out slices with anomalies of their own.
pub(super) fn train(
    context: &Context<'_>,
    store: &VarStore,
    models: (&Tokenizer, &Inpainter),
    detector: &Detector,
) -> Result<Vec<(&'static str, f64)>> {
    let stage = &context.pipeline.train.detector;
    let draw = |step| draw(context, &context.train, "detector", step, stage.batch);
    updates(context, "detector", store, (stage.steps, stage.learning_rate), draw, |step, drawn| {
        let batch = batch(context, models, &drawn, "detector", step);
        let logits = detector.forward(&batch.codes, &batch.inside, &batch.z_mm, context.kind);
        let loss =
            logits.binary_cross_entropy_with_logits(&batch.target, None::<Tensor>, None::<Tensor>, Reduction::None);
        let loss = (loss * &batch.brain).sum(Kind::Float) / batch.brain.sum(Kind::Float);
        (loss.shallow_clone(), vec![("bce", loss)])
    })?;
    Ok(measure(context, models, detector))
}

fn draw(context: &Context<'_>, from: &data::Slices, stage: &str, step: i64, size: usize) -> Drawn {
    let (config, width) = (&context.pipeline.train, from.shape[0]);
    let one = |item| {
        let mut rng = draw_rng(config.seed, stage, step, item);
        let mut slices = from.draw(&CONTEXT, &mut rng);
        let foreign = from.draw_near(slices[MIDDLE].z_mm, &CONTEXT, &mut rng);
        let truth = if rng.random_bool(config.anomalies.image_share) {
            corrupt(&mut Slab { slices: &mut slices, offsets: &CONTEXT, width }, &foreign, &context.outlines, &mut rng)
        } else {
            vec![0.; slices[MIDDLE].pixels.len()]
        };
        (slices, truth)
    };
    (0..size).into_par_iter().map(one).collect()
}

fn batch(
    context: &Context<'_>,
    (tokenizer, inpainter): (&Tokenizer, &Inpainter),
    drawn: &Drawn,
    stage: &str,
    step: i64,
) -> Batch {
    let (device, width, cell) = (context.device, context.train.shape[0], tokenizer.config().cell());
    let size = drawn.len() as i64;
    let slices: Vec<Slice> = drawn.iter().flat_map(|(slices, _)| slices.iter().cloned()).collect();
    let middle: Vec<&Slice> = drawn.iter().map(|(slices, _)| &slices[MIDDLE]).collect();
    let (image, heights) = data::stack(&slices, width, device);
    let codes = tch::no_grad(|| tokenizer.encode(&image.to_kind(context.kind), &heights));
    let codes = codes.unflatten(0, [size, CONTEXT.len() as i64]);
    let z_mm = heights.view([size, -1]).select(1, MIDDLE as i64);
    let plane = |values: Vec<f32>| Tensor::from_slice(&values).view([size, -1, width as i64]).to_device(device);
    let target =
        plane(drawn.iter().flat_map(|(_, truth)| truth.iter().map(|&v| f32::from(u8::from(v > 0.5)))).collect());
    let brain = plane(middle.iter().flat_map(|s| s.brain.iter().map(|&b| f32::from(u8::from(b)))).collect());
    let fraction = data::brain_fraction(middle, width, cell, device);
    let vocabulary = tokenizer.config().codes();
    let (codes, swapped) = swap_blocks(context, inpainter, (&codes, &heights, &fraction), stage, step, vocabulary);
    let swapped = swapped.repeat_interleave_self_int(cell, 1, None).repeat_interleave_self_int(cell, 2, None);
    Batch { codes, z_mm, inside: fraction.gt(0.), target: target.maximum(&swapped), brain }
}

/// What a block of tokens is replaced by.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// Random codes.
    Random,
    /// Another slice's, of the same place.
    Foreign,
    /// What the inpainter draws there: hard to tell from healthy, as in Token-Critic (arXiv 2209.04439).
    Inpainter,
}

/// Replaces blocks of tokens inside the brain, in all slices of a slab. Also gives 1 for tokens of the middle slice whose
/// code changed, 0 for the others, `[B, h, w]`.
fn swap_blocks(
    context: &Context<'_>,
    inpainter: &Inpainter,
    (codes, heights, brain): (&Tensor, &Tensor, &Tensor),
    stage: &str,
    step: i64,
    vocabulary: i64,
) -> (Tensor, Tensor) {
    let (batch, slices, rows, columns) = codes.size4().expect("codes are [B, slices, rows, columns]");
    let mut rng = draw_rng(context.pipeline.train.seed, stage, step, 4095);
    let mut values: Vec<i64> = Vec::try_from(codes.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default();
    let inside: Vec<f32> = Vec::try_from(brain.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default();
    let original = values.clone();
    let mut hidden = vec![false; values.len()];
    for b in 0..batch {
        if !rng.random_bool(context.pipeline.train.anomalies.token_share) {
            continue;
        }
        let other = rng.random_range(0..batch);
        for _ in 0..rng.random_range(1..4) {
            let (height, width) = (data::block_side(&mut rng), data::block_side(&mut rng));
            let (top, left) = (rng.random_range(0..rows), rng.random_range(0..columns));
            let source = [Source::Random, Source::Foreign, Source::Inpainter][rng.random_range(0..3)];
            for (y, x) in
                (top..(top + height).min(rows)).flat_map(|y| (left..(left + width).min(columns)).map(move |x| (y, x)))
            {
                if inside[((b * rows + y) * columns + x) as usize] < 0.5 {
                    continue;
                }
                for slice in 0..slices {
                    let at = |b: i64| (((b * slices + slice) * rows + y) * columns + x) as usize;
                    match source {
                        Source::Random => values[at(b)] = rng.random_range(0..vocabulary),
                        Source::Foreign => values[at(b)] = original[at(other)],
                        Source::Inpainter => hidden[at(b)] = true,
                    }
                }
            }
        }
    }
    let mut swapped = Tensor::from_slice(&values).view_as(codes).to_device(context.device);
    let n_hidden = hidden.iter().filter(|&&h| h).count();
    if n_hidden > 0 {
        let noise: Vec<f32> = (0..n_hidden * vocabulary as usize).map(|_| rng.random()).collect();
        let noise = Tensor::from_slice(&noise).view([-1, vocabulary]).to_device(context.device);
        let mask = Tensor::from_slice(&hidden).view_as(codes).to_device(context.device).flatten(0, 1);
        // All slices of a slab are taken to hold brain where the middle one does.
        let around = brain.gt(0.).unsqueeze(1).expand_as(codes).flatten(0, 1);
        let open = mask.flatten(1, 2).any_dim(1, false).nonzero().squeeze_dim(1);
        let flat = swapped.flatten(0, 1);
        let [rows, inside, mask, z_mm] = [&flat, &around, &mask, heights].map(|t| t.index_select(0, &open));
        let masked = Masked { codes: &rows, inside: &inside, mask: &mask, z_mm: &z_mm, shared: false };
        let decoding = Decoding { steps: 1, temperature: 1. };
        let (drawn, _) = tch::no_grad(|| inpainter.restore(&masked, &noise, decoding, context.kind));
        swapped = flat.index_copy(0, &open, &drawn).view_as(codes);
    }
    let changed = swapped.ne_tensor(codes).select(1, MIDDLE as i64).to_kind(Kind::Float);
    (swapped, changed)
}

/// Area under the ROC curve and average precision over the brain's tokens.
fn measure(context: &Context<'_>, models: (&Tokenizer, &Inpainter), detector: &Detector) -> Vec<(&'static str, f64)> {
    let mut scored: Vec<(f32, bool)> = Vec::new();
    tch::no_grad(|| {
        for step in 0..12 {
            let drawn = draw(context, &context.val, "detector-val", step, 24);
            let batch = batch(context, models, &drawn, "detector-val", step);
            let logits = detector.forward(&batch.codes, &batch.inside, &batch.z_mm, Kind::Float);
            let cell = [models.0.config().cell(); 2];
            let tokens = |plane: &Tensor| plane.unsqueeze(1).avg_pool2d(cell, cell, [0, 0], false, true, None);
            let flat =
                |t: &Tensor| Vec::<f32>::try_from(t.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default();
            let p = flat(&detector.token_probability(&logits));
            let (target, brain) = (flat(&tokens(&batch.target)), flat(&tokens(&batch.brain)));
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
