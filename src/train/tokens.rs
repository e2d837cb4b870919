//! Training on the tokens of single healthy slices, which the inpainter and the prior share.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::config::NetworkTraining;
use super::context::Context;
use super::dataset::Slices;
use super::slice::{Slice, brain_fraction, stack};
use super::updates::Updates;
use crate::error::Result;
use crate::model::{Network, Tokenizer, TransformerConfig};

/// Batches that held-out figures are computed on, and slices of each.
pub(super) const HELD_OUT_ROUNDS: i64 = 12;
pub(super) const HELD_OUT_BATCH: usize = 24;

/// Tokens with less brain than this share of their cell are not predicted: at the border they are mostly air.
const MIN_BRAIN: f64 = 0.1;

/// The tokens of a batch of slices.
pub(super) struct Tokens {
    /// Codes, `[B, h, w]`, i64.
    pub(super) codes: Tensor,
    /// Tokens that hold brain, `[B, h, w]`, bool.
    pub(super) inside: Tensor,
    /// Tokens with enough brain to be predicted, `[B, h, w]`, bool.
    pub(super) predicted: Tensor,
    /// MNI heights, `[B]`, mm.
    pub(super) z_mm: Tensor,
}

impl Tokens {
    /// Tokenizes slices.
    pub(super) fn encode(context: &Context<'_>, tokenizer: &Tokenizer, slices: &[Slice]) -> Self {
        let width = context.train.shape[0];
        let (image, z_mm) = stack(slices, width, context.device);
        let codes = tch::no_grad(|| tokenizer.encode(&image.to_kind(context.kind), &z_mm));
        let fraction = brain_fraction(slices, width, tokenizer.config().cell(), context.device);
        Self { codes, inside: fraction.gt(0.), predicted: fraction.gt(MIN_BRAIN), z_mm }
    }
}

/// The training of a network on tokens of healthy slices.
pub(super) struct TokenTraining<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) network: Network,
    pub(super) stage: &'a NetworkTraining<TransformerConfig>,
    pub(super) store: &'a VarStore,
}

impl TokenTraining<'_> {
    /// Trains, then gives the figures of each held-out batch. `draw` draws one item of a batch; `figures` computes a
    /// batch's figures in a kind, and the first of them is the loss.
    ///
    /// # Errors
    /// As [`Updates::run`].
    pub(super) fn run<T: Send, const N: usize>(
        &self,
        draw: impl Fn(&Slices, &mut ChaCha8Rng) -> T + Sync,
        figures: impl Fn(Vec<T>, Kind) -> [(&'static str, Tensor); N],
    ) -> Result<Vec<[f64; N]>> {
        let Self { context, network, stage, store } = self;
        let name = network.name();
        let updates = Updates::new(context, name, store, stage.steps, stage.learning_rate);
        let batch = |step| context.draw(name, step, stage.batch, |rng| draw(&context.train, rng));
        updates.run(batch, |_, batch| {
            let figures = figures(batch, context.kind);
            (figures[0].1.shallow_clone(), figures.into())
        })?;
        let held_out = format!("{name}-val");
        let round = |step| {
            let batch = context.draw(&held_out, step, HELD_OUT_BATCH, |rng| draw(&context.val, rng));
            figures(batch, Kind::Float).map(|(_, figure)| f64::try_from(figure).unwrap_or(f64::NAN))
        };
        Ok(tch::no_grad(|| (0..HELD_OUT_ROUNDS).map(round).collect()))
    }
}

/// Draws a rectangle of tokens of a slice, `rows` x `columns`, as rows and columns `(y, x)`. Its sides are those of
/// MAD-AD (arXiv 2502.16943).
pub(super) fn draw_block(rows: i64, columns: i64, rng: &mut impl Rng) -> Vec<(i64, i64)> {
    let mut side = || *[1, 1, 2, 2, 2, 4, 4, 4, 8, 8].choose(rng).unwrap_or(&2);
    let (height, width): (i64, i64) = (side(), side());
    let (top, left) = (rng.random_range(0..rows), rng.random_range(0..columns));
    let columns = left..(left + width).min(columns);
    (top..(top + height).min(rows)).flat_map(|y| columns.clone().map(move |x| (y, x))).collect()
}
