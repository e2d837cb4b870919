//! The inpainter: what a healthy slice would hold where tokens are masked.
//!
//! Takes codes `[B, h, w]` in which masked tokens carry [`Inpainter::mask_code`], and slice heights
//! `[B]` (MNI z, mm); gives logits over the vocabulary `[B, h, w, codes]`, f32. It is the second of
//! the two transformers of MIM-OOD (arXiv 2307.14701), trained by masked image modelling and
//! decoded in a few steps, surest tokens first, as in MaskGIT (Chang et al., arXiv 2202.04200).

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::Vocabulary;

/// Masked-token model.
#[derive(Debug)]
pub struct Inpainter {
    trunk: Trunk,
    head: Linear,
    vocabulary: Vocabulary,
}

impl Inpainter {
    /// `vocabulary`: the tokenizer's; `tokens`: rows and columns of a slice.
    pub fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2]) -> Self {
        Self {
            trunk: Trunk::new(&p / "trunk", config, vocabulary.width(), tokens),
            head: Linear::new(&p / "head", config.width, vocabulary.codes(), 0.02),
            vocabulary,
        }
    }

    /// The code that stands for "masked".
    pub fn mask_code(&self) -> i64 {
        self.vocabulary.mask_code()
    }

    /// Logits `[B, h, w, codes]`, computed in `kind`.
    pub fn forward(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let (batch, rows, columns) = codes.size3().expect("codes are [B, rows, columns]");
        self.head.forward(&self.features(codes, z_mm, kind)).to_kind(Kind::Float).view([
            batch,
            rows,
            columns,
            self.vocabulary.codes(),
        ])
    }

    /// `[B, h * w, width]`.
    fn features(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        self.trunk.forward(&self.vocabulary.one_hot(codes, kind), z_mm)
    }

    /// Digits `[B, h, w, D]` of a slice whose masked tokens are the mean of what a healthy slice would hold, in one pass:
    /// what many draws of [`Inpainter::restore`] come to on average. Also gives, for the masked tokens, the negative
    /// log-likelihood (nats) of the code they had; zero elsewhere.
    pub fn mean(&self, codes: &Tensor, mask: &Tensor, z_mm: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let places = mask.flatten(0, 2).nonzero().squeeze_dim(1);
        let hidden = codes.masked_fill(mask, self.mask_code());
        let features = self.features(&hidden, z_mm, kind).flatten(0, 1).index_select(0, &places);
        let log_p = self.head.forward(&features).to_kind(Kind::Float).log_softmax(-1, Kind::Float);
        let had = codes.flatten(0, 2).index_select(0, &places).unsqueeze(1);
        let nll = mask.zeros_like().to_kind(Kind::Float).flatten(0, 2);
        let nll = nll.index_copy(0, &places, &-log_p.gather(1, &had, false).squeeze_dim(1)).view_as(mask);
        let digits = self.vocabulary.digits(codes).to_kind(Kind::Float);
        let mean = digits.flatten(0, 2).index_copy(0, &places, &self.vocabulary.mean_digits(&log_p.exp()));
        (mean.view_as(&digits), nll)
    }

    /// Replaces the tokens where `mask` (`[B, h, w]`, bool) is set by what is likely in a healthy
    /// slice, in `steps` passes.
    ///
    /// `noise` (`[M, codes]` for the M masked tokens in row-major order, uniform in 0..1) makes the
    /// draw: the code with the highest `logit / temperature + Gumbel(noise)` is taken, so the same
    /// noise gives the same tokens. Returns the new codes and, for the masked tokens, the negative
    /// log-likelihood (nats) of the code they had, given all that was not masked; zero elsewhere.
    pub fn restore(
        &self,
        codes: &Tensor,
        mask: &Tensor,
        z_mm: &Tensor,
        noise: &Tensor,
        decoding: Decoding,
        kind: Kind,
    ) -> (Tensor, Tensor) {
        let Decoding { steps, temperature } = decoding;
        let gumbel = -(-noise.clamp(1e-9, 1. - 1e-7).log()).log();
        // Only masked tokens need the head: a small part of a slice, and the vocabulary is wide.
        let places = mask.flatten(0, 2).nonzero().squeeze_dim(1);
        let plane = |values: &Tensor, elsewhere: f64| {
            let all = Tensor::full(mask.numel() as i64, elsewhere, (values.kind(), values.device()));
            all.index_copy(0, &places, values).view_as(mask)
        };
        let had = codes.flatten(0, 2).index_select(0, &places).unsqueeze(1);
        let n_masked = mask.sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float);
        let mut open = mask.shallow_clone();
        let mut current = codes.masked_fill(&open, self.mask_code());
        let mut nll = mask.zeros_like().to_kind(Kind::Float);
        for step in 0..steps {
            let features = self.features(&current, z_mm, kind).flatten(0, 1).index_select(0, &places);
            let logits = self.head.forward(&features).to_kind(Kind::Float);
            let log_p = logits.log_softmax(-1, Kind::Float);
            if step == 0 {
                nll = plane(&-log_p.gather(1, &had, false).squeeze_dim(1), 0.);
            }
            let drawn = (&logits / temperature + &gumbel).argmax(-1, true);
            let sure = plane(&log_p.gather(1, &drawn, false).squeeze_dim(1), f64::INFINITY);
            // MaskGIT's cosine schedule: how many of the masked tokens stay open after this step.
            let left = (std::f64::consts::FRAC_PI_2 * (step + 1) as f64 / steps as f64).cos();
            let keep_open = if step + 1 == steps { n_masked.zeros_like() } else { (&n_masked * left).floor() };
            let sure = sure.masked_fill(&open.logical_not(), f64::INFINITY).flatten(1, 2);
            let rank = sure.argsort(1, false).argsort(1, false).view_as(&open);
            let still_open = open.logical_and(&rank.lt_tensor(&keep_open));
            let fixed_now = open.logical_and(&still_open.logical_not());
            current = plane(&drawn.squeeze_dim(1), 0.).where_self(&fixed_now, &current);
            open = still_open;
        }
        (current, nll)
    }
}

/// How masked tokens are decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decoding {
    /// Passes of the network; at least 1.
    pub steps: i64,
    /// Sharpness of the draw: below 1 it prefers likely tokens more.
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
        let masked = i64::try_from(mask.sum(Kind::Int64)).unwrap();
        let noise = Tensor::rand([masked, 40], (Kind::Float, Device::Cpu));
        let decoding = Decoding { steps: 4, temperature: 1. };
        let (restored, nll) = inpainter.restore(&codes, &mask, &z, &noise, decoding, Kind::Float);
        let outside = mask.logical_not();
        assert_eq!(restored.masked_select(&outside), codes.masked_select(&outside));
        assert!(i64::try_from(restored.max()).unwrap() < 40, "no token is left masked");
        assert!(f64::try_from(nll.masked_select(&mask).min()).unwrap() > 0.);
        let again = inpainter.restore(&codes, &mask, &z, &noise, decoding, Kind::Float).0;
        assert_eq!(restored, again);
    }
}
