//! Layers whose weights are kept in f32 and follow the kind of what they are given.
//!
//! Feed them bf16 and they compute in bf16 (products; norms reduce in f32 inside libtorch), feed
//! them f32 and they compute in f32. Gradients always reach the f32 weights.

use tch::nn::{Init, Path};
use tch::{Kind, Tensor};

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

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.linear(&self.weight.to_kind(kind), Some(self.bias.to_kind(kind)))
    }
}

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
        let kind = x.kind();
        x.group_norm(self.groups, Some(self.weight.to_kind(kind)), Some(self.bias.to_kind(kind)), 1e-5, true)
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
