//! The trunk of detector, inpainter and prior: a pre-norm transformer over the tokens of one slice.
//!
//! ```text
//! codes [B, N, slices], places [B, N] (in Packing), z_mm [B] ──► features [B, N, width]
//! ```
//! Input: the codes of each token that holds brain, in one slice or several; the places of these tokens; the slice's
//! MNI height in mm. Every token attends to every other or, in the prior, to those before it (Vaswani et al., arXiv
//! 1706.03762; pre-norm as in GPT-2). A token's place enters as a learned row and column embedding, the slice's height
//! as sines and cosines mapped by a linear layer.

use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::layers::{Embedding, Height, LayerNorm, Linear, gelu, plus};
use super::packing::Packing;
use super::vocabulary::{CodeEmbedding, CodeTable, Vocabulary};
use crate::config::Section;
use crate::error::{Error, Result};

/// Sizes of a transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Features per token.
    pub width: i64,
    /// Attention heads; must divide `width`.
    pub heads: i64,
    /// Number of blocks.
    pub layers: i64,
}

impl TransformerConfig {
    /// Checks the sizes; `key` is where they are written, such as `detector`.
    ///
    /// # Errors
    /// [`Error::Config`] where a size is out of range, or the heads do not divide the width.
    pub fn validate(&self, key: &str) -> Result<()> {
        let section = Section(key);
        section.within("width", self.width, 1..=8192)?;
        section.within("layers", self.layers, 1..=256)?;
        section.within("heads", self.heads, 1..=self.width)?;
        if self.width % self.heads == 0 {
            return Ok(());
        }
        let Self { heads, width, .. } = self;
        Err(Error::Config(format!("{key}.heads is {heads}; expected a divisor of the width, which is {width}")))
    }

    /// Number of weights of its blocks' linear layers; those of the whole network are more.
    pub(super) fn least_weights(&self) -> i64 {
        12 * self.width * self.width * self.layers
    }

    /// Floating point operations for one slice of `tokens` tokens, with a head of `to` outputs per token.
    pub fn flop(&self, tokens: i64, to: i64) -> f64 {
        let per_token = 12 * self.width * self.width * self.layers + self.width * to;
        let attention = 2 * tokens * self.width * self.layers;
        2. * (tokens * (per_token + attention)) as f64
    }
}

/// Attention and a two-layer perceptron, each with a residual connection: `[B, N, width]` to `[B, N, width]`.
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
        // GPT-2: the deeper the network, the smaller the initial weights of residual branches.
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

    /// `x`: `[B, N, width]`; `bias`: added to the attention logits, `[B, 1, 1, N]`; `causal`: each token attends to
    /// itself and those before it alone.
    fn forward(&self, x: &Tensor, bias: Option<&Tensor>, causal: bool) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x);
        self.rest(x, &Tensor::scaled_dot_product_attention(&q, &k, &v, bias, 0., causal, None, false))
    }

    /// Features `[B, 1, width]` of token number `place`, which attends to itself and to the tokens whose keys and
    /// values are in `cached`. Adds its own key and value to them.
    fn step(&self, x: &Tensor, cached: &mut [Tensor; 2], place: i64) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x);
        let [k, v] = [(0, k), (1, v)].map(|(which, new)| {
            let store = &mut cached[which];
            if store.size()[2] == place {
                // Doubling the capacity makes the copies of earlier tokens rare.
                *store = store.constant_pad_nd([0, 0, 0, place.max(MIN_CAPACITY)]);
            }
            store.narrow(2, place, 1).copy_(&new);
            store.narrow(2, 0, place + 1)
        });
        self.rest(x, &Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0., false, None, false))
    }

    /// Queries, keys and values of `[B, N, width]`, each `[B, heads, N, width / heads]`.
    fn queries_keys_values(&self, x: &Tensor) -> [Tensor; 3] {
        let (batch, tokens, width) = x.size3().expect("features are [B, N, width]");
        let all = self.qkv.forward(&self.norm1.forward(x)).view([batch, tokens, 3, self.heads, width / self.heads]);
        let all = all.permute([2, 0, 3, 1, 4]);
        [0, 1, 2].map(|which| all.get(which))
    }

    /// The block after its attention, whose result is `mixed`, `[B, heads, N, width / heads]`.
    fn rest(&self, x: &Tensor, mixed: &Tensor) -> Tensor {
        let x = plus(x, self.out.forward(&mixed.transpose(1, 2).reshape(x.size())));
        plus(&x, self.down.forward(&gelu(self.up.forward(&self.norm2.forward(&x)))))
    }
}

