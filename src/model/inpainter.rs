//! The inpainter: what a healthy slice would hold where tokens are masked.
//!
//! Takes codes `[B, h, w]`, the tokens that hold brain, those of them that are masked (`[B, h, w]`, bool), and slice heights
//! `[B]` (MNI z, mm); gives logits over the vocabulary for the M masked tokens `[M, codes]`, f32, in row-major order. It is the second of
//! the two transformers of MIM-OOD (arXiv 2307.14701), trained by masked image modelling and
//! decoded in a few steps, surest tokens first, as in MaskGIT (Chang et al., arXiv 2202.04200).

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::packing::Packing;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::{self, HEAD_SD, Vocabulary};

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

    /// Logits `[M, codes]` of the masked tokens, computed in `kind`; the masked ones must be among those inside.
    pub fn forward(&self, slices: &Masked<'_>, kind: Kind) -> Tensor {
        let (packing, open) = slices.pack();
        let codes = packing.pack(&slices.codes.masked_fill(slices.mask, self.vocabulary.mask_code()));
        self.logits(slices, &codes, &packing, &open, kind)
    }

    /// Only masked tokens, `open`, need the head: a small part of a slice, and the vocabulary is wide.
    fn logits(&self, slices: &Masked<'_>, codes: &Tensor, packing: &Packing, open: &Tensor, kind: Kind) -> Tensor {
        let features = self.trunk.forward(&codes.unsqueeze(-1), packing, slices.z_mm, kind).flatten(0, 1);
        let logits = match slices.shared {
            true => self.head.forward(&features).index_select(0, open),
            false => self.head.forward(&features.index_select(0, open)),
        };
        logits.to_kind(Kind::Float)
    }

    /// Slices whose masked tokens are the mean of what a healthy slice would hold, in one pass: what many draws of
    /// [`Inpainter::restore`] come to on average. `table` `[codes, D]` is what the decoder sees of each code; gives what
    /// it is to see of the slices, `[B, h, w, D]`, and, for the masked tokens, the negative log-likelihood (nats) of the
    /// code they had; zero elsewhere.
    pub fn mean(&self, slices: &Masked<'_>, table: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let log_p = self.forward(slices, kind).log_softmax(-1, Kind::Float);
        let places = slices.places();
        let nll = slices.plane(&-slices.likelihood(&log_p), 0.);
        let given = table.index_select(0, &slices.codes.reshape([-1]));
        let p = log_p.exp();
        let vectors = match slices.shared {
            true => {
                let all = Tensor::zeros([given.size()[0], p.size()[1]], (p.kind(), p.device()));
                all.index_copy(0, &places, &p).matmul(table).index_select(0, &places)
            }
            false => p.matmul(table),
        };
        let mean = given.index_copy(0, &places, &vectors);
        let shape = [slices.codes.size(), vec![-1]].concat();
        (mean.view(shape.as_slice()), nll)
    }

    /// Replaces the masked tokens by what is likely in a healthy slice, in `steps` passes.
    ///
    /// `noise` (`[M, codes]` for the M masked tokens in row-major order, uniform in 0..1) makes the
    /// draw: the code with the highest `logit / temperature + Gumbel(noise)` is taken, so the same
    /// noise gives the same tokens. Returns the new codes and, for the masked tokens, the negative
    /// log-likelihood (nats) of the code they had, given all that was not masked; zero elsewhere.
    pub fn restore(&self, slices: &Masked<'_>, noise: &Tensor, decoding: Decoding, kind: Kind) -> (Tensor, Tensor) {
        let Decoding { steps, temperature } = decoding;
        let gumbel = -(-noise.clamp(1e-9, 1. - 1e-7).log()).log();
        let (packing, all) = slices.pack();
        let n_masked = slices.mask.sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float);
        let mut open = slices.mask.shallow_clone();
        let mut current = slices.codes.masked_fill(&open, self.vocabulary.mask_code());
        let mut nll = open.zeros_like().to_kind(Kind::Float);
        for step in 0..steps {
            let logits = self.logits(slices, &packing.pack(&current), &packing, &all, kind);
            let log_p = logits.log_softmax(-1, Kind::Float);
            if step == 0 {
                nll = slices.plane(&-slices.likelihood(&log_p), 0.);
            }
            let drawn = (&logits / temperature + &gumbel).argmax(-1, true);
            let sure = slices.plane(&log_p.gather(1, &drawn, false).squeeze_dim(1), f64::INFINITY);
            // MaskGIT's cosine schedule: how many of the masked tokens stay open after this step.
            let left = (std::f64::consts::FRAC_PI_2 * (step + 1) as f64 / steps as f64).cos();
            let keep_open = if step + 1 == steps { n_masked.zeros_like() } else { (&n_masked * left).floor() };
            let sure = sure.masked_fill(&open.logical_not(), f64::INFINITY).flatten(1, 2);
            let rank = sure.argsort(1, false).argsort(1, false).view_as(&open);
            let still_open = open.logical_and(&rank.lt_tensor(&keep_open));
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
    /// What the tokens are, masked ones included, `[B, h, w]`.
    pub codes: &'a Tensor,
    /// Tokens that hold brain, `[B, h, w]`, bool.
    pub inside: &'a Tensor,
    /// Tokens that the network must not see, all of them inside, `[B, h, w]`, bool.
    pub mask: &'a Tensor,
    /// MNI heights, `[B]`, mm.
    pub z_mm: &'a Tensor,
    /// Whether they are of several scans. Products then have one shape, however many tokens are masked: a device may compute
    /// one of another shape in another order, and a slice's numbers must not depend on those beside it.
    pub shared: bool,
}

impl Masked<'_> {
    /// The sequences, and where in them (flat) the masked tokens are.
    fn pack(&self) -> (Packing, Tensor) {
        let packing = Packing::new(self.inside);
        let open = packing.pack(self.mask).logical_and(&packing.real).view(-1).nonzero().squeeze_dim(1);
        (packing, open)
    }

    /// Where (flat) the masked tokens are.
    fn places(&self) -> Tensor {
        self.mask.flatten(0, 2).nonzero().squeeze_dim(1)
    }

    /// Values of the masked tokens `[M]` at their places, `[B, h, w]`.
    fn plane(&self, values: &Tensor, elsewhere: f64) -> Tensor {
        let all = Tensor::full(self.mask.numel() as i64, elsewhere, (values.kind(), values.device()));
        all.index_copy(0, &self.places(), values).view_as(self.mask)
    }

    /// Log-likelihood of the codes that the masked tokens have, `[M]`.
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
        // What lies outside is not looked at.
        let other = codes.where_self(&inside, &(&codes + 7).remainder(40));
        let slices = Masked { codes: &other, ..slices };
        let elsewhere = inpainter.restore(&slices, &noise, decoding, Kind::Float).0;
        assert_eq!(elsewhere.masked_select(&inside), restored.masked_select(&inside));
    }
}
