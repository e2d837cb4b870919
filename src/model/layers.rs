//! Layers whose weights are kept in f32 and follow the kind of what they are given.
//!
//! Feed them bf16 and they compute in bf16 (products; norms reduce in f32 inside libtorch), feed
//! them f32 and they compute in f32. Gradients always reach the f32 weights.

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
        // He et al. 2015, the scale that keeps the variance through a ReLU-like layer.
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

/// Affine map of the last axis.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `std`: of the initial weights.
    pub(super) fn new(p: Path, from: i64, to: i64, std: f64) -> Self {
        Self {
            weight: p.var("weight", &[to, from], Init::Randn { mean: 0., stdev: std }),
            bias: p.var("bias", &[to], Init::Const(0.)),
        }
    }

    /// `[to, from]`, in the kind that it is kept in.
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[to]`.
    pub(super) fn bias(&self) -> &Tensor {
        &self.bias
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.linear(&self.weight.to_kind(kind), Some(self.bias.to_kind(kind)))
    }
}

/// Lays `[B, C, H, W]` out with the channels last, as convolutions on processors and tensor cores take it without
/// rearranging; values and shape stay.
pub(super) fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// SiLU, in place where no gradient needs what it was given.
pub(super) fn silu(mut x: Tensor) -> Tensor {
    if x.requires_grad() { x.silu() } else { x.silu_() }
}

/// `x + change`, in the memory of `change`.
pub(super) fn plus(x: &Tensor, mut change: Tensor) -> Tensor {
    change += x;
    change
}

/// GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415).
///
/// libtorch's takes as long on the processor as the linear map before it. There, without gradients, f32 goes by
/// `x * sigmoid(2 u)`, which equals `x / 2 * (1 + tanh(u))`; bf16 by the erf form, which differs from the tanh form by
/// 0.0005 at most, a fraction of what bf16 rounds off.
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

/// Frequencies of the slice-height code; the longest wave spans the head, the shortest ~1 cm.
const HEIGHT_WAVES: i64 = 6;

/// A slice's MNI height, `[B]` millimetres, to features `[B, width]`: sines and cosines mapped by a linear layer.
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

/// Pixels of a map from which on libtorch computes group norms with channels last another way, on the processor.
const SMALL_MAP: i64 = 1024;

/// Group norm over `[B, C, H, W]` with groups of eight channels (Wu and He 2018).
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
            // libtorch 2.11 takes several times as long for these in bf16 as in f32.
            return norm(&x.to_kind(Kind::Float)).to_kind(Kind::BFloat16);
        }
        norm(x)
    }
}

/// Layer norm over the last axis.
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
