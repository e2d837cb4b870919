//! Training of the inpainter: predict masked tokens of healthy slices.
//!
//! Half of the slices are masked at random, with MaskGIT's cosine distribution of the masked share (arXiv 2202.04200).
//! The others are masked in blocks, since anomalies are compact.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::context::{Context, Figures};
use super::dataset::Slices;
use super::slice::Slice;
use super::tokens::{HELD_OUT_ROUNDS, TokenTraining, Tokens, draw_block};
use crate::error::Result;
use crate::model::{Inpainter, Masked, Network, Networks};
use crate::terminal::errln;

/// Trains, then measures on held-out slices.
///
/// # Errors
/// As [`Updates::run`](super::updates::Updates::run).
pub(super) fn train(context: &Context<'_>, networks: &Networks, store: &VarStore) -> Result<Figures> {
    let Networks { tokenizer, inpainter, .. } = networks;
    let stage = &context.config().inpainter;
    let training = TokenTraining { context, network: Network::Inpainter, stage, store };
    let cell = tokenizer.config().cell();
    let draw = |from: &Slices, rng: &mut ChaCha8Rng| {
        let (rows, columns) = (from.shape[1] as i64 / cell, from.shape[0] as i64 / cell);
        (from.draw(&[0], rng).remove(0), draw_mask(rows, columns, rng))
    };
    let rounds = training.run(draw, |drawn, kind| {
        let (slices, masks): (Vec<Slice>, Vec<Vec<bool>>) = drawn.into_iter().unzip();
        let tokens = Tokens::encode(context, tokenizer, &slices);
        let mask = Tensor::from_slice(&masks.concat()).view_as(&tokens.codes).to_device(context.device);
        figures(inpainter, &tokens, &mask.logical_and(&tokens.predicted), kind)
    })?;
    let mean = |figure: usize| rounds.iter().map(|round| round[figure] / HELD_OUT_ROUNDS as f64).sum::<f64>();
    let (nll, right) = (mean(0), mean(1));
    errln!("inpainter: held-out masked tokens, {nll:.3} nats each, {:.1} % predicted right", 100. * right);
    Ok(vec![("inpainter_val_nll_nats", nll), ("inpainter_val_accuracy", right)])
}

/// Mean negative log-likelihood (nats) of the masked tokens, and the share of them that are predicted right.
fn figures(inpainter: &Inpainter, tokens: &Tokens, mask: &Tensor, kind: Kind) -> [(&'static str, Tensor); 2] {
    let Tokens { codes, inside, z_mm, .. } = tokens;
    let logits = inpainter.forward(&Masked { codes, inside, mask, z_mm, shared: false }, kind);
    let truth = codes.masked_select(mask);
    let right = logits.argmax(-1, false).eq_tensor(&truth).to_kind(Kind::Float).mean(Kind::Float);
    [("nll", logits.cross_entropy_for_logits(&truth)), ("right", right)]
}

/// Draws which tokens of a slice are masked, in row-major order.
fn draw_mask(rows: i64, columns: i64, rng: &mut impl Rng) -> Vec<bool> {
    let n = (rows * columns) as usize;
    if rng.random_bool(0.5) {
        let share = (rng.random::<f64>() * std::f64::consts::FRAC_PI_2).cos();
        return (0..n).map(|_| rng.random_bool(share)).collect();
    }
    let mut masked = vec![false; n];
    for _ in 0..rng.random_range(2..16) {
        for (y, x) in draw_block(rows, columns, rng) {
            masked[(y * columns + x) as usize] = true;
        }
    }
    masked
}
