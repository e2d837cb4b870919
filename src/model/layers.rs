//! Layers that cast their weights to the kind of their input.
//!
//! Given bf16 they compute in bf16 (libtorch's norms reduce in f32), given f32 they compute in f32. In training the
//! weights are f32, and gradients reach them in f32.

use tch::nn::{Init, Path};
use tch::{Device, Kind, Tensor};

/// 2-D convolution, `[B, in, H, W]` to `[B, out, H/stride, W/stride]`.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    pub(super) fn new(p: Path, from: i64, to: i64, kernel: i64, stride: i64) -> Self {
        // He et al. 2015 (arXiv 1502.01852): the scale that keeps the variance through a ReLU-like layer.
        let std = (2.0 / (from * kernel * kernel) as f64).sqrt();
        Self {
            weight: p.var("weight", &[to, from, kernel, kernel], Init::Randn { mean: 0., stdev: std }),
            bias: p.var("bias", &[to], Init::Const(0.)),
            stride,
            padding: (kernel - stride + 1) / 2,
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.conv2d(
            &self.weight.to_kind(kind),
            Some(self.bias.to_kind(kind)),
            [self.stride, self.stride],
            [self.padding, self.padding],
            [1, 1],
            1,
        )
    }
}

/// Affine map of the last axis, `[.., from]` to `[.., to]`.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `std`: standard deviation of the initial weights.
    pub(super) fn new(p: Path, from: i64, to: i64, std: f64) -> Self {
        Self {
            weight: p.var("weight", &[to, from], Init::Randn { mean: 0., stdev: std }),
            bias: p.var("bias", &[to], Init::Const(0.)),
        }
    }

    /// `[to, from]`, not cast.
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[to]`, not cast.
    pub(super) fn bias(&self) -> &Tensor {
        &self.bias
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.linear(&self.weight.to_kind(kind), Some(self.bias.to_kind(kind)))
    }
}

/// `[B, C, H, W]` with the channels last in memory, the layout in which convolutions on processors and tensor cores are
/// fastest. Values and shape stay.
pub(super) fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// SiLU, in place unless a gradient needs the input.
pub(super) fn silu(mut x: Tensor) -> Tensor {
    if x.requires_grad() { x.silu() } else { x.silu_() }
}

/// `x + change`, computed in place of `change`.
pub(super) fn plus(x: &Tensor, mut change: Tensor) -> Tensor {
    change += x;
    change
}

/// GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415).
///
/// On the processor, libtorch's version takes as long as the linear map before it. There, without gradients, f32 is
/// computed as `x * sigmoid(2 u)`, which equals `x / 2 * (1 + tanh(u))`, and bf16 by the erf form, which differs from
/// the tanh form by at most 0.0005, less than the rounding of bf16.
pub(super) fn gelu(x: Tensor) -> Tensor {
    /// 2 u = x (LINEAR + CUBIC x²).
    const LINEAR: f64 = 2. * 0.797_884_560_802_865_4;
    const CUBIC: f64 = 0.044_715 * LINEAR;
    if x.requires_grad() || x.device() != Device::Cpu {
        return x.gelu("tanh");
    }
    if x.kind() == Kind::BFloat16 {
        return x.gelu("none");
    }
    let scaled = &x * CUBIC.sqrt();
    let mut gate = Tensor::from(LINEAR).to_kind(x.kind()).addcmul(&scaled, &scaled);
    gate *= &x;
    let mut gate = gate.sigmoid_();
    gate *= &x;
    gate
}

/// Number of frequencies of the slice-height encoding. The longest wave is 400 mm, the shortest 12.5 mm.
const HEIGHT_WAVES: i64 = 6;

/// Slice heights `[B]` (MNI z, mm) to features `[B, width]`: sines and cosines mapped by a linear layer.
#[derive(Debug)]
pub(super) struct Height {
    linear: Linear,
}

impl Height {
    pub(super) fn new(p: Path, width: i64) -> Self {
        Self { linear: Linear::new(p, 2 * HEIGHT_WAVES, width, 0.02) }
    }

    pub(super) fn forward(&self, z_mm: &Tensor, kind: Kind) -> Tensor {
        let octave = Tensor::arange(HEIGHT_WAVES, (Kind::Float, z_mm.device())).exp2();
        let phase = z_mm.to_kind(Kind::Float).unsqueeze(1) * octave.unsqueeze(0) * (std::f64::consts::PI / 200.);
        self.linear.forward(&Tensor::cat(&[phase.sin(), phase.cos()], 1).to_kind(kind))
    }
}

/// Maps with fewer pixels than this take libtorch's slow group norm in bf16 with channels last, on the processor.
const SMALL_MAP: i64 = 1024;

/// Group norm over `[B, C, H, W]` with groups of eight channels (Wu and He, arXiv 1803.08494).
#[derive(Debug)]
pub(super) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
}

impl GroupNorm {
    pub(super) fn new(p: Path, channels: i64) -> Self {
        Self {
            weight: p.var("weight", &[channels], Init::Const(1.)),
            bias: p.var("bias", &[channels], Init::Const(0.)),
            groups: (channels / 8).max(1),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let norm = |x: &Tensor| {
            let kind = x.kind();
            x.group_norm(self.groups, Some(self.weight.to_kind(kind)), Some(self.bias.to_kind(kind)), 1e-5, true)
        };
        let small = x.size()[2..].iter().product::<i64>() < SMALL_MAP;
        if small && x.kind() == Kind::BFloat16 && x.device() == Device::Cpu {
            // libtorch 2.11 is several times slower for these in bf16 than in f32.
            return norm(&x.to_kind(Kind::Float)).to_kind(Kind::BFloat16);
        }
        norm(x)
    }
}

/// Layer norm over the last axis (Ba et al., arXiv 1607.06450).
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
}

impl LayerNorm {
    pub(super) fn new(p: Path, width: i64) -> Self {
        Self {
            weight: p.var("weight", &[width], Init::Const(1.)),
            bias: p.var("bias", &[width], Init::Const(0.)),
            width,
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.layer_norm([self.width], Some(self.weight.to_kind(kind)), Some(self.bias.to_kind(kind)), 1e-5, true)
    }
}

/// A learned table, `[rows, width]`.
#[derive(Debug)]
pub(super) struct Embedding {
    weight: Tensor,
}

impl Embedding {
    pub(super) fn new(p: Path, rows: i64, width: i64) -> Self {
        Self { weight: p.var("weight", &[rows, width], Init::Randn { mean: 0., stdev: 0.02 }) }
    }

    /// The whole table, `[rows, width]`.
    pub(super) fn table(&self, kind: Kind) -> Tensor {
        self.weight.to_kind(kind)
    }
}
