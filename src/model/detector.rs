//! The detector: which tokens of a slice are anomalous.
//!
//! Takes codes `[B, h, w]` and slice heights `[B]` (MNI z, mm), gives one logit per token
//! `[B, h, w]`, f32; its sigmoid is `p_anomalous`. It is the first of the two task-specific
//! transformers of MIM-OOD (arXiv 2307.14701); trained on tokens of healthy slices with synthetic
//! anomalies, the target being the fraction of the token's cell that is anomalous.

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::transformer::{TransformerConfig, Trunk};

/// Anomalous-token identifier.
#[derive(Debug)]
pub struct Detector {
    trunk: Trunk,
    head: Linear,
}

impl Detector {
    /// `codes`: the tokenizer's vocabulary; `tokens`: rows and columns of a slice.
    pub fn new(p: Path, config: &TransformerConfig, codes: i64, tokens: [i64; 2]) -> Self {
        Self {
            trunk: Trunk::new(&p / "trunk", config, codes, tokens),
            head: Linear::new(&p / "head", config.width, 1, 0.02),
        }
    }

    /// Logits `[B, h, w]`, computed in `kind`.
    pub fn forward(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        self.head.forward(&self.trunk.forward(codes, z_mm, kind)).to_kind(Kind::Float).view_as(codes)
    }
}
