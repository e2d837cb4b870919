//! The tokenizer: an image slice to discrete tokens and back.
//!
//! ```text
//! image [B, 1, H, W] ── encoder ──► [B, D, h, w] ── quantize ──► codes [B, h, w]
//! codes [B, h, w] ── dequantize ──► [B, D, h, w] ── decoder ──► image [B, 1, H, W]
//! ```
//! h and w are H and W halved once per entry of `channels`. Intensities are in 0..1, codes in `0..codes()`. Encoder and
//! decoder also take the slice's MNI height `[B]` (mm). The architecture follows VQ-GAN (Esser et al., arXiv
//! 2012.09841), with a [`Codebook`] between encoder and decoder.

use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::codebook::{Codebook, Quantizer, Vectors};
use super::layers::{Conv, GroupNorm, Height, channels_last, plus, silu};
use super::vocabulary::Vocabulary;
use crate::config::Section;
use crate::error::Error;

/// The tables hold codes in 16 bits.
const MOST_CODES: i64 = 1 << 15;

/// Sizes of a [`Tokenizer`]. In TOML the codebook is either `levels = [8, 5, 5, 5]` or
/// `vq = { codes = 1000, width = 8 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub struct TokenizerConfig {
    /// The codes.
    pub codebook: Codebook,
    /// Channels at half resolution, at quarter resolution, and so on; each entry halves the image once.
    pub channels: Vec<i64>,
    /// Residual blocks at the tokens' resolution, in the encoder and in the decoder; one at each finer resolution.
    pub blocks: i64,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self { codebook: Codebook::Fsq(vec![8, 5, 5, 5]), channels: vec![48, 96], blocks: 2 }
    }
}

/// [`TokenizerConfig`] as TOML keys.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    levels: Option<Vec<i64>>,
    channels: Vec<i64>,
    blocks: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    vq: Option<Vectors>,
}

impl TryFrom<Keys> for TokenizerConfig {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Self, String> {
        let Keys { levels, channels, blocks, vq } = keys;
        let codebook = match (levels, vq) {
            (Some(levels), None) if !levels.is_empty() && levels.iter().all(|&n| n > 1) => Codebook::Fsq(levels),
            (None, Some(sizes)) if sizes.codes > 1 && sizes.width > 0 => Codebook::Vq(sizes),
            _ => {
                return Err("a tokenizer needs either `levels` (finite scalar quantization: 2 or more for each \
                            dimension) or `vq = { codes = .., width = .. }` (2 or more codes)"
                    .into());
            }
        };
        if channels.is_empty() {
            return Err("a tokenizer needs one or more `channels`, one entry for each halving of the image".into());
        }
        Ok(Self { codebook, channels, blocks })
    }
}

impl From<TokenizerConfig> for Keys {
    fn from(config: TokenizerConfig) -> Self {
        let TokenizerConfig { codebook, channels, blocks } = config;
        let (levels, vq) = match codebook {
            Codebook::Fsq(levels) => (Some(levels), None),
            Codebook::Vq(sizes) => (None, Some(sizes)),
        };
        Self { levels, channels, blocks, vq }
    }
}

impl TokenizerConfig {
    /// Checks the sizes; `key` is where they are written, such as `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Config`] where a size is out of range.
    pub fn validate(&self, key: &str) -> Result<(), Error> {
        let section = Section(key);
        match &self.codebook {
            Codebook::Fsq(levels) => {
                section.within("levels.len()", levels.len(), 1..=16)?;
                levels.iter().try_for_each(|&n| section.within("levels", n, 2..=MOST_CODES))?;
                let codes = levels.iter().fold(1i64, |product, &n| product.saturating_mul(n));
                section.within("levels.product()", codes, 2..=MOST_CODES)?;
            }
            Codebook::Vq(vectors) => {
                section.within("vq.codes", vectors.codes, 2..=MOST_CODES)?;
                section.within("vq.width", vectors.width, 1..=1024)?;
            }
        }
        section.within("channels.len()", self.channels.len(), 1..=6)?;
        for &channels in &self.channels {
            section.within("channels", channels, 1..=4096)?;
            if channels > 8 && channels % 8 != 0 {
                return Err(Error::Config(format!(
                    "{key}.channels has {channels}; expected multiples of 8, the size of a group of the norms"
                )));
            }
        }
        section.within("blocks", self.blocks, 0..=64)
    }

