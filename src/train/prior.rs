//! Training of the autoregressive prior: guess each token of a healthy slice from those before it.

use rayon::prelude::*;
use tch::Kind;
use tch::Tensor;
use tch::nn::VarStore;

use super::{Context, data, draw_rng, updates};
use crate::config::Stage;
use crate::error::Result;
use crate::model::{DOWNSAMPLING, Prior, Tokenizer, TransformerConfig};

/// Trains, then measures on held-out slices.
pub(super) fn train(
    context: &Context<'_>,
    stage: &Stage<TransformerConfig>,
    store: &VarStore,
    tokenizer: &Tokenizer,
    prior: &Prior,
) -> Result<Vec<(&'static str, f64)>> {
    updates(context, "prior", store, (stage.steps, stage.learning_rate), |step| {
        let loss = loss(context, tokenizer, prior, &context.train, ("prior", step, stage.batch));
        (loss.shallow_clone(), vec![("nll", loss)])
    })?;
    let rounds = 12;
    let nll = tch::no_grad(|| {
        let round = |step| loss(context, tokenizer, prior, &context.val, ("prior-val", step, 24));
        (0..rounds).map(|step| f64::try_from(round(step)).unwrap_or(f64::NAN)).sum::<f64>() / rounds as f64
    });
    eprintln!("prior: held-out tokens of the brain, {nll:.3} nats each");
    Ok(vec![("prior_val_nll_nats", nll)])
}

/// Mean negative log-likelihood (nats) of the brain's tokens. `draw` is the stage, the step and the slices of a batch.
fn loss(
    context: &Context<'_>,
    tokenizer: &Tokenizer,
    prior: &Prior,
    from: &data::Slices,
    (stage, step, size): (&str, i64, usize),
) -> Tensor {
    let seed = context.pipeline.train.seed;
    let slices: Vec<_> = (0..size)
        .into_par_iter()
        .flat_map_iter(|item| from.draw(&[0], &mut draw_rng(seed, stage, step, item)))
        .collect();
    let (image, z_mm) = data::stack(&slices, from.shape[0], context.device);
    let codes = tch::no_grad(|| tokenizer.encode(&image.to_kind(context.kind)));
    // Air is easy to guess: only the brain's tokens count, as they do for the inpainter.
    let brain = data::brain_fraction(&slices, from.shape[0], DOWNSAMPLING, context.device).gt(0.1).to_kind(Kind::Float);
    let nll = prior.nll(&codes, &z_mm, context.kind);
    (nll * &brain).sum(Kind::Float) / brain.sum(Kind::Float)
}
