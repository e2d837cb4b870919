//! The trunk shared by detector and inpainter: a pre-norm transformer over one slice's tokens.
//!
//! Takes codes `[B, h, w]` (i64) and each slice's height `[B]` (MNI z in millimetres), gives
//! features `[B, h * w, width]`. Every token sees every other (Vaswani et al., arXiv 1706.03762;
//! pre-norm as in GPT-2). A token's place enters as a learned row and column embedding, the
//! slice's height as sines and cosines mapped by a linear layer.

use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

use super::layers::{Embedding, LayerNorm, Linear};

/// Sizes of a transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Features per token.
    pub width: i64,
    /// Attention heads; divides `width`.
    pub heads: i64,
    /// Blocks.
    pub layers: i64,
}

/// Frequencies of the slice-height code; the longest wave spans the head, the shortest ~1 cm.
const HEIGHT_WAVES: i64 = 6;

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    heads: i64,
}

impl Block {
    fn new(p: Path, config: &TransformerConfig) -> Self {
        let width = config.width;
        // GPT-2: residual branches start smaller with depth.
        let residual = 0.02 / (2. * config.layers as f64).sqrt();
        Self {
            norm1: LayerNorm::new(&p / "norm1", width),
            qkv: Linear::new(&p / "qkv", width, 3 * width, 0.02),
            out: Linear::new(&p / "out", width, width, residual),
            norm2: LayerNorm::new(&p / "norm2", width),
            up: Linear::new(&p / "up", width, 4 * width, 0.02),
            down: Linear::new(&p / "down", 4 * width, width, residual),
            heads: config.heads,
        }
    }

    /// `x`: `[B, N, width]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let (batch, tokens, width) = x.size3().expect("features are [B, N, width]");
        let qkv = self
            .qkv
            .forward(&self.norm1.forward(x))
            .view([batch, tokens, 3, self.heads, width / self.heads])
            .permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.get(0), qkv.get(1), qkv.get(2));
        let mixed = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0., false, None, false)
            .transpose(1, 2)
            .reshape([batch, tokens, width]);
        let x = x + self.out.forward(&mixed);
        &x + self.down.forward(&self.up.forward(&self.norm2.forward(&x)).gelu("tanh"))
    }
}

/// Embeddings and blocks.
#[derive(Debug)]
pub(super) struct Trunk {
    code: Embedding,
    row: Embedding,
    column: Embedding,
    height: Linear,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Trunk {
    /// `codes`: vocabulary size, special codes included; `tokens`: rows and columns of a slice.
    pub(super) fn new(p: Path, config: &TransformerConfig, codes: i64, tokens: [i64; 2]) -> Self {
        Self {
            code: Embedding::new(&p / "code", codes, config.width),
            row: Embedding::new(&p / "row", tokens[0], config.width),
            column: Embedding::new(&p / "column", tokens[1], config.width),
            height: Linear::new(&p / "height", 2 * HEIGHT_WAVES, config.width, 0.02),
            blocks: (0..config.layers).map(|i| Block::new(&p / "block" / i, config)).collect(),
            norm: LayerNorm::new(&p / "norm", config.width),
        }
    }

    pub(super) fn forward(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        let (batch, rows, columns) = codes.size3().expect("codes are [B, rows, columns]");
        let place = self.row.table(kind).unsqueeze(1) + self.column.table(kind).unsqueeze(0);
        let height = self.height.forward(&height_code(z_mm).to_kind(kind));
        let mut x = (self.code.forward(codes, kind) + place.unsqueeze(0)).view([batch, rows * columns, -1])
            + height.unsqueeze(1);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        self.norm.forward(&x)
    }
}

/// `[B]` millimetres to `[B, 2 * HEIGHT_WAVES]` sines and cosines.
fn height_code(z_mm: &Tensor) -> Tensor {
    let device = z_mm.device();
    let octave = Tensor::arange(HEIGHT_WAVES, (Kind::Float, device)).exp2();
    let phase = z_mm.to_kind(Kind::Float).unsqueeze(1) * octave.unsqueeze(0) * (std::f64::consts::PI / 200.);
    Tensor::cat(&[phase.sin(), phase.cos()], 1)
}
