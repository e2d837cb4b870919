//! The inpainter: which codes a healthy slice would have in place of masked ones.
//!
//! ```text
//! codes, inside, mask [B, h, w], z_mm [B] ──► logits of the M masked tokens [M, codes]
//! ```
//! Input: the codes of a slice, the tokens that hold brain (bool), those among them that are masked (bool), and the
//! slice's MNI height in mm. Output: logits over the vocabulary, f32, with the masked tokens in row-major order. It is
//! the second of the two transformers of MIM-OOD (arXiv 2307.14701), trained by masked image modelling.
//! [`Inpainter::restore`] decodes in a few steps, the most certain tokens first, as MaskGIT does (Chang et al., arXiv
//! 2202.04200).

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::packing::Packing;
use super::predictor::{Predictor, gumbel};
use super::transformer::TransformerConfig;
use super::vocabulary::Vocabulary;

/// Masked-token model.
#[derive(Debug)]
pub struct Inpainter {
    predictor: Predictor,
}

impl Inpainter {
    /// `vocabulary`: the tokenizer's; `tokens`: rows and columns of a slice.
    pub fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2]) -> Self {
        Self { predictor: Predictor::new(p, config, vocabulary, tokens) }
    }

    /// Draws new initial weights under which codes with similar codebook vectors (`[codes, D]`) have similar embeddings
    /// and similar logits. For the start of a training.
    pub fn resemble(&self, vectors: &Tensor) {
        self.predictor.resemble(vectors);
    }

    /// Logits `[M, codes]` of the masked tokens, f32, computed in `kind`.
    pub fn forward(&self, slices: &Masked<'_>, kind: Kind) -> Tensor {
        let (packing, open) = slices.pack();
        let mask_code = self.predictor.vocabulary.mask_code();
        let codes = packing.pack(&slices.codes.masked_fill(slices.mask, mask_code));
        self.logits(slices, &codes, &packing, &open, kind)
    }

    /// Packed codes `[B, N]` to logits of the masked tokens `[M, codes]`; `open` `[M]` are their flat indices in the
    /// sequences. The head runs on masked tokens alone: they are a small part of a slice, and the vocabulary is wide.
    fn logits(&self, slices: &Masked<'_>, codes: &Tensor, packing: &Packing, open: &Tensor, kind: Kind) -> Tensor {
        let features = self.predictor.trunk.forward(&codes.unsqueeze(-1), packing, slices.z_mm, kind).flatten(0, 1);
        let logits = match slices.shared {
            true => self.predictor.head.forward(&features).index_select(0, open),
            false => self.predictor.head.forward(&features.index_select(0, open)),
        };
        logits.to_kind(Kind::Float)
    }

    /// Restores slices in one pass: a masked token's embedding is the mean over all codes, weighted by their
    /// probabilities, to which the average of many draws of [`Inpainter::restore`] comes close.
    ///
    /// `table` `[codes, D]` holds the decoder's embedding of each code. Gives the decoder's input `[B, h, w, D]`, and
    /// the negative log-likelihood (nats) of the code that each masked token had, `[B, h, w]`; 0 at the other tokens.
    pub fn mean(&self, slices: &Masked<'_>, table: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let log_p = self.forward(slices, kind).log_softmax(-1, Kind::Float);
        let places = slices.places();
        let nll = slices.plane(&-slices.likelihood(&log_p), 0.);
        let unchanged = table.index_select(0, &slices.codes.reshape([-1]));
        let p = log_p.exp();
        let vectors = match slices.shared {
            true => {
                let all = Tensor::zeros([unchanged.size()[0], p.size()[1]], (p.kind(), p.device()));
                all.index_copy(0, &places, &p).matmul(table).index_select(0, &places)
            }
            false => p.matmul(table),
        };
        let mean = unchanged.index_copy(0, &places, &vectors);
        let shape = [slices.codes.size(), vec![-1]].concat();
        (mean.view(shape.as_slice()), nll)
    }

    /// Draws codes for the masked tokens, in [`Decoding::steps`] passes.
    ///
    /// `noise` (`[M, codes]`, uniform in 0..1, masked tokens in row-major order) determines the draw: a token gets the
    /// code with the highest `logit / temperature + Gumbel(noise)`, so the same noise gives the same codes. Gives the
    /// new codes, and the negative log-likelihood (nats) of the code that each masked token had, given all tokens that
    /// are not masked; both `[B, h, w]`, the latter 0 at tokens that are not masked.
    pub fn restore(&self, slices: &Masked<'_>, noise: &Tensor, decoding: Decoding, kind: Kind) -> (Tensor, Tensor) {
        let Decoding { steps, temperature } = decoding;
        let gumbel = gumbel(noise);
        let (packing, all) = slices.pack();
        let n_masked = slices.mask.sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float);
        let mut open = slices.mask.shallow_clone();
        let mut current = slices.codes.masked_fill(&open, self.predictor.vocabulary.mask_code());
        let mut nll = open.zeros_like().to_kind(Kind::Float);
        for step in 0..steps {
            let logits = self.logits(slices, &packing.pack(&current), &packing, &all, kind);
            let log_p = logits.log_softmax(-1, Kind::Float);
            if step == 0 {
                nll = slices.plane(&-slices.likelihood(&log_p), 0.);
            }
            let drawn = (&logits / temperature + &gumbel).argmax(-1, true);
            let confidence = slices.plane(&log_p.gather(1, &drawn, false).squeeze_dim(1), f64::INFINITY);
            // MaskGIT's cosine schedule: the share of the masked tokens that stay open after this step.
            let share = (std::f64::consts::FRAC_PI_2 * (step + 1) as f64 / steps as f64).cos();
            let n_open = if step + 1 == steps { n_masked.zeros_like() } else { (&n_masked * share).floor() };
            let confidence = confidence.masked_fill(&open.logical_not(), f64::INFINITY).flatten(1, 2);
            let rank = confidence.argsort(1, false).argsort(1, false).view_as(&open);
            let still_open = open.logical_and(&rank.lt_tensor(&n_open));
            let fixed_now = open.logical_and(&still_open.logical_not());
            current = slices.plane(&drawn.squeeze_dim(1), 0.).where_self(&fixed_now, &current);
            open = still_open;
        }
        (current, nll)
    }
}

