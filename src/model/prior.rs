//! The autoregressive prior: the rival that MIM-OOD was measured against, on the same tokens.
//!
//! A GPT-like transformer over a slice's tokens in raster order: each token's distribution given those before it and the
//! slice's height. Takes codes `[B, h, w]` and heights `[B]` (MNI z, mm), gives logits `[B, h, w, codes]`, f32.
//!
//! [`Prior::restore`] is the restoration of Naval Marimont and Tarroni (arXiv 2012.06765): token by token, those that
//! are less likely than a limit are drawn anew. Each token needs the ones before it, so a slice takes as many passes as
//! it has tokens, either full ones, as the authors' generation of code does, or one-token steps against a cache of keys
//! and values, the modern way. Both give the same tokens; they differ in speed.

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::transformer::{Cache, TransformerConfig, Trunk};
use super::vocabulary::Vocabulary;

/// Next-token model.
#[derive(Debug)]
pub struct Prior {
    trunk: Trunk,
    head: Linear,
    vocabulary: Vocabulary,
}

/// How tokens are drawn anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling {
    /// Tokens with a negative log-likelihood above this (nats) are drawn anew.
    pub limit_nats: f64,
    /// Keep keys and values of earlier tokens instead of computing them anew for every token.
    pub cached: bool,
}

