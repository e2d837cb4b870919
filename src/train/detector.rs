//! Training of the detector, which learns to distinguish the tokens of synthetic anomalies from healthy ones.
//!
//! Most slices get anomalies in image space, together with their neighbours, and are tokenized. In some, blocks of
//! tokens are replaced by random codes, by the codes of another slice of the batch, or by codes that the inpainter
//! draws.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use super::anomaly::{Slab, corrupt};
use super::context::{Context, Figures};
use super::dataset::Slices;
use super::slice::{Slice, brain_fraction, stack};
use super::tokens::{HELD_OUT_BATCH, HELD_OUT_ROUNDS, draw_block};
use super::updates::Updates;
use crate::error::Result;
use crate::model::{CONTEXT, Decoding, Inpainter, Masked, Network, Networks};
use crate::terminal::errln;

/// Index of the judged slice in [`CONTEXT`].
const MIDDLE: usize = CONTEXT.len() / 2;

/// Item number of the generator that replaces blocks in a batch; above the numbers of its slices.
const SWAP_ITEM: usize = 4095;

/// A slab of slices with anomalies, and the opacity of the anomaly at each pixel of the middle slice.
type Drawn = (Vec<Slice>, Vec<f32>);

/// A batch for the detector.
struct Batch {
    /// `[B, 3, h, w]`.
    codes: Tensor,
    /// MNI heights, `[B]`, mm.
    z_mm: Tensor,
    /// Tokens that hold brain, `[B, h, w]`, bool.
    inside: Tensor,
    /// 1 at anomalous pixels, else 0, `[B, H, W]`.
    target: Tensor,
    /// 1 at pixels of the brain, else 0, `[B, H, W]`.
    brain: Tensor,
}

/// Trains, then measures on held-out slices with anomalies of their own.
///
/// # Errors
/// As [`Updates::run`].
pub(super) fn train(context: &Context<'_>, networks: &Networks, store: &VarStore) -> Result<Figures> {
    let stage = &context.config().detector;
    let name = Network::Detector.name();
    let updates = Updates::new(context, name, store, stage.steps, stage.learning_rate);
    let draw = |step| context.draw(name, step, stage.batch, |rng| draw(context, &context.train, rng));
    updates.run(draw, |step, drawn| {
        let batch = batch(context, networks, &drawn, context.rng(name, step, SWAP_ITEM));
        let logits = networks.detector.forward(&batch.codes, &batch.inside, &batch.z_mm, context.kind);
        let loss =
            logits.binary_cross_entropy_with_logits(&batch.target, None::<Tensor>, None::<Tensor>, Reduction::None);
        let loss = (loss * &batch.brain).sum(Kind::Float) / batch.brain.sum(Kind::Float);
        (loss.shallow_clone(), vec![("bce", loss)])
    })?;
    Ok(measure(context, networks))
}

/// Draws a slab, with anomalies or without.
fn draw(context: &Context<'_>, from: &Slices, rng: &mut ChaCha8Rng) -> Drawn {
    let width = from.shape[0];
    let mut slices = from.draw(&CONTEXT, rng);
    let foreign = from.draw_near(slices[MIDDLE].z_mm, &CONTEXT, rng);
    let opacity = if rng.random_bool(context.config().anomalies.image_share) {
        corrupt(&mut Slab { slices: &mut slices, offsets: &CONTEXT, width }, &foreign, &context.outlines, rng)
    } else {
        vec![0.; slices[MIDDLE].pixels.len()]
    };
    (slices, opacity)
}

