//! The autoregressive prior: the rival that MIM-OOD was measured against, on the same tokens.
//!
//! A GPT-like transformer over a slice's tokens in raster order, those that hold brain: each token's distribution given
//! those before it and the slice's height. Takes codes `[B, h, w]`, the tokens inside the brain and heights `[B]` (MNI z,
//! mm), gives the negative log-likelihood of every token, f32.
//!
//! [`Prior::restore`] is the restoration of Naval Marimont and Tarroni (arXiv 2012.06765): token by token, those that
//! are less likely than a limit are drawn anew. Each token needs the ones before it, so a slice takes as many passes as
//! it has tokens, either full ones, as the authors' generation of code does, or one-token steps against a cache of keys
//! and values, the modern way. Both give the same tokens; they differ in speed.

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::packing::Packing;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::{self, HEAD_SD, Vocabulary};

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
            trunk: Trunk::new(&p / "trunk", config, vocabulary.clone(), 1, tokens),
            head: Linear::new(&p / "head", config.width, vocabulary.codes(), HEAD_SD),
            vocabulary,
        }
    }

    /// For a training's begin: codes look alike, and are as likely as each other, where their vectors (`[codes, D]`) are.
    pub fn resemble(&self, vectors: &Tensor) {
        self.trunk.resemble(vectors);
        vocabulary::resemble(self.head.weight(), vectors, HEAD_SD);
    }

    /// Negative log-likelihood of every token inside (`[B, h, w]`, bool) given those before it, in nats, `[B, h, w]`; 0
    /// elsewhere. Computed in `kind`.
    pub fn nll(&self, codes: &Tensor, inside: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let packing = Packing::new(inside);
        let own = packing.pack(codes);
        let features = self.trunk.forward_causal(&self.before(&own), &packing, z_mm, kind);
        let log_p = self.head.forward(&features).to_kind(Kind::Float).log_softmax(-1, Kind::Float);
        packing.unpack(&-log_p.gather(2, &own.unsqueeze(-1), false).squeeze_dim(-1), 0.)
    }

    /// What each place of the sequences `[B, N]` sees of its own: the token before it; the first place sees "masked". `[B, N, 1]`.
    fn before(&self, own: &Tensor) -> Tensor {
        let first = Tensor::full([own.size()[0], 1], self.vocabulary.mask_code(), (Kind::Int64, own.device()));
        Tensor::cat(&[first, own.narrow(1, 0, own.size()[1] - 1)], 1).unsqueeze(-1)
    }

    /// Codes with every unlikely token drawn anew, in raster order, and the negative log-likelihood (nats) that each
    /// token had when its turn came, both `[B, h, w]`. Only tokens inside (`[B, h, w]`, bool) are looked at and changed;
    /// the likelihood of others is 0.
    ///
    /// `noise` gets the number of tokens N of the longest sequence and gives `[B, N, codes]`, uniform in 0..1. It makes the
    /// draw, by the Gumbel trick: the same noise gives the same tokens.
    pub fn restore(
        &self,
        codes: &Tensor,
        inside: &Tensor,
        z_mm: &Tensor,
        noise: impl FnOnce(i64) -> Tensor,
        resampling: Resampling,
        kind: Kind,
    ) -> (Tensor, Tensor) {
        let packing = Packing::new(inside);
        let (batch, tokens) = packing.places.size2().expect("places are [B, N]");
        let gumbel = -(-noise(tokens).clamp(1e-9, 1. - 1e-7).log()).log();
        let current = packing.pack(codes);
        let mut nll = Vec::with_capacity(tokens as usize);
        let table = self.trunk.codes();
        let mut cache = self.trunk.cache(batch, kind, codes.device());
        let mut last = Tensor::full([batch], self.vocabulary.mask_code(), (Kind::Int64, codes.device()));
        for place in 0..tokens {
            let features = if resampling.cached {
                let before = table.embed(&last.unsqueeze(-1), kind);
                self.trunk.step(&before, &packing.places.select(1, place), z_mm, &mut cache)
            } else {
                self.trunk.forward_causal(&self.before(&current), &packing, z_mm, kind).select(1, place)
            };
            let logits = self.head.forward(&features).to_kind(Kind::Float);
            let had = current.select(1, place);
            let log_p = logits.log_softmax(-1, Kind::Float);
            let surprise = -log_p.gather(1, &had.unsqueeze(-1), false).squeeze_dim(-1);
            let anew = surprise.gt(resampling.limit_nats);
            last = (logits + gumbel.select(1, place)).argmax(-1, false).where_self(&anew, &had);
            current.select(1, place).copy_(&last);
            nll.push(surprise);
        }
        let restored = packing.unpack(&current, 0.).where_self(inside, codes);
        (restored, packing.unpack(&Tensor::stack(&nll, 1), 0.))
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
        // Places 0 and 9 are air.
        let inside = Tensor::ones([2, 12], (Kind::Bool, Device::Cpu));
        [0, 9].iter().for_each(|&place| inside.select(1, place).copy_(&Tensor::from(false)));
        let inside = inside.view([2, 3, 4]);
        let nll = prior.nll(&codes, &inside, &z, Kind::Float);
        // Another code at place 6: what is said of places 1 to 5 stays, of those from 6 on moves.
        let other = codes.copy();
        other.flatten(1, 2).select(1, 6).copy_(&((codes.flatten(1, 2).select(1, 6) + 5).remainder(12)));
        let moved = (prior.nll(&other, &inside, &z, Kind::Float) - nll).abs().amax([0i64].as_slice(), false).view(-1);
        let moved: Vec<f32> = Vec::try_from(moved).unwrap();
        let still = [0, 1, 2, 3, 4, 5, 9];
        assert!((0..12).all(|i| (moved[i] < 1e-6) == still.contains(&i)), "{moved:?}");
    }

    #[test]
    fn codes_with_the_same_vector_begin_as_likely_as_each_other() {
        tch::manual_seed(3);
        let store = VarStore::new(Device::Cpu);
        let config = TransformerConfig { width: 16, heads: 2, layers: 2 };
        let prior = Prior::new(store.root(), &config, Vocabulary::new(&[12]), [3, 4]);
        let vectors = Tensor::randn([12, 4], (Kind::Float, Device::Cpu));
        vectors.get(7).copy_(&vectors.get(3));
        prior.resemble(&vectors);
        let inside = Tensor::ones([1, 3, 4], (Kind::Bool, Device::Cpu));
        let nll = |code: i64| {
            let codes = Tensor::full([1, 3, 4], code, (Kind::Int64, Device::Cpu));
            f64::try_from(prior.nll(&codes, &inside, &Tensor::from_slice(&[0f32]), Kind::Float).sum(Kind::Double))
                .unwrap()
        };
        let far = |a: i64, b: i64| (nll(a) - nll(b)).abs();
        assert!(far(3, 7) < 0.02 * far(3, 5), "{} {}", far(3, 7), far(3, 5));
    }

    #[test]
    fn full_passes_and_the_cache_restore_the_same_tokens() {
        let (_store, prior) = small();
        let codes = Tensor::randint(12, [2, 3, 4], (Kind::Int64, Device::Cpu));
        let (z, inside) =
            (Tensor::from_slice(&[0f32, 5.]), Tensor::rand([2, 3, 4], (Kind::Float, Device::Cpu)).lt(0.8));
        let restore = |cached, limit_nats| {
            let noise = |n| {
                tch::manual_seed(4);
                Tensor::rand([2, n, 12], (Kind::Float, Device::Cpu))
            };
            prior.restore(&codes, &inside, &z, noise, Resampling { limit_nats, cached }, Kind::Float)
        };
        let (full, nll) = restore(false, 2.4);
        let (cached, cached_nll) = restore(true, 2.4);
        assert_eq!(full, cached);
        assert!(f64::try_from((&nll - cached_nll).abs().max()).unwrap() < 1e-5);
        assert_ne!(full, codes, "some tokens are unlikely");
        let outside = inside.logical_not();
        assert_eq!(full.masked_select(&outside), codes.masked_select(&outside));
        // Nothing is above an infinite limit, and then the likelihoods are those of one pass.
        let (same, nll) = restore(true, f64::INFINITY);
        assert_eq!(same, codes);
        assert!(f64::try_from((nll - prior.nll(&codes, &inside, &z, Kind::Float)).abs().max()).unwrap() < 1e-5);
    }
}