/// Tokens that a cache has capacity for from the first one on.
const MIN_CAPACITY: i64 = 64;

/// Keys and values of the tokens that a causal trunk has processed, per block `[B, heads, capacity, width / heads]`.
#[derive(Debug)]
pub(super) struct Cache {
    blocks: Vec<[Tensor; 2]>,
    tokens: i64,
}

/// Embeddings and blocks.
#[derive(Debug)]
pub(super) struct Trunk {
    code: CodeEmbedding,
    row: Embedding,
    column: Embedding,
    height: Height,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Trunk {
    /// `slices`: codes per token; `tokens`: rows and columns of a slice.
    pub(super) fn new(
        p: Path,
        config: &TransformerConfig,
        vocabulary: Vocabulary,
        slices: i64,
        tokens: [i64; 2],
    ) -> Self {
        Self {
            code: CodeEmbedding::new(&p / "code", vocabulary, slices, config.width),
            row: Embedding::new(&p / "row", tokens[0], config.width),
            column: Embedding::new(&p / "column", tokens[1], config.width),
            height: Height::new(&p / "height", config.width),
            blocks: (0..config.layers).map(|i| Block::new(&p / "block" / i, config)).collect(),
            norm: LayerNorm::new(&p / "norm", config.width),
        }
    }

    /// Draws new initial embeddings under which codes with similar codebook vectors (`[codes, D]`) are similar.
    pub(super) fn resemble(&self, vectors: &Tensor) {
        self.code.resemble(vectors);
    }

    /// The embedding of every code; for [`Trunk::step`].
    pub(super) fn codes(&self) -> CodeTable {
        self.code.table()
    }

    /// Every token attends to every other. Codes `[B, N, slices]` to features `[B, N, width]`, computed in `kind`.
    pub(super) fn forward(&self, codes: &Tensor, packing: &Packing, z_mm: &Tensor, kind: Kind) -> Tensor {
        let features = self.code.table().embed(codes, kind);
        self.run(&self.place(&features, &packing.places, z_mm), packing, false)
    }

    /// As [`Trunk::forward`], but every token attends to itself and those before it in raster order. Padding comes
    /// last, so no token attends to it.
    pub(super) fn forward_causal(&self, codes: &Tensor, packing: &Packing, z_mm: &Tensor, kind: Kind) -> Tensor {
        let features = self.code.table().embed(codes, kind);
        self.run(&self.place(&features, &packing.places, z_mm), packing, true)
    }

    /// An empty cache for `batch` slices.
    pub(super) fn cache(&self, batch: i64, kind: Kind, device: Device) -> Cache {
        let width = self.row.table(kind).size()[1];
        let empty = |block: &Block| Tensor::zeros([batch, block.heads, 0, width / block.heads], (kind, device));
        Cache { blocks: self.blocks.iter().map(|block| [empty(block), empty(block)]).collect(), tokens: 0 }
    }

    /// Output features `[B, width]` of one more token, at `places` (`[B]`, in raster order), given the tokens in
    /// `cache`; `features` `[B, width]` are its embedding from [`Trunk::codes`].
    pub(super) fn step(&self, features: &Tensor, places: &Tensor, z_mm: &Tensor, cache: &mut Cache) -> Tensor {
        let mut x = self.place(&features.unsqueeze(1), &places.unsqueeze(1), z_mm);
        for (block, cached) in self.blocks.iter().zip(&mut cache.blocks) {
            x = block.step(&x, cached, cache.tokens);
        }
        cache.tokens += 1;
        self.norm.forward(&x).squeeze_dim(1)
    }

    /// Adds the embeddings of each token's place and of the slice's height to its features `[B, N, width]`. `places` is
    /// `[B, N]`.
    fn place(&self, features: &Tensor, places: &Tensor, z_mm: &Tensor) -> Tensor {
        let kind = features.kind();
        let table = self.row.table(kind).unsqueeze(1) + self.column.table(kind).unsqueeze(0);
        let at = table.flatten(0, 1).index_select(0, &places.view(-1)).view([places.size()[0], -1, table.size()[2]]);
        features + at + self.height.forward(z_mm, kind).unsqueeze(1)
    }

    /// All blocks. Without gradients the processor takes as many slices at a time as libtorch has threads: their
    /// features stay in its caches, and little padding is computed. Features of padding have no meaning.
    fn run(&self, x: &Tensor, packing: &Packing, causal: bool) -> Tensor {
        let blocks = |x: Tensor, bias: Option<&Tensor>| {
            let bias = bias.filter(|_| !causal).map(|bias| bias.to_kind(x.kind()));
            self.norm.forward(&self.blocks.iter().fold(x, |x, block| block.forward(&x, bias.as_ref(), causal)))
        };
        if x.requires_grad() || x.device() != Device::Cpu {
            return blocks(x.shallow_clone(), packing.bias.as_ref());
        }
        let tokens = x.size()[1];
        let parts: Vec<Tensor> = packing
            .parts(i64::from(tch::get_num_threads()).max(1))
            .map(|part| {
                let x = x.narrow(0, part.first, part.slices).narrow(1, 0, part.longest).contiguous();
                blocks(x, part.bias.as_ref()).constant_pad_nd([0, 0, 0, tokens - part.longest])
            })
            .collect();
        Tensor::cat(&parts, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;

    /// Largest difference between inference and training, relative to the largest feature, over the tokens that hold
    /// brain.
    fn difference(kind: Kind, causal: bool) -> f64 {
        tch::manual_seed(5);
        let store = VarStore::new(Device::Cpu);
        let config = TransformerConfig { width: 32, heads: 2, layers: 2 };
        let trunk = Trunk::new(store.root(), &config, Vocabulary::new(&[7]), 1, [6, 5]);
        // Large weights, so that the nonlinearities matter.
        tch::no_grad(|| store.variables().into_values().for_each(|mut weight| drop(weight.g_mul_scalar_(5.))));
        let inside = Tensor::rand([5, 6, 5], (Kind::Float, Device::Cpu)).lt(0.6);
        let _ = inside.get(3).fill_(0);
        let packing = Packing::new(&inside);
        let codes = Tensor::randint(7, [5, packing.places.size()[1], 1], (Kind::Int64, Device::Cpu));
        let z_mm = Tensor::linspace(-50., 60., 5, (Kind::Float, Device::Cpu));
        let run = |kind| match causal {
            true => trunk.forward_causal(&codes, &packing, &z_mm, kind),
            false => trunk.forward(&codes, &packing, &z_mm, kind),
        };
        let trained = run(Kind::Float);
        let inferred = tch::no_grad(|| run(kind));
        assert!(trained.requires_grad() && !inferred.requires_grad());
        let far = (&trained - inferred).abs() * packing.real.unsqueeze(-1);
        f64::try_from(far.max() / trained.abs().max()).unwrap()
    }

    #[test]
    fn inference_gives_what_training_computes() {
        for causal in [false, true] {
            let far = difference(Kind::Float, causal);
            assert!(far < 1e-5, "f32, causal {causal}: {far}");
            let far = difference(Kind::BFloat16, causal);
            assert!(far < 0.1, "bf16, causal {causal}: {far}");
        }
    }
}
