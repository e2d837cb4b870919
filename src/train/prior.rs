//! Training of the autoregressive prior: predict each token of a healthy slice from those before it.

use rand_chacha::ChaCha8Rng;
use tch::Kind;
use tch::nn::VarStore;

use super::context::{Context, Figures};
use super::dataset::Slices;
use super::tokens::{HELD_OUT_ROUNDS, TokenTraining, Tokens};
use crate::error::{Error, Result};
use crate::model::{Network, Networks, TokenSlices};
use crate::terminal::errln;

/// Trains, then measures on held-out slices.
///
/// # Errors
/// As [`Updates::run`](super::updates::Updates::run).
pub(super) fn train(context: &Context<'_>, networks: &Networks, store: &VarStore) -> Result<Figures> {
    let (Some(stage), Some(prior)) = (&context.config().prior, &networks.prior) else {
        return Err(Error::Bug("a prior was to be trained, but there is none".into()));
    };
    let training = TokenTraining { context, network: Network::Prior, stage, store };
    let draw = |from: &Slices, rng: &mut ChaCha8Rng| from.draw(&[0], rng).remove(0);
    let rounds = training.run(draw, |slices, kind| {
        let Tokens { codes, inside, predicted, z_mm } = Tokens::encode(context, &networks.tokenizer, &slices);
        let nll = prior.nll(TokenSlices { codes: &codes, inside: &inside, z_mm: &z_mm }, kind);
        let counted = predicted.to_kind(Kind::Float);
        [("nll", (nll * &counted).sum(Kind::Float) / counted.sum(Kind::Float))]
    })?;
    let nll = rounds.iter().map(|[nll]| nll).sum::<f64>() / HELD_OUT_ROUNDS as f64;
    errln!("prior: held-out tokens of the brain, {nll:.3} nats each");
    Ok(vec![("prior_val_nll_nats", nll)])
}
