//! The detector: which tokens of a slice are anomalous, and which pixels of them.
//!
//! Takes the codes of a slice and of the slices 4 mm below and above it `[B, 3, h, w]`, the tokens that hold brain
//! `[B, h, w]` and the slice's height `[B]` (MNI z, mm), gives one logit per pixel of the slice `[B, H, W]`, f32. The
//! sigmoid's mean over a token's pixels is its `p_anomalous`. It is the first of the two task-specific transformers of
//! MIM-OOD (arXiv 2307.14701); trained on tokens of healthy slices with synthetic anomalies. A code tells, with its
//! neighbours, what its pixels look like (the decoder shows it), so a token can say which of its pixels are anomalous: maps
//! come in pixels and not in cells. What is anomalous goes on in the neighbouring slices, what is noise does not, so they
//! are shown to it (2.5-D).

use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::Linear;
use super::packing::Packing;
use super::transformer::{TransformerConfig, Trunk};
use super::vocabulary::Vocabulary;

/// Slices that the detector sees, counted from the one it judges, in slices of 2 mm.
pub const CONTEXT: [i64; 3] = [-2, 0, 2];

/// Logit of pixels of tokens that hold no brain.
const AIR: f64 = -20.;

/// Anomalous-token identifier.
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

    /// For a training's begin: codes look alike where their vectors (`[codes, D]`) do.
    pub fn resemble(&self, vectors: &Tensor) {
        self.trunk.resemble(vectors);
    }

    /// Codes `[B, 3, h, w]` to logits of pixels `[B, H, W]`, computed in `kind`; -20 where `inside` (`[B, h, w]`, bool) is
    /// not set.
    pub fn forward(&self, codes: &Tensor, inside: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let (batch, _, rows, columns) = codes.size4().expect("codes are [B, slices, rows, columns]");
        let packing = Packing::new(inside);
        let seen = packing.pack_slices(codes).transpose(1, 2);
        let logits = self.head.forward(&self.trunk.forward(&seen, &packing, z_mm, kind)).to_kind(Kind::Float);
        // A plane per pixel of the cell, then the planes woven together.
        let planes = packing.unpack_features(&logits, AIR).permute([0, 3, 1, 2]).contiguous();
        planes.pixel_shuffle(self.cell).view([batch, rows * self.cell, columns * self.cell])
    }

    /// Logits of pixels `[B, H, W]` to the tokens' `p_anomalous` `[B, h, w]`: the mean over each token's pixels.
    pub fn token_probability(&self, logits: &Tensor) -> Tensor {
        let cell = [self.cell, self.cell];
        logits.sigmoid().unsqueeze(1).avg_pool2d(cell, cell, [0, 0], false, true, None).squeeze_dim(1)
    }
}