    /// Number of weights of the blocks at the tokens' resolution; those of the whole network are more.
    pub(super) fn least_weights(&self) -> i64 {
        let channels = self.channels.last().copied().unwrap_or(0);
        2 * self.blocks * 2 * 9 * channels * channels
    }

    /// Number of codes.
    pub fn codes(&self) -> i64 {
        self.vocabulary().codes()
    }

    /// Image pixels per token along each axis of a slice.
    pub fn cell(&self) -> i64 {
        1 << self.channels.len()
    }

    /// The codes and their digits.
    pub fn vocabulary(&self) -> Vocabulary {
        self.codebook.vocabulary()
    }
}

/// Two 3 x 3 convolutions and a residual connection, `[B, C, H, W]` to `[B, C, H, W]`.
#[derive(Debug)]
struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
}

impl ResBlock {
    fn new(p: Path, channels: i64) -> Self {
        Self {
            norm1: GroupNorm::new(&p / "norm1", channels),
            conv1: Conv::new(&p / "conv1", channels, channels, 3, 1),
            norm2: GroupNorm::new(&p / "norm2", channels),
            conv2: Conv::new(&p / "conv2", channels, channels, 3, 1),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward(&silu(self.norm1.forward(x)));
        plus(x, self.conv2.forward(&silu(self.norm2.forward(&h))))
    }
}

/// One resolution of the encoder or the decoder: a change of resolution, and blocks at the coarser one.
#[derive(Debug)]
struct Level {
    resample: Conv,
    blocks: Vec<ResBlock>,
}

impl Level {
    fn run(&self, x: &Tensor) -> Tensor {
        self.blocks.iter().fold(x.shallow_clone(), |h, block| block.forward(&h))
    }
}

/// Channels of the last full-resolution map, which the last convolution turns into the image.
const LAST: i64 = 16;

/// Encoder, quantizer and decoder.
#[derive(Debug)]
pub struct Tokenizer {
    config: TokenizerConfig,
    quantizer: Quantizer,
    /// From the finest resolution to the tokens'.
    down: Vec<Level>,
    encoder_height: Height,
    to_code: Conv,
    from_code: Conv,
    decoder_height: Height,
    /// From the tokens' resolution to the finest; each ends by doubling the resolution.
    up: Vec<Level>,
    smooth: Conv,
}

impl Tokenizer {
    /// Builds the networks with random weights under `p`.
    pub fn new(p: Path, config: &TokenizerConfig) -> Self {
        let channels = &config.channels;
        let dims = config.codebook.width();
        let last = channels.len() - 1;
        let blocks = |p: Path, level: usize| -> Vec<ResBlock> {
            let n = if level == last { config.blocks } else { 1 };
            (0..n).map(|i| ResBlock::new(&p / "block" / i, channels[level])).collect()
        };
        let down = |level: usize| {
            let p = &p / "down" / level as i64;
            let from = if level == 0 { 1 } else { channels[level - 1] };
            Level { resample: Conv::new(&p / "conv", from, channels[level], 4, 2), blocks: blocks(p, level) }
        };
        // Upsampling is a convolution to four times the channels and a pixel shuffle.
        let up = |level: usize| {
            let p = &p / "up" / level as i64;
            let to = if level == 0 { LAST } else { channels[level - 1] };
            Level { resample: Conv::new(&p / "conv", channels[level], 4 * to, 3, 1), blocks: blocks(p, level) }
        };
        Self {
            config: config.clone(),
            quantizer: Quantizer::new(&p / "codebook", &config.codebook),
            down: (0..=last).map(down).collect(),
            encoder_height: Height::new(&p / "encoder_height", channels[last]),
            to_code: Conv::new(&p / "to_code", channels[last], dims, 1, 1),
            from_code: Conv::new(&p / "from_code", dims, channels[last], 3, 1),
            decoder_height: Height::new(&p / "decoder_height", channels[last]),
            up: (0..=last).rev().map(up).collect(),
            smooth: Conv::new(&p / "smooth", LAST, 1, 3, 1),
        }
    }

