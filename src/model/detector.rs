//! The detector: which tokens of a slice are anomalous, and which of their pixels.
//!
//! ```text
//! codes [B, 3, h, w], inside [B, h, w], z_mm [B] ──► logits of pixels [B, H, W] ── sigmoid, mean ──► p_anomalous [B, h, w]
//! ```
//! Input: the codes of a slice and of the slices 4 mm below and above it, the tokens that hold brain (bool), and the
//! slice's MNI height in mm. Output: one logit per pixel of the slice, f32. A token's `p_anomalous` is the mean of the
//! sigmoid over its pixels. The detector is the first of the two transformers of MIM-OOD (arXiv 2307.14701), trained on
//! tokens of healthy slices with synthetic anomalies. It extends the paper's:
//! - It judges pixels, not tokens. The decoder shows that a code and its neighbours determine the pixels of a token, so
//!   the codes also hold which of these pixels are anomalous.
//! - It sees neighbouring slices (2.5-D), because an anomaly extends into them and noise does not.

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::packing::Packing;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::Vocabulary;

/// The slices that the detector sees, as offsets from the slice it judges, in slices of 2 mm.
pub const CONTEXT: [i64; 3] = [-2, 0, 2];

/// Logit of the pixels of tokens without brain.
const AIR: f64 = -20.;

/// Trunk, and a head with one logit per pixel of a token.
#[derive(Debug)]
pub struct Detector {
    trunk: Trunk,
    head: Linear,
    cell: i64,
}

impl Detector {
    /// `vocabulary`: the tokenizer's; `tokens`: rows and columns of a slice; `cell`: pixels of a token along each axis.
    pub fn new(p: Path, config: &TransformerConfig, vocabulary: Vocabulary, tokens: [i64; 2], cell: i64) -> Self {
        Self {
            trunk: Trunk::new(&p / "trunk", config, vocabulary, CONTEXT.len() as i64, tokens),
            head: Linear::new(&p / "head", config.width, cell * cell, 0.02),
            cell,
        }
    }

    /// Draws new initial embeddings under which codes with similar codebook vectors (`[codes, D]`) are similar. For the
    /// start of a training.
    pub fn resemble(&self, vectors: &Tensor) {
        self.trunk.resemble(vectors);
    }

    /// Codes `[B, 3, h, w]` to logits of pixels `[B, H, W]`, f32, computed in `kind`; -20 where `inside` (`[B, h, w]`,
    /// bool) is false.
    pub fn forward(&self, codes: &Tensor, inside: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let (batch, _, rows, columns) = codes.size4().expect("codes are [B, slices, rows, columns]");
        let packing = Packing::new(inside);
        let seen = packing.pack_slices(codes).transpose(1, 2);
        let logits = self.head.forward(&self.trunk.forward(&seen, &packing, z_mm, kind)).to_kind(Kind::Float);
        // One plane per pixel of a cell; the shuffle interleaves them to the slice.
        let planes = packing.unpack_features(&logits, AIR).permute([0, 3, 1, 2]).contiguous();
        planes.pixel_shuffle(self.cell).view([batch, rows * self.cell, columns * self.cell])
    }

    /// Logits of pixels `[B, H, W]` to the tokens' `p_anomalous` `[B, h, w]`: the mean over each token's pixels.
    pub fn token_probability(&self, logits: &Tensor) -> Tensor {
        let cell = [self.cell, self.cell];
        logits.sigmoid().unsqueeze(1).avg_pool2d(cell, cell, [0, 0], false, true, None).squeeze_dim(1)
    }
}
