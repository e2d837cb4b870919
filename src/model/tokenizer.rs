//! The tokenizer: an image slice to discrete tokens and back.
//!
//! ```text
//! image [B, 1, H, W] ── encoder ──► [B, D, H/4, W/4] ── quantize ──► codes [B, H/4, W/4]
//! codes [B, H/4, W/4] ── dequantize ──► [B, D, H/4, W/4] ── decoder ──► image [B, 1, H, W]
//! ```
//! Intensities are in 0..1, codes in `0..codes()`. The generator follows VQ-GAN (Esser et al.,
//! arXiv 2012.09841); the codebook is finite scalar quantization (Mentzer et al., arXiv
//! 2309.15505): D numbers, each rounded to one of a few levels, so that no codebook can collapse.

use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::layers::{Conv, GroupNorm};
use super::vocabulary::Vocabulary;

/// Image pixels per token along each axis of a slice.
pub const DOWNSAMPLING: i64 = 4;

/// Sizes of a [`Tokenizer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Levels of each quantized dimension; their product is the number of codes.
    pub levels: Vec<i64>,
    /// Channels at half and at quarter resolution.
    pub channels: [i64; 2],
    /// Residual blocks at quarter resolution, in the encoder and in the decoder.
    pub blocks: i64,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self { levels: vec![8, 5, 5, 5], channels: [48, 96], blocks: 2 }
    }
}

impl TokenizerConfig {
    /// Number of codes.
    pub fn codes(&self) -> i64 {
        self.vocabulary().codes()
    }

    /// The codes and their digits.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary::new(&self.levels)
    }
}

/// Two 3 x 3 convolutions around a shortcut.
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
        let h = self.conv1.forward(&self.norm1.forward(x).silu());
        x + self.conv2.forward(&self.norm2.forward(&h).silu())
    }
}

/// The networks and the quantizer between them.
#[derive(Debug)]
pub struct Tokenizer {
    config: TokenizerConfig,
    down1: Conv,
    enc1: ResBlock,
    down2: Conv,
    enc2: Vec<ResBlock>,
    to_code: Conv,
    from_code: Conv,
    dec2: Vec<ResBlock>,
    up2: Conv,
    dec1: ResBlock,
    up1: Conv,
    smooth: Conv,
}

impl Tokenizer {
    /// Builds the networks with random weights under `p`.
    pub fn new(p: Path, config: &TokenizerConfig) -> Self {
        let [half, quarter] = config.channels;
        let dims = config.levels.len() as i64;
        let blocks = |name: &str| (0..config.blocks).map(|i| ResBlock::new(&p / name / i, quarter)).collect::<Vec<_>>();
        Self {
            config: config.clone(),
            down1: Conv::new(&p / "down1", 1, half, 4, 2),
            enc1: ResBlock::new(&p / "enc1", half),
            down2: Conv::new(&p / "down2", half, quarter, 4, 2),
            enc2: blocks("enc2"),
            to_code: Conv::new(&p / "to_code", quarter, dims, 1, 1),
            from_code: Conv::new(&p / "from_code", dims, quarter, 3, 1),
            dec2: blocks("dec2"),
            // Upsampling is a convolution to four times the channels and a pixel shuffle.
            up2: Conv::new(&p / "up2", quarter, half * 4, 3, 1),
            dec1: ResBlock::new(&p / "dec1", half),
            up1: Conv::new(&p / "up1", half, 16 * 4, 3, 1),
            smooth: Conv::new(&p / "smooth", 16, 1, 3, 1),
        }
    }

    /// Sizes.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Image `[B, 1, H, W]` in 0..1 to codes `[B, H/4, W/4]`, i64.
    pub fn encode(&self, image: &Tensor) -> Tensor {
        self.index(&self.quantize(&self.latent(image)))
    }

    /// Codes `[B, h, w]` to image `[B, 1, 4h, 4w]` of the given kind, in 0..1.
    pub fn decode(&self, codes: &Tensor, kind: Kind) -> Tensor {
        self.decode_digits(&self.config.vocabulary().digits(codes), kind)
    }

    /// Digits `[B, h, w, D]`, which need not be whole numbers, to image `[B, 1, 4h, 4w]` of the given kind, in 0..1.
    pub fn decode_digits(&self, digits: &Tensor, kind: Kind) -> Tensor {
        let levels =
            digits.permute([0, 3, 1, 2]).to_kind(Kind::Float) - self.levels(digits.device()).floor_divide_scalar(2.);
        self.generate(&self.normalize(&levels).to_kind(kind)).clamp(0., 1.)
    }

    /// Image to its reconstruction, not clipped to 0..1, and its codes; gradients pass straight through the rounding.
    pub fn forward(&self, image: &Tensor) -> (Tensor, Tensor) {
        let levels = self.quantize(&self.latent(image));
        let codes = self.index(&levels.detach());
        (self.generate(&self.normalize(&levels).to_kind(image.kind())), codes)
    }