    /// Sizes.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Image `[B, 1, H, W]` in 0..1 to codes `[B, h, w]`, i64. Computes in the kind of the image.
    pub fn encode(&self, image: &Tensor, z_mm: &Tensor) -> Tensor {
        self.quantizer.quantize(&self.latent(image, z_mm)).1
    }

    /// Codes `[B, h, w]` to image `[B, 1, H, W]` in 0..1, f32, computed in `kind`.
    pub fn decode(&self, codes: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        self.decode_embedded(&self.embed(codes), z_mm, kind)
    }

    /// Codes `[B, h, w]` to the decoder's input `[B, h, w, D]`, f32.
    pub fn embed(&self, codes: &Tensor) -> Tensor {
        let table = self.table(codes.device());
        let shape = [codes.size(), vec![table.size()[1]]].concat();
        table.index_select(0, &codes.reshape([-1])).view(shape.as_slice())
    }

    /// The decoder's input for each code, `[codes, D]`, f32. A mean of rows, weighted by the codes' probabilities, can
    /// be decoded too.
    pub fn table(&self, device: Device) -> Tensor {
        self.quantizer.table(device)
    }

    /// The decoder's input `[B, h, w, D]` (see [`Tokenizer::embed`]) to image `[B, 1, H, W]` in 0..1, f32, computed in
    /// `kind`.
    pub fn decode_embedded(&self, embedded: &Tensor, z_mm: &Tensor, kind: Kind) -> Tensor {
        self.generate(&embedded.permute([0, 3, 1, 2]).to_kind(kind), z_mm).to_kind(Kind::Float).clamp(0., 1.)
    }

    /// Image `[B, 1, H, W]` to its reconstruction `[B, 1, H, W]`, not clipped to 0..1, its codes `[B, h, w]`, and its
    /// latent before quantization `[B, D, h, w]`, f32. Gradients pass straight through the rounding.
    pub fn forward(&self, image: &Tensor, z_mm: &Tensor) -> (Tensor, Tensor, Tensor) {
        let latent = self.latent(image, z_mm);
        let (quantized, codes) = self.quantizer.quantize(&latent);
        (self.generate(&quantized.to_kind(image.kind()), z_mm), codes, latent)
    }

    /// The vectors of a learned codebook, `[codes, D]`, f32, which its training moves; `None` for finite scalar
    /// quantization.
    pub fn vectors(&self) -> Option<&Tensor> {
        match &self.quantizer {
            Quantizer::Fsq(_) => None,
            Quantizer::Vq(vq) => Some(vq.vectors()),
        }
    }

    /// Floating point operations of encoding and of decoding one slice of `rows` x `columns` tokens.
    pub fn flop(&self, [rows, columns]: [i64; 2]) -> [f64; 2] {
        let channels = &self.config.channels;
        let dims = self.config.codebook.width();
        let last = channels.len() - 1;
        // Pixels of a convolution's output; level -1 has the resolution of the image.
        let pixels = |level: i64| (rows * columns) << (2 * (last as i64 - level));
        let conv = |level: i64, kernel: i64, from: i64, to: i64| pixels(level) * kernel * kernel * from * to;
        let (mut encode, mut decode) = (0, 0);
        for (level, &c) in channels.iter().enumerate() {
            let finer = if level == 0 { [1, LAST] } else { [channels[level - 1]; 2] };
            let n = if level == last { self.config.blocks } else { 1 };
            let level = level as i64;
            let blocks = 2 * n * conv(level, 3, c, c);
            encode += conv(level, 4, finer[0], c) + blocks;
            decode += conv(level, 3, c, 4 * finer[1]) + blocks;
        }
        let widest = channels[last];
        encode += conv(last as i64, 1, widest, dims);
        if let Codebook::Vq(sizes) = &self.config.codebook {
            encode += conv(last as i64, 1, dims, sizes.codes);
        }
        decode += conv(last as i64, 3, dims, widest) + conv(-1, 3, LAST, 1);
        [2. * encode as f64, 2. * decode as f64]
    }

