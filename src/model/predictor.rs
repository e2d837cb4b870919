//! A transformer that predicts codes: what the inpainter and the prior have in common.
//!
//! A [`Trunk`] over a slice's tokens, and a linear head that turns features `[.., width]` into one logit per code
//! `[.., codes]`.

use tch::Tensor;
use tch::nn::Path;

use super::layers::Linear;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::{self, Vocabulary};

/// Standard deviation of the head's initial weights.
const HEAD_SD: f64 = 0.02;

/// Trunk and head.
#[derive(Debug)]
pub(super) struct Predictor {
    pub(super) trunk: Trunk,
    pub(super) head: Linear,
    pub(super) vocabulary: Vocabulary,
}

impl Predictor {
    /// `tokens`: rows and columns of a slice.
    pub(super) fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2]) -> Self {
        Self {
            trunk: Trunk::new(&p / "trunk", config, vocabulary.clone(), 1, tokens),
            head: Linear::new(&p / "head", config.width, vocabulary.codes(), HEAD_SD),
            vocabulary,
        }
    }

    /// Draws new initial weights under which codes with similar codebook vectors (`[codes, D]`) have similar embeddings
    /// and similar logits.
    pub(super) fn resemble(&self, vectors: &Tensor) {
        self.trunk.resemble(vectors);
        vocabulary::resemble(self.head.weight(), vectors, HEAD_SD);
    }
}

/// Uniform numbers in 0..1 to Gumbel noise: the argmax of logits plus this noise is a draw from their softmax.
pub(super) fn gumbel(uniform: &Tensor) -> Tensor {
    -(-uniform.clamp(1e-9, 1. - 1e-7).log()).log()
}
