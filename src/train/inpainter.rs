//! Training of the inpainter: guess masked tokens of healthy slices.
//!
//! The share of masked tokens follows MaskGIT's cosine (arXiv 2202.04200); half of the slices are
//! masked in blocks instead, since anomalies are compact.

use rand::Rng;
use rayon::prelude::*;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::data::Slice;
use super::{Context, data, draw_rng, updates};
use crate::error::Result;
use crate::model::{Inpainter, Masked, Tokenizer};

/// Slices, and which of each one's tokens are to be hidden.
type Drawn = Vec<(Slice, Vec<bool>)>;

/// A masked batch: codes, tokens that hold brain and tokens that are masked `[B, h, w]`, heights `[B]`.
struct Batch {
    codes: Tensor,
    inside: Tensor,
    mask: Tensor,
    z_mm: Tensor,
}

/// Trains, then measures on held-out slices.
pub(super) fn train(
    context: &Context<'_>,
    store: &VarStore,
    tokenizer: &Tokenizer,
    inpainter: &Inpainter,
) -> Result<Vec<(&'static str, f64)>> {
    let stage = &context.pipeline.train.inpainter;
    let cell = tokenizer.config().cell();
    let draw = |step| draw(context, &context.train, cell, "inpainter", step, stage.batch);
    updates(context, "inpainter", store, (stage.steps, stage.learning_rate), draw, |_, drawn| {
        let (loss, right) = masked_loss(inpainter, &batch(context, tokenizer, drawn), context.kind);
        (loss.shallow_clone(), vec![("nll", loss), ("right", right)])
    })?;
    Ok(measure(context, tokenizer, inpainter))
}

/// Mean negative log-likelihood (nats) of the masked tokens, and the share guessed right.
fn masked_loss(inpainter: &Inpainter, batch: &Batch, kind: Kind) -> (Tensor, Tensor) {
    let Batch { codes, inside, mask, z_mm } = batch;
    let logits = inpainter.forward(&Masked { codes, inside, mask, z_mm, shared: false }, kind);
    let truth = codes.masked_select(mask);
    let right = logits.argmax(-1, false).eq_tensor(&truth).to_kind(Kind::Float).mean(Kind::Float);
    (logits.cross_entropy_for_logits(&truth), right)
}

fn draw(context: &Context<'_>, from: &data::Slices, cell: i64, stage: &str, step: i64, size: usize) -> Drawn {
    let seed = context.pipeline.train.seed;
    let (rows, columns) = (from.shape[1] as i64 / cell, from.shape[0] as i64 / cell);
    let one = |item| {
        let mut rng = draw_rng(seed, stage, step, item);
        (from.draw(&[0], &mut rng).remove(0), mask(rows, columns, &mut rng))
    };
    (0..size).into_par_iter().map(one).collect()
}

fn batch(context: &Context<'_>, tokenizer: &Tokenizer, drawn: Drawn) -> Batch {
    let (slices, masks): (Vec<Slice>, Vec<Vec<bool>>) = drawn.into_iter().unzip();
    let width = context.train.shape[0];
    let (image, z_mm) = data::stack(&slices, width, context.device);
    let codes = tch::no_grad(|| tokenizer.encode(&image.to_kind(context.kind), &z_mm));
    let brain = data::brain_fraction(&slices, width, tokenizer.config().cell(), context.device);
    let mask = Tensor::from_slice(&masks.concat()).view_as(&codes).to_device(context.device);
    // Tokens at the very border hold little: only the brain's tokens are asked for.
    Batch { codes, inside: brain.gt(0.), mask: mask.logical_and(&brain.gt(0.1)), z_mm }
}

/// Which tokens of a slice are hidden.
fn mask(rows: i64, columns: i64, rng: &mut impl Rng) -> Vec<bool> {
    let n = (rows * columns) as usize;
    if rng.random_bool(0.5) {
        let share = (rng.random::<f64>() * std::f64::consts::FRAC_PI_2).cos();
        return (0..n).map(|_| rng.random_bool(share)).collect();
    }
    let mut hidden = vec![false; n];
    for _ in 0..rng.random_range(2..16) {
        let (height, width) = (data::block_side(rng), data::block_side(rng));
        let (top, left) = (rng.random_range(0..rows), rng.random_range(0..columns));
        for y in top..(top + height).min(rows) {
            for x in left..(left + width).min(columns) {
                hidden[(y * columns + x) as usize] = true;
            }
        }
    }
    hidden
}

fn measure(context: &Context<'_>, tokenizer: &Tokenizer, inpainter: &Inpainter) -> Vec<(&'static str, f64)> {
    let (mut nll, mut right) = (0., 0.);
    let rounds = 12;
    tch::no_grad(|| {
        for step in 0..rounds {
            let drawn = draw(context, &context.val, tokenizer.config().cell(), "inpainter-val", step, 24);
            let batch = batch(context, tokenizer, drawn);
            let (loss, accuracy) = masked_loss(inpainter, &batch, Kind::Float);
            nll += f64::try_from(loss).unwrap_or(f64::NAN) / rounds as f64;
            right += f64::try_from(accuracy).unwrap_or(f64::NAN) / rounds as f64;
        }
    });
    eprintln!("inpainter: held-out masked tokens, {nll:.3} nats each, {:.1} % guessed", 100. * right);
    vec![("inpainter_val_nll_nats", nll), ("inpainter_val_accuracy", right)]
}
