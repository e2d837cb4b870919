//! The detector: which tokens of a slice are anomalous.
//!
//! Takes the codes of a slice and of the slices 4 mm below and above it `[B, 3, h, w]` and the slice's height `[B]` (MNI
//! z, mm), gives one logit per token of the slice `[B, h, w]`, f32; its sigmoid is `p_anomalous`. It is the first of the
//! two task-specific transformers of MIM-OOD (arXiv 2307.14701); trained on tokens of healthy slices with synthetic
//! anomalies, the target being the fraction of the token's cell that is anomalous. What is anomalous goes on in the
//! neighbours, what is noise does not, so they are shown to it (2.5-D).

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::Vocabulary;

/// Slices that the detector sees, counted from the one it judges, in slices of 2 mm.
pub const CONTEXT: [i64; 3] = [-2, 0, 2];

/// Anomalous-token identifier.
#[derive(Debug)]
pub struct Detector {
    trunk: Trunk,
    head: Linear,
    vocabulary: Vocabulary,
}

impl Detector {
    /// `vocabulary`: the tokenizer's; `tokens`: rows and columns of a slice.
    pub fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2]) -> Self {
        Self {
            trunk: Trunk::new(&p / "trunk", config, vocabulary.width() * CONTEXT.len() as i64, tokens),
            head: Linear::new(&p / "head", config.width, 1, 0.02),
            vocabulary,
        }
    }

    /// Codes `[B, 3, h, w]` to logits `[B, h, w]`, computed in `kind`.
    pub fn forward(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let (batch, _, rows, columns) = codes.size4().expect("codes are [B, slices, rows, columns]");
        let seen = self.vocabulary.one_hot(codes, kind).permute([0, 2, 3, 1, 4]).flatten(3, 4);
        let logits = self.head.forward(&self.trunk.forward(&seen, z_mm));
        logits.to_kind(Kind::Float).view([batch, rows, columns])
    }
}