/// Tokenizes slabs and replaces blocks of their tokens.
fn batch(context: &Context<'_>, networks: &Networks, drawn: &[Drawn], rng: ChaCha8Rng) -> Batch {
    let (device, width) = (context.device, context.train.shape[0]);
    let cell = networks.tokenizer.config().cell();
    let size = drawn.len() as i64;
    let slices: Vec<Slice> = drawn.iter().flat_map(|(slices, _)| slices.iter().cloned()).collect();
    let middle: Vec<&Slice> = drawn.iter().map(|(slices, _)| &slices[MIDDLE]).collect();
    let (image, heights) = stack(&slices, width, device);
    let codes = tch::no_grad(|| networks.tokenizer.encode(&image.to_kind(context.kind), &heights));
    let codes = codes.unflatten(0, [size, CONTEXT.len() as i64]);
    let z_mm = heights.view([size, -1]).select(1, MIDDLE as i64);
    let plane = |values: Vec<f32>| Tensor::from_slice(&values).view([size, -1, width as i64]).to_device(device);
    let target =
        plane(drawn.iter().flat_map(|(_, opacity)| opacity.iter().map(|&v| f32::from(u8::from(v > 0.5)))).collect());
    let brain = plane(middle.iter().flat_map(|slice| slice.brain_pixels()).collect());
    let fraction = brain_fraction(middle, width, cell, device);
    let slabs = Slabs { codes, heights, fraction };
    let (codes, swapped) = slabs.swap_blocks(context, networks, rng);
    let swapped = swapped.repeat_interleave_self_int(cell, 1, None).repeat_interleave_self_int(cell, 2, None);
    Batch { codes, z_mm, inside: slabs.fraction.gt(0.), target: target.maximum(&swapped), brain }
}

/// What replaces a block of tokens.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// Random codes.
    Random,
    /// The codes of another slice, at the same place.
    Foreign,
    /// Codes that the inpainter draws, which are hard to distinguish from healthy ones, as in Token-Critic (arXiv 2209.04439).
    Inpainter,
}

/// Tokenized slabs.
struct Slabs {
    /// `[B, 3, h, w]`.
    codes: Tensor,
    /// MNI heights of all slices, `[B * 3]`, mm.
    heights: Tensor,
    /// Share of each token's cell that is brain in the middle slices, `[B, h, w]`.
    fraction: Tensor,
}

impl Slabs {
    /// Replaces blocks of tokens inside the brain, in all slices of a slab. Gives the new codes, and 1 at tokens of the
    /// middle slices whose code changed and 0 at the others, `[B, h, w]`.
    fn swap_blocks(&self, context: &Context<'_>, networks: &Networks, mut rng: ChaCha8Rng) -> (Tensor, Tensor) {
        let vocabulary = networks.tokenizer.config().codes();
        let (values, masked) = self.choose_blocks(context.config().anomalies.token_share, vocabulary, &mut rng);
        let mut swapped = Tensor::from_slice(&values).view_as(&self.codes).to_device(context.device);
        let n_masked = masked.iter().filter(|&&m| m).count();
        if n_masked > 0 {
            let noise: Vec<f32> = (0..n_masked * vocabulary as usize).map(|_| rng.random()).collect();
            let noise = Tensor::from_slice(&noise).view([-1, vocabulary]).to_device(context.device);
            let mask = Tensor::from_slice(&masked).view_as(&self.codes).to_device(context.device);
            swapped = self.inpaint(&networks.inpainter, &swapped, &mask, &noise, context.kind);
        }
        let changed = swapped.ne_tensor(&self.codes).select(1, MIDDLE as i64).to_kind(Kind::Float);
        (swapped, changed)
    }

