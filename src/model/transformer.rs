//! The trunk that detector, inpainter and prior are built on: a pre-norm transformer over one slice's tokens.
//!
//! Takes what is known of each token `[B, h, w, from]` (one-hot digits of codes) and each slice's height `[B]` (MNI z in
//! millimetres), gives features `[B, h * w, width]`. Every token sees every other, or, in the prior, those before it (Vaswani et al., arXiv 1706.03762;
//! pre-norm as in GPT-2). A token's place enters as a learned row and column embedding, the
//! slice's height as sines and cosines mapped by a linear layer.

use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

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

impl TransformerConfig {
    /// Floating point operations of one slice of `tokens` tokens with `from` inputs each and a head of `to` outputs.
    pub fn flop(&self, tokens: i64, from: i64, to: i64) -> f64 {
        let per_token = from * self.width + 12 * self.width * self.width * self.layers + self.width * to;
        let attention = 2 * tokens * self.width * self.layers;
        2. * (tokens * (per_token + attention)) as f64
    }
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

    /// `x`: `[B, N, width]`; `causal`: each token sees itself and those before it alone.
    fn forward(&self, x: &Tensor, causal: bool) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x);
        self.rest(x, &Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0., causal, None, false))
    }

    /// One more token `[B, 1, width]` after those whose keys and values are in `seen`, which gets its own.
    fn step(&self, x: &Tensor, seen: &mut [Tensor; 2]) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x);
        *seen = [Tensor::cat(&[&seen[0], &k], 2), Tensor::cat(&[&seen[1], &v], 2)];
        let [k, v] = seen;
        self.rest(x, &Tensor::scaled_dot_product_attention(&q, k, v, None::<Tensor>, 0., false, None, false))
    }

    /// Each `[B, heads, N, width / heads]`.
    fn queries_keys_values(&self, x: &Tensor) -> [Tensor; 3] {
        let (batch, tokens, width) = x.size3().expect("features are [B, N, width]");
        let all = self.qkv.forward(&self.norm1.forward(x)).view([batch, tokens, 3, self.heads, width / self.heads]);
        let all = all.permute([2, 0, 3, 1, 4]);
        [0, 1, 2].map(|which| all.get(which))
    }

    /// All that follows the attention, whose result is `mixed`, `[B, heads, N, width / heads]`.
    fn rest(&self, x: &Tensor, mixed: &Tensor) -> Tensor {
        let x = x + self.out.forward(&mixed.transpose(1, 2).reshape(x.size()));
        &x + self.down.forward(&self.up.forward(&self.norm2.forward(&x)).gelu("tanh"))
    }
}

/// Keys and values of the tokens that a causal trunk has seen, per block.
#[derive(Debug)]
pub(super) struct Cache {
    blocks: Vec<[Tensor; 2]>,
}

/// Embeddings and blocks.
#[derive(Debug)]
pub(super) struct Trunk {
    code: Linear,
    row: Embedding,
    column: Embedding,
    height: Linear,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Trunk {
    /// `from`: length of a token's row of input; `tokens`: rows and columns of a slice.
    pub(super) fn new(p: Path, config: &TransformerConfig, from: i64, tokens: [i64; 2]) -> Self {
        Self {
            code: Linear::new(&p / "code", from, config.width, 0.02),
            row: Embedding::new(&p / "row", tokens[0], config.width),
            column: Embedding::new(&p / "column", tokens[1], config.width),
            height: Linear::new(&p / "height", 2 * HEIGHT_WAVES, config.width, 0.02),
            blocks: (0..config.layers).map(|i| Block::new(&p / "block" / i, config)).collect(),
            norm: LayerNorm::new(&p / "norm", config.width),
        }
    }

    /// Every token sees every other. Computes in the kind of `input`.
    pub(super) fn forward(&self, input: &Tensor, z_mm: &Tensor) -> Tensor {
        self.run(input, z_mm, false)
    }

    /// Every token sees itself and those before it in raster order.
    pub(super) fn forward_causal(&self, input: &Tensor, z_mm: &Tensor) -> Tensor {
        self.run(input, z_mm, true)
    }

    /// Keys and values of no token yet.
    pub(super) fn cache(&self, batch: i64, kind: Kind, device: Device) -> Cache {
        let width = self.row.table(kind).size()[1];
        let none = |block: &Block| Tensor::zeros([batch, block.heads, 0, width / block.heads], (kind, device));
        Cache { blocks: self.blocks.iter().map(|block| [none(block), none(block)]).collect() }
    }

    /// Features `[B, width]` of the token at `place` in raster order, after those in `cache`; `input` is `[B, from]`.
    pub(super) fn step(&self, input: &Tensor, place: i64, z_mm: &Tensor, cache: &mut Cache) -> Tensor {
        let kind = input.kind();
        let columns = self.column.table(kind).size()[0];
        let at = self.row.table(kind).get(place / columns) + self.column.table(kind).get(place % columns);
        let height = self.height.forward(&height_code(z_mm).to_kind(kind));
        let mut x = (self.code.forward(input) + at + height).unsqueeze(1);
        for (block, seen) in self.blocks.iter().zip(&mut cache.blocks) {
            x = block.step(&x, seen);
        }
        self.norm.forward(&x).squeeze_dim(1)
    }

    fn run(&self, input: &Tensor, z_mm: &Tensor, causal: bool) -> Tensor {
        let kind = input.kind();
        let (batch, rows, columns, _) = input.size4().expect("the input is [B, rows, columns, from]");
        let place = self.row.table(kind).unsqueeze(1) + self.column.table(kind).unsqueeze(0);
        let height = self.height.forward(&height_code(z_mm).to_kind(kind));
        let mut x =
            (self.code.forward(input) + place.unsqueeze(0)).view([batch, rows * columns, -1]) + height.unsqueeze(1);
        for block in &self.blocks {
            x = block.forward(&x, causal);
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