    /// Encoder: image to the unbounded latent `[B, D, h, w]`, f32.
    fn latent(&self, image: &Tensor, z_mm: &Tensor) -> Tensor {
        // One channel can be labelled channels-last without a copy. All maps that follow are then channels-last too,
        // and the first convolution takes a sixth of the time.
        let mut h = (image * 2. - 1.).squeeze_dim(1).unsqueeze(-1).permute([0, 3, 1, 2]);
        for (i, level) in self.down.iter().enumerate() {
            h = level.resample.forward(&h);
            if i + 1 == self.down.len() {
                h = at_every_pixel(&self.encoder_height.forward(z_mm, image.kind())) + h;
            }
            h = silu(level.run(&h));
        }
        self.to_code.forward(&h).to_kind(Kind::Float)
    }

    /// Decoder: quantized latent `[B, D, h, w]` to the image `[B, 1, H, W]`, not clipped.
    fn generate(&self, z: &Tensor, z_mm: &Tensor) -> Tensor {
        let mut h =
            self.from_code.forward(&channels_last(z)) + at_every_pixel(&self.decoder_height.forward(z_mm, z.kind()));
        for level in &self.up {
            h = level.resample.forward(&silu(level.run(&h))).pixel_shuffle(2);
        }
        self.smooth.forward(&silu(h))
    }
}

/// Features of slices `[B, C]`, to be added at every pixel: `[B, C, 1, 1]`.
fn at_every_pixel(features: &Tensor) -> Tensor {
    features.unsqueeze(-1).unsqueeze(-1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;

    /// Both kinds of codebook, about 1,000 codes.
    fn both() -> [TokenizerConfig; 2] {
        let vq = Codebook::Vq(Vectors { codes: 1000, width: 8 });
        [TokenizerConfig::default(), TokenizerConfig { codebook: vq, ..TokenizerConfig::default() }]
    }

    #[test]
    fn codebooks_are_written_as_they_are_read() {
        let [fsq, vq] = both();
        let text = "channels = [48, 96]\nblocks = 2\n";
        for (config, line) in [(fsq, "levels = [8, 5, 5, 5]"), (vq, "vq = { codes = 1000, width = 8 }")] {
            assert_eq!(toml::from_str::<TokenizerConfig>(&format!("{text}{line}")).unwrap(), config);
            assert_eq!(toml::from_str::<TokenizerConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        for line in ["", "levels = []", "vq = { codes = 9, width = 2 }\nlevels = [8]"] {
            let error = toml::from_str::<TokenizerConfig>(&format!("{text}{line}")).unwrap_err().to_string();
            assert!(error.contains("either `levels`"), "{error}");
        }
    }

    #[test]
    fn shapes() {
        both().iter().for_each(shapes_of);
    }

    fn shapes_of(config: &TokenizerConfig) {
        let vs = VarStore::new(Device::Cpu);
        let tokenizer = Tokenizer::new(vs.root(), config);
        let image = Tensor::rand([2, 1, 96, 80], (Kind::Float, Device::Cpu));
        let z = Tensor::from_slice(&[-20f32, 40.]);
        let codes = tokenizer.encode(&image, &z);
        assert_eq!(codes.size(), [2, 24, 20]);
        assert_eq!(tokenizer.decode(&codes, &z, Kind::Float).size(), [2, 1, 96, 80]);
        let (reconstruction, same, latent) = tokenizer.forward(&image, &z);
        assert_eq!(latent.size(), [2, config.codebook.width(), 24, 20]);
        assert_eq!(same, codes);
        let again = tokenizer.decode(&codes, &z, Kind::Float);
        assert!(f64::try_from((reconstruction.clamp(0., 1.) - again).abs().max()).unwrap() < 1e-5);
    }

    #[test]
    fn three_halvings_make_tokens_of_eight_pixels() {
        let vs = VarStore::new(Device::Cpu);
        let config = TokenizerConfig { channels: vec![8, 16, 24], ..TokenizerConfig::default() };
        let tokenizer = Tokenizer::new(vs.root(), &config);
        let image = Tensor::rand([1, 1, 160, 160], (Kind::Float, Device::Cpu));
        let z = Tensor::from_slice(&[0f32]);
        let codes = tokenizer.encode(&image, &z);
        assert_eq!((config.cell(), codes.size()), (8, vec![1, 20, 20]));
        assert_eq!(tokenizer.decode(&codes, &z, Kind::Float).size(), [1, 1, 160, 160]);
    }
}
