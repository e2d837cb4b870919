//! Training of the autoregressive prior: guess each token of a healthy slice from those before it.

use rayon::prelude::*;
use tch::Kind;
use tch::Tensor;
use tch::nn::VarStore;

use super::config::NetworkTraining;
use super::data::Slice;
use super::{Context, data, draw_rng, updates};
use crate::error::Result;
use crate::model::{Prior, Tokenizer, TransformerConfig};

/// Trains, then measures on held-out slices.
pub(super) fn train(
    context: &Context<'_>,
    stage: &NetworkTraining<TransformerConfig>,
    store: &VarStore,
    tokenizer: &Tokenizer,
    prior: &Prior,
) -> Result<Vec<(&'static str, f64)>> {
    let drawn = |step| draw(context, &context.train, "prior", step, stage.batch);
    updates(context, "prior", store, (stage.steps, stage.learning_rate), drawn, |_, slices| {
        let loss = loss(context, tokenizer, prior, &slices, context.kind);
        (loss.shallow_clone(), vec![("nll", loss)])
    })?;
    let rounds = 12;
    let nll = tch::no_grad(|| {
        let round = |step| {
            let slices = draw(context, &context.val, "prior-val", step, 24);
            f64::try_from(loss(context, tokenizer, prior, &slices, Kind::Float)).unwrap_or(f64::NAN)
        };
        (0..rounds).map(round).sum::<f64>() / rounds as f64
    });
    eprintln!("prior: held-out tokens of the brain, {nll:.3} nats each");
    Ok(vec![("prior_val_nll_nats", nll)])
}

fn draw(context: &Context<'_>, from: &data::Slices, stage: &str, step: i64, size: usize) -> Vec<Slice> {
    let seed = context.pipeline.train.seed;
    let one = |item| from.draw(&[0], &mut draw_rng(seed, stage, step, item)).remove(0);
    (0..size).into_par_iter().map(one).collect()
}

/// Mean negative log-likelihood (nats) of the brain's tokens.
fn loss(context: &Context<'_>, tokenizer: &Tokenizer, prior: &Prior, slices: &[Slice], kind: Kind) -> Tensor {
    let width = context.train.shape[0];
    let (image, z_mm) = data::stack(slices, width, context.device);
    let codes = tch::no_grad(|| tokenizer.encode(&image.to_kind(context.kind), &z_mm));
    let fraction = data::brain_fraction(slices, width, tokenizer.config().cell(), context.device);
    let nll = prior.nll(&codes, &fraction.gt(0.), &z_mm, kind);
    // As for the inpainter, tokens at the very border do not count.
    let brain = fraction.gt(0.1).to_kind(Kind::Float);
    (nll * &brain).sum(Kind::Float) / brain.sum(Kind::Float)
}