    /// Floating point operations of encoding and of decoding one slice of these tokens.
    pub fn flop(&self, [rows, columns]: [i64; 2]) -> [f64; 2] {
        let [half, quarter] = self.config.channels;
        let dims = self.config.levels.len() as i64;
        // Pixels of the map that a convolution writes: quarter, half and full resolution.
        let [small, middle, large] = [1, 4, 16].map(|scale| rows * columns * scale);
        let conv = |pixels: i64, kernel: i64, from: i64, to: i64| pixels * kernel * kernel * from * to;
        let blocks = 2 * self.config.blocks * conv(small, 3, quarter, quarter);
        let encode = conv(middle, 4, 1, half)
            + 2 * conv(middle, 3, half, half)
            + conv(small, 4, half, quarter)
            + blocks
            + conv(small, 1, quarter, dims);
        let decode = conv(small, 3, dims, quarter)
            + blocks
            + conv(small, 3, quarter, 4 * half)
            + 2 * conv(middle, 3, half, half)
            + conv(middle, 3, half, 64)
            + conv(large, 3, 16, 1);
        [2. * encode as f64, 2. * decode as f64]
    }

    /// Encoder: image to the unbounded latent `[B, D, h, w]`, f32.
    fn latent(&self, image: &Tensor) -> Tensor {
        let mut h = self.enc1.forward(&self.down1.forward(&(image * 2. - 1.)));
        h = self.down2.forward(&h.silu());
        for block in &self.enc2 {
            h = block.forward(&h);
        }
        self.to_code.forward(&h.silu()).to_kind(Kind::Float)
    }

    /// Decoder: normalized levels `[B, D, h, w]` to the image.
    fn generate(&self, z: &Tensor) -> Tensor {
        let mut h = self.from_code.forward(z);
        for block in &self.dec2 {
            h = block.forward(&h);
        }
        h = self.dec1.forward(&self.up2.forward(&h.silu()).pixel_shuffle(2));
        self.smooth.forward(&self.up1.forward(&h.silu()).pixel_shuffle(2).silu())
    }

    fn levels(&self, device: Device) -> Tensor {
        Tensor::from_slice(&self.config.levels).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1])
    }

    /// FSQ's bounding and rounding (paper, section 3.1): integers centred on zero, one axis of
    /// `levels[d]` values each; the gradient is that of the bounding alone.
    fn quantize(&self, latent: &Tensor) -> Tensor {
        let levels = self.levels(latent.device());
        let half = (&levels - 1.) * (1. + 1e-3) / 2.;
        let offset = levels.remainder(2.).eq(0.).to_kind(Kind::Float) * 0.5;
        let shift = (&offset / &half).atanh();
        let bounded = (latent + shift).tanh() * &half - &offset;
        &bounded + (bounded.round() - &bounded).detach()
    }

    /// Levels to about -1..1, what the decoder sees.
    fn normalize(&self, levels: &Tensor) -> Tensor {
        levels / self.levels(levels.device()).floor_divide_scalar(2.)
    }

    /// Levels `[B, D, h, w]` to mixed-radix codes `[B, h, w]`.
    fn index(&self, levels: &Tensor) -> Tensor {
        let device = levels.device();
        let digits = (levels + self.levels(device).floor_divide_scalar(2.)).round();
        (digits * self.basis(device)).sum_dim_intlist(1i64, false, Kind::Float).round().to_kind(Kind::Int64)
    }

    fn basis(&self, device: Device) -> Tensor {
        let basis = self.config.vocabulary().basis();
        Tensor::from_slice(&basis).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;

    #[test]
    fn every_code_survives_dequantizing_and_indexing() {
        let vs = VarStore::new(Device::Cpu);
        let tokenizer = Tokenizer::new(vs.root(), &TokenizerConfig::default());
        let codes = Tensor::arange(1000, (Kind::Int64, Device::Cpu)).view([1, 25, 40]);
        let digits = tokenizer.config.vocabulary().digits(&codes).permute([0, 3, 1, 2]);
        let levels = digits - tokenizer.levels(Device::Cpu).floor_divide_scalar(2.);
        assert_eq!(tokenizer.index(&levels), codes);
    }

    #[test]
    fn the_latent_reaches_every_level_and_none_beyond() {
        let vs = VarStore::new(Device::Cpu);
        let config = TokenizerConfig { levels: vec![8, 5], ..TokenizerConfig::default() };
        let tokenizer = Tokenizer::new(vs.root(), &config);
        let sweep = Tensor::linspace(-20., 20., 4001, (Kind::Float, Device::Cpu));
        let latent = Tensor::stack(&[&sweep, &sweep], 0).view([1, 2, 1, 4001]);
        let levels = tokenizer.quantize(&latent);
        assert_eq!(levels.get(0).get(0).unique_dim(1, true, false, false).0.size()[1], 8);
        assert_eq!(levels.get(0).get(1).unique_dim(1, true, false, false).0.size()[1], 5);
        let codes = tokenizer.index(&levels);
        assert!(i64::try_from(codes.min()).unwrap() >= 0 && i64::try_from(codes.max()).unwrap() < 40);
    }

    #[test]
    fn shapes() {
        let vs = VarStore::new(Device::Cpu);
        let tokenizer = Tokenizer::new(vs.root(), &TokenizerConfig::default());
        let image = Tensor::rand([2, 1, 96, 80], (Kind::Float, Device::Cpu));
        let codes = tokenizer.encode(&image);
        assert_eq!(codes.size(), [2, 24, 20]);
        assert_eq!(tokenizer.decode(&codes, Kind::Float).size(), [2, 1, 96, 80]);
        let (reconstruction, same) = tokenizer.forward(&image);
        assert_eq!(same, codes);
        let again = tokenizer.decode(&codes, Kind::Float);
        assert!(f64::try_from((reconstruction.clamp(0., 1.) - again).abs().max()).unwrap() < 1e-5);
    }
}
