//! The autoregressive prior: the baseline that MIM-OOD is compared with, on the same tokens.
//!
//! ```text
//! codes, inside [B, h, w], z_mm [B] ──► negative log-likelihood of each token, nats [B, h, w]
//! ```
//! Input: the codes of a slice, the tokens that hold brain (bool), and the slice's MNI height in mm. Output: f32, 0 at
//! tokens without brain. A GPT-like transformer over the tokens that hold brain, in raster order, gives each token's
//! distribution given the tokens before it and the slice's height.
//!
//! [`Prior::restore`] is the restoration of Naval Marimont and Tarroni (arXiv 2012.06765): token by token, those with a
//! negative log-likelihood above a limit are redrawn. Each token depends on the ones before it, so a slice takes as
//! many passes as it has tokens: either full passes, as in the authors' code, or one-token steps with a cache of keys
//! and values. Both give the same tokens, at different speed.

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::packing::Packing;
use super::predictor::{Predictor, gumbel};
use super::transformer::TransformerConfig;
use super::vocabulary::Vocabulary;

/// Next-token model.
#[derive(Debug)]
pub struct Prior {
    predictor: Predictor,
}

/// The tokens of slices.
#[derive(Debug, Clone, Copy)]
pub struct TokenSlices<'a> {
    /// Codes, `[B, h, w]`, i64.
    pub codes: &'a Tensor,
    /// Tokens that form the sequences, `[B, h, w]`, bool.
    pub inside: &'a Tensor,
    /// MNI heights of the slices, `[B]`, mm.
    pub z_mm: &'a Tensor,
}

/// How tokens are redrawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling {
    /// Tokens with a negative log-likelihood above this (nats) are redrawn.
    pub limit_nats: f64,
    /// Whether the keys and values of earlier tokens are cached instead of recomputed for every token.
    pub cached: bool,
}