    /// Draws blocks in a share `token_share` of the slabs. Gives all codes, with random and foreign ones in their
    /// blocks, and which of them the inpainter is to draw; both in row-major order.
    fn choose_blocks(&self, token_share: f64, vocabulary: i64, rng: &mut ChaCha8Rng) -> (Vec<i64>, Vec<bool>) {
        let (batch, slices, rows, columns) = self.codes.size4().expect("codes are [B, slices, rows, columns]");
        let mut values: Vec<i64> = flat(&self.codes);
        let fraction: Vec<f32> = flat(&self.fraction);
        let original = values.clone();
        let mut masked = vec![false; values.len()];
        for b in 0..batch {
            if !rng.random_bool(token_share) {
                continue;
            }
            let other = rng.random_range(0..batch);
            for _ in 0..rng.random_range(1..4) {
                let block = draw_block(rows, columns, rng);
                let source = [Source::Random, Source::Foreign, Source::Inpainter][rng.random_range(0..3)];
                for (y, x) in block {
                    if fraction[((b * rows + y) * columns + x) as usize] < 0.5 {
                        continue;
                    }
                    for slice in 0..slices {
                        let at = |b: i64| (((b * slices + slice) * rows + y) * columns + x) as usize;
                        match source {
                            Source::Random => values[at(b)] = rng.random_range(0..vocabulary),
                            Source::Foreign => values[at(b)] = original[at(other)],
                            Source::Inpainter => masked[at(b)] = true,
                        }
                    }
                }
            }
        }
        (values, masked)
    }

    /// Codes `[B, 3, h, w]` with those in `mask` (bool, like `codes`) drawn by the inpainter from `noise` `[M, codes]`.
    fn inpaint(&self, inpainter: &Inpainter, codes: &Tensor, mask: &Tensor, noise: &Tensor, kind: Kind) -> Tensor {
        let mask = mask.flatten(0, 1);
        // All slices of a slab are assumed to hold brain where the middle one does.
        let inside = self.fraction.gt(0.).unsqueeze(1).expand_as(codes).flatten(0, 1);
        let open = mask.flatten(1, 2).any_dim(1, false).nonzero().squeeze_dim(1);
        let flat = codes.flatten(0, 1);
        let [rows, inside, mask, z_mm] = [&flat, &inside, &mask, &self.heights].map(|t| t.index_select(0, &open));
        let masked = Masked { codes: &rows, inside: &inside, mask: &mask, z_mm: &z_mm, shared: false };
        let decoding = Decoding { steps: 1, temperature: 1. };
        let (drawn, _) = tch::no_grad(|| inpainter.restore(&masked, noise, decoding, kind));
        flat.index_copy(0, &open, &drawn).view_as(codes)
    }
}

/// A tensor's values in row-major order.
fn flat<T>(tensor: &Tensor) -> Vec<T>
where
    Vec<T>: TryFrom<Tensor>,
{
    Vec::try_from(tensor.to_device(Device::Cpu).contiguous().view(-1)).unwrap_or_default()
}

/// Area under the ROC curve and average precision over the brain's tokens.
fn measure(context: &Context<'_>, networks: &Networks) -> Figures {
    let mut scored: Vec<(f32, bool)> = Vec::new();
    let cell = [networks.tokenizer.config().cell(); 2];
    tch::no_grad(|| {
        for step in 0..HELD_OUT_ROUNDS {
            let stage = "detector-val";
            let drawn = context.draw(stage, step, HELD_OUT_BATCH, |rng| draw(context, &context.val, rng));
            let batch = batch(context, networks, &drawn, context.rng(stage, step, SWAP_ITEM));
            let logits = networks.detector.forward(&batch.codes, &batch.inside, &batch.z_mm, Kind::Float);
            let tokens = |plane: &Tensor| plane.unsqueeze(1).avg_pool2d(cell, cell, [0, 0], false, true, None);
            let p: Vec<f32> = flat(&networks.detector.token_probability(&logits));
            let (target, brain): (Vec<f32>, Vec<f32>) = (flat(&tokens(&batch.target)), flat(&tokens(&batch.brain)));
            scored.extend((0..p.len()).filter(|&i| brain[i] > 0.5).map(|i| (p[i], target[i] > 0.5)));
        }
    });
    let (auroc, precision) = ranking(&mut scored);
    errln!("detector: held-out synthetic tokens, AUROC {auroc:.3}, average precision {precision:.3}");
    vec![("detector_val_auroc", auroc), ("detector_val_average_precision", precision)]
}

/// AUROC (Mann-Whitney) and average precision of scores with their labels.
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