/// Slices with masked tokens.
#[derive(Debug, Clone, Copy)]
pub struct Masked<'a> {
    /// Codes, those of masked tokens included, `[B, h, w]`, i64.
    pub codes: &'a Tensor,
    /// Tokens that hold brain, `[B, h, w]`, bool.
    pub inside: &'a Tensor,
    /// Tokens that are hidden from the network; all of them must be inside. `[B, h, w]`, bool.
    pub mask: &'a Tensor,
    /// MNI heights of the slices, `[B]`, mm.
    pub z_mm: &'a Tensor,
    /// Whether the slices are of several scans. Matrix products then have the same shape whatever the number of masked
    /// tokens: a device may sum in another order for another shape, and a slice's numbers must not depend on the other
    /// slices of its batch.
    pub shared: bool,
}

impl Masked<'_> {
    /// The sequences, and the flat indices of the masked tokens in them, `[M]`.
    fn pack(&self) -> (Packing, Tensor) {
        let packing = Packing::new(self.inside);
        let open = packing.pack(self.mask).logical_and(&packing.real).view(-1).nonzero().squeeze_dim(1);
        (packing, open)
    }

    /// The flat indices of the masked tokens in `[B, h, w]`, `[M]`.
    fn places(&self) -> Tensor {
        self.mask.flatten(0, 2).nonzero().squeeze_dim(1)
    }

    /// A plane `[B, h, w]` with the values `[M]` at the masked tokens and `elsewhere` at the others.
    fn plane(&self, values: &Tensor, elsewhere: f64) -> Tensor {
        let all = Tensor::full(self.mask.numel() as i64, elsewhere, (values.kind(), values.device()));
        all.index_copy(0, &self.places(), values).view_as(self.mask)
    }

    /// Log-probabilities `[M, codes]` to those of the codes that the masked tokens have, `[M]`.
    fn likelihood(&self, log_p: &Tensor) -> Tensor {
        let had = self.codes.flatten(0, 2).index_select(0, &self.places()).unsqueeze(1);
        log_p.gather(1, &had, false).squeeze_dim(1)
    }
}

/// How masked tokens are decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decoding {
    /// Passes of the network; at least 1.
    pub steps: i64,
    /// Temperature of the draw: below 1, likely codes are drawn more often than their probability.
    pub temperature: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tch::nn::VarStore;

    #[test]
    fn restoring_changes_masked_tokens_only_and_repeats() {
        tch::manual_seed(1);
        let vs = VarStore::new(Device::Cpu);
        let config = TransformerConfig { width: 16, heads: 2, layers: 1 };
        let inpainter = Inpainter::new(vs.root(), &config, Vocabulary::new(&[8, 5]), [6, 5]);
        let codes = Tensor::randint(40, [3, 6, 5], (Kind::Int64, Device::Cpu));
        let mask = Tensor::rand([3, 6, 5], (Kind::Float, Device::Cpu)).lt(0.3);
        let z = Tensor::from_slice(&[-10f32, 0., 30.]);
        let inside = mask.logical_or(&Tensor::rand([3, 6, 5], (Kind::Float, Device::Cpu)).lt(0.7));
        let masked = i64::try_from(mask.sum(Kind::Int64)).unwrap();
        let noise = Tensor::rand([masked, 40], (Kind::Float, Device::Cpu));
        let decoding = Decoding { steps: 4, temperature: 1. };
        let slices = Masked { codes: &codes, inside: &inside, mask: &mask, z_mm: &z, shared: false };
        let (restored, nll) = inpainter.restore(&slices, &noise, decoding, Kind::Float);
        let outside = mask.logical_not();
        assert_eq!(restored.masked_select(&outside), codes.masked_select(&outside));
        assert!(i64::try_from(restored.max()).unwrap() < 40, "no token is left masked");
        assert!(f64::try_from(nll.masked_select(&mask).min()).unwrap() > 0.);
        let again = inpainter.restore(&slices, &noise, decoding, Kind::Float).0;
        assert_eq!(restored, again);
        // Codes outside the brain have no influence.
        let other = codes.where_self(&inside, &(&codes + 7).remainder(40));
        let slices = Masked { codes: &other, ..slices };
        let elsewhere = inpainter.restore(&slices, &noise, decoding, Kind::Float).0;
        assert_eq!(elsewhere.masked_select(&inside), restored.masked_select(&inside));
    }
}