impl Prior {
    /// `vocabulary`: the tokenizer's; `tokens`: rows and columns of a slice.
    pub fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2]) -> Self {
        Self { predictor: Predictor::new(p, config, vocabulary, tokens) }
    }

    /// Draws new initial weights under which codes with similar codebook vectors (`[codes, D]`) have similar embeddings
    /// and similar logits. For the start of a training.
    pub fn resemble(&self, vectors: &Tensor) {
        self.predictor.resemble(vectors);
    }

    /// Negative log-likelihood (nats) of every token inside, given those before it: `[B, h, w]`, f32, computed in
    /// `kind`; 0 elsewhere.
    pub fn nll(&self, slices: TokenSlices<'_>, kind: Kind) -> Tensor {
        let packing = Packing::new(slices.inside);
        let own = packing.pack(slices.codes);
        let features = self.predictor.trunk.forward_causal(&self.before(&own), &packing, slices.z_mm, kind);
        let log_p = self.predictor.head.forward(&features).to_kind(Kind::Float).log_softmax(-1, Kind::Float);
        packing.unpack(&-log_p.gather(2, &own.unsqueeze(-1), false).squeeze_dim(-1), 0.)
    }

    /// The input of the trunk for sequences `[B, N]`: each place has the code before it, the first one "masked";
    /// `[B, N, 1]`.
    fn before(&self, own: &Tensor) -> Tensor {
        let mask_code = self.predictor.vocabulary.mask_code();
        let first = Tensor::full([own.size()[0], 1], mask_code, (Kind::Int64, own.device()));
        Tensor::cat(&[first, own.narrow(1, 0, own.size()[1] - 1)], 1).unsqueeze(-1)
    }

    /// Redraws every unlikely token inside, in raster order. Gives the new codes, and the negative log-likelihood
    /// (nats) that each token had when its turn came, both `[B, h, w]`; the latter is 0 at tokens that are not inside.
    ///
    /// `noise` gets the number of tokens N of the longest sequence and gives `[B, N, codes]`, uniform in 0..1. It
    /// determines the draw by the Gumbel trick, so the same noise gives the same tokens.
    pub fn restore(
        &self,
        slices: TokenSlices<'_>,
        noise: impl FnOnce(i64) -> Tensor,
        resampling: Resampling,
        kind: Kind,
    ) -> (Tensor, Tensor) {
        let TokenSlices { codes, inside, z_mm } = slices;
        let Predictor { trunk, head, vocabulary } = &self.predictor;
        let packing = Packing::new(inside);
        let (batch, tokens) = packing.places.size2().expect("places are [B, N]");
        let gumbel = gumbel(&noise(tokens));
        let current = packing.pack(codes);
        let mut nll = Vec::with_capacity(tokens as usize);
        let table = trunk.codes();
        let mut cache = trunk.cache(batch, kind, codes.device());
        let mut last = Tensor::full([batch], vocabulary.mask_code(), (Kind::Int64, codes.device()));
        for place in 0..tokens {
            let features = if resampling.cached {
                let before = table.embed(&last.unsqueeze(-1), kind);
                trunk.step(&before, &packing.places.select(1, place), z_mm, &mut cache)
            } else {
                trunk.forward_causal(&self.before(&current), &packing, z_mm, kind).select(1, place)
            };
            let logits = head.forward(&features).to_kind(Kind::Float);
            let old = current.select(1, place);
            let log_p = logits.log_softmax(-1, Kind::Float);
            let surprise = -log_p.gather(1, &old.unsqueeze(-1), false).squeeze_dim(-1);
            let unlikely = surprise.gt(resampling.limit_nats);
            last = (logits + gumbel.select(1, place)).argmax(-1, false).where_self(&unlikely, &old);
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
    fn a_likelihood_depends_on_earlier_tokens_alone() {
        let (_store, prior) = small();
        let codes = Tensor::randint(12, [2, 3, 4], (Kind::Int64, Device::Cpu));
        let z = Tensor::from_slice(&[-10f32, 20.]);
        // Places 0 and 9 are air.
        let inside = Tensor::ones([2, 12], (Kind::Bool, Device::Cpu));
        [0, 9].iter().for_each(|&place| inside.select(1, place).copy_(&Tensor::from(false)));
        let inside = inside.view([2, 3, 4]);
        let nll = |codes: &Tensor| prior.nll(TokenSlices { codes, inside: &inside, z_mm: &z }, Kind::Float);
        // Another code at place 6 leaves the likelihoods of places 1 to 5 as they were, and moves those from 6 on.
        let other = codes.copy();
        other.flatten(1, 2).select(1, 6).copy_(&((codes.flatten(1, 2).select(1, 6) + 5).remainder(12)));
        let moved = (nll(&other) - nll(&codes)).abs().amax([0i64].as_slice(), false).view(-1);
        let moved: Vec<f32> = Vec::try_from(moved).unwrap();
        let still = [0, 1, 2, 3, 4, 5, 9];
        assert!((0..12).all(|i| (moved[i] < 1e-6) == still.contains(&i)), "{moved:?}");
    }

    #[test]
    fn codes_with_the_same_vector_start_equally_likely() {
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
            let slices = TokenSlices { codes: &codes, inside: &inside, z_mm: &Tensor::from_slice(&[0f32]) };
            f64::try_from(prior.nll(slices, Kind::Float).sum(Kind::Double)).unwrap()
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
        let slices = TokenSlices { codes: &codes, inside: &inside, z_mm: &z };
        let restore = |cached, limit_nats| {
            let noise = |n| {
                tch::manual_seed(4);
                Tensor::rand([2, n, 12], (Kind::Float, Device::Cpu))
            };
            prior.restore(slices, noise, Resampling { limit_nats, cached }, Kind::Float)
        };
        let (full, nll) = restore(false, 2.4);
        let (cached, cached_nll) = restore(true, 2.4);
        assert_eq!(full, cached);
        assert!(f64::try_from((&nll - cached_nll).abs().max()).unwrap() < 1e-5);
        assert_ne!(full, codes, "some tokens are unlikely");
        let outside = inside.logical_not();
        assert_eq!(full.masked_select(&outside), codes.masked_select(&outside));
        // Under an infinite limit nothing is redrawn, so the likelihoods are those of a single pass.
        let (same, nll) = restore(true, f64::INFINITY);
        assert_eq!(same, codes);
        assert!(f64::try_from((nll - prior.nll(slices, Kind::Float)).abs().max()).unwrap() < 1e-5);
    }
}