impl Prior {
    /// `vocabulary`: the tokenizer's; `tokens`: rows and columns of a slice.
    pub fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2]) -> Self {
        Self {
            trunk: Trunk::new(&p / "trunk", config, vocabulary.width(), tokens),
            head: Linear::new(&p / "head", config.width, vocabulary.codes(), 0.02),
            vocabulary,
        }
    }

    /// Logits `[B, h, w, codes]` of each token given those before it, computed in `kind`.
    pub fn forward(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let (batch, rows, columns) = codes.size3().expect("codes are [B, rows, columns]");
        let features = self.trunk.forward_causal(&self.before(codes, kind), z_mm);
        self.head.forward(&features).to_kind(Kind::Float).view([batch, rows, columns, self.vocabulary.codes()])
    }

    /// Negative log-likelihood of every token in nats, `[B, h, w]`.
    pub fn nll(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let log_p = self.forward(codes, z_mm, kind).log_softmax(-1, Kind::Float);
        -log_p.gather(3, &codes.unsqueeze(-1), false).squeeze_dim(-1)
    }

    /// What each token's place sees of its own: the token before it in raster order; the first place sees "masked".
    fn before(&self, codes: &Tensor, kind: Kind) -> Tensor {
        let first = Tensor::full([codes.size()[0], 1], self.vocabulary.mask_code(), (Kind::Int64, codes.device()));
        let flat = codes.flatten(1, 2);
        let shifted = Tensor::cat(&[first, flat.narrow(1, 0, flat.size()[1] - 1)], 1).view_as(codes);
        self.vocabulary.one_hot(&shifted, kind)
    }

    /// Codes with every unlikely token drawn anew, in raster order, and the negative log-likelihood (nats) that each
    /// token had when its turn came, both `[B, h, w]`. Only tokens where `wanted` (`[B, h, w]`, bool) is set are changed.
    ///
    /// `noise` (`[B, h * w, codes]`, uniform in 0..1) makes the draw, by the Gumbel trick: the same noise gives the same
    /// tokens.
    pub fn restore(
        &self,
        codes: &Tensor,
        wanted: &Tensor,
        z_mm: &Tensor,
        noise: &Tensor,
        resampling: Resampling,
        kind: Kind,
    ) -> (Tensor, Tensor) {
        let (batch, rows, columns) = codes.size3().expect("codes are [B, rows, columns]");
        let tokens = rows * columns;
        let gumbel = -(-noise.clamp(1e-9, 1. - 1e-7).log()).log();
        let (current, wanted) = (codes.flatten(1, 2).copy(), wanted.flatten(1, 2));
        let mut nll = Vec::with_capacity(tokens as usize);
        let mut cache = self.trunk.cache(batch, kind, codes.device());
        let mut last = Tensor::full([batch], self.vocabulary.mask_code(), (Kind::Int64, codes.device()));
        for place in 0..tokens {
            let features = if resampling.cached {
                self.step(&last, place, z_mm, &mut cache, kind)
            } else {
                let input = self.before(&current.view_as(codes), kind);
                self.trunk.forward_causal(&input, z_mm).select(1, place)
            };
            let logits = self.head.forward(&features).to_kind(Kind::Float);
            let had = current.select(1, place);
            let log_p = logits.log_softmax(-1, Kind::Float);
            let surprise = -log_p.gather(1, &had.unsqueeze(-1), false).squeeze_dim(-1);
            let anew = surprise.gt(resampling.limit_nats).logical_and(&wanted.select(1, place));
            last = (logits + gumbel.select(1, place)).argmax(-1, false).where_self(&anew, &had);
            current.select(1, place).copy_(&last);
            nll.push(surprise);
        }
        (current.view_as(codes), Tensor::stack(&nll, 1).view_as(codes))
    }

    /// Features `[B, width]` of one place, given the token before it.
    fn step(&self, before: &Tensor, place: i64, z_mm: &Tensor, cache: &mut Cache, kind: Kind) -> Tensor {
        self.trunk.step(&self.vocabulary.one_hot(before, kind), place, z_mm, cache)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tch::nn::VarStore;

    fn small() -> (VarStore, Prior) {
        tch::manual_seed(3);
        let store = VarStore::new(Device::Cpu);
        let config = TransformerConfig { width: 16, heads: 2, layers: 2 };
        let prior = Prior::new(store.root(), &config, Vocabulary::new(&[4, 3]), [3, 4]);
        (store, prior)
    }

    #[test]
    fn a_token_is_judged_by_those_before_it_alone() {
        let (_store, prior) = small();
        let codes = Tensor::randint(12, [2, 3, 4], (Kind::Int64, Device::Cpu));
        let z = Tensor::from_slice(&[-10f32, 20.]);
        let logits = prior.forward(&codes, &z, Kind::Float);
        // Another code at place 6: the logits of places 0 to 6 stay, those after it move.
        let other = codes.copy();
        other.flatten(1, 2).select(1, 6).copy_(&((codes.flatten(1, 2).select(1, 6) + 5).remainder(12)));
        let moved = (prior.forward(&other, &z, Kind::Float) - logits).abs().amax([0i64, 3].as_slice(), false).view(-1);
        let moved: Vec<f32> = Vec::try_from(moved).unwrap();
        assert!(moved[..=6].iter().all(|&m| m < 1e-6) && moved[7..].iter().all(|&m| m > 1e-6), "{moved:?}");
    }

    #[test]
    fn full_passes_and_the_cache_restore_the_same_tokens() {
        let (_store, prior) = small();
        let codes = Tensor::randint(12, [2, 3, 4], (Kind::Int64, Device::Cpu));
        let (z, wanted) = (Tensor::from_slice(&[0f32, 5.]), Tensor::ones([2, 3, 4], (Kind::Bool, Device::Cpu)));
        let noise = Tensor::rand([2, 12, 12], (Kind::Float, Device::Cpu));
        let restore = |cached, limit_nats| {
            prior.restore(&codes, &wanted, &z, &noise, Resampling { limit_nats, cached }, Kind::Float)
        };
        let (full, nll) = restore(false, 2.4);
        let (cached, cached_nll) = restore(true, 2.4);
        assert_eq!(full, cached);
        assert!(f64::try_from((&nll - cached_nll).abs().max()).unwrap() < 1e-5);
        assert_ne!(full, codes, "some tokens are unlikely");
        // Nothing is above an infinite limit, and then the likelihoods are those of one pass.
        let (same, nll) = restore(true, f64::INFINITY);
        assert_eq!(same, codes);
        assert!(f64::try_from((nll - prior.nll(&codes, &z, Kind::Float)).abs().max()).unwrap() < 1e-5);
    }
}
