//! The tokenizer's codebook: it rounds latents to codes.
//!
//! ```text
//! latent [B, D, h, w] ── quantize ──► quantized latent [B, D, h, w], codes [B, h, w]
//!                         table   ──► quantized latent of every code [codes, D]
//! ```
//! Finite scalar quantization ([`Fsq`]; Mentzer et al., arXiv 2309.15505) rounds each of D numbers to one of a few
//! levels, so that the codebook cannot collapse. Vector quantization ([`Vq`]; van den Oord et al., arXiv 1711.00937)
//! takes the nearest of a list of learned vectors.

use serde::{Deserialize, Serialize};
use tch::nn::{Init, Path};
use tch::{Device, Kind, Tensor};

use super::vocabulary::Vocabulary;

/// Kind and sizes of a codebook.
#[derive(Debug, Clone, PartialEq)]
pub enum Codebook {
    /// Finite scalar quantization: number of levels of each dimension; their product is the number of codes.
    Fsq(Vec<i64>),
    /// Learned vectors.
    Vq(Vectors),
}

/// Sizes of a learned codebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vectors {
    /// Number of vectors.
    pub codes: i64,
    /// Length of each.
    pub width: i64,
}

impl Codebook {
    /// D, the channels of the latent.
    pub(super) fn width(&self) -> i64 {
        match self {
            Self::Fsq(levels) => levels.len() as i64,
            Self::Vq(vectors) => vectors.width,
        }
    }

    /// The codes and their digits. Learned vectors have no order, so their codes have a single digit.
    pub(super) fn vocabulary(&self) -> Vocabulary {
        match self {
            Self::Fsq(levels) => Vocabulary::new(levels),
            Self::Vq(vectors) => Vocabulary::new(&[vectors.codes]),
        }
    }
}

/// The quantizer of a [`Codebook`].
#[derive(Debug)]
pub(super) enum Quantizer {
    Fsq(Fsq),
    Vq(Vq),
}

impl Quantizer {
    /// Learned vectors become a variable under `p`.
    pub(super) fn new(p: Path, codebook: &Codebook) -> Self {
        match codebook {
            Codebook::Fsq(levels) => Self::Fsq(Fsq { levels: levels.clone(), vocabulary: codebook.vocabulary() }),
            Codebook::Vq(sizes) => Self::Vq(Vq::new(p, *sizes)),
        }
    }

    /// Latent `[B, D, h, w]`, f32, to the quantized latent `[B, D, h, w]`, f32, and to codes `[B, h, w]`, i64.
    /// Gradients pass straight through the rounding.
    pub(super) fn quantize(&self, latent: &Tensor) -> (Tensor, Tensor) {
        match self {
            Self::Fsq(fsq) => {
                let levels = fsq.round(latent);
                (fsq.normalize(&levels), fsq.index(&levels.detach()))
            }
            Self::Vq(vq) => {
                let codes = vq.nearest(&latent.detach());
                let nearest = vq.vectors.index_select(0, &codes.view(-1));
                let [b, d, h, w] = latent.size()[..] else { unreachable!("latents have four axes") };
                let nearest = nearest.view([b, h, w, d]).permute([0, 3, 1, 2]);
                (latent + (nearest - latent).detach(), codes)
            }
        }
    }

    /// Quantized latent of each code, `[codes, D]`, f32.
    pub(super) fn table(&self, device: Device) -> Tensor {
        match self {
            Self::Fsq(fsq) => {
                let codes = Tensor::arange(fsq.vocabulary.codes(), (Kind::Int64, device));
                let digits = fsq.vocabulary.digits(&codes).to_kind(Kind::Float);
                let middle = fsq.middle(device).view([1, -1]);
                (digits - &middle) / middle
            }
            Self::Vq(vq) => vq.vectors.shallow_clone(),
        }
    }
}

/// Finite scalar quantization.
#[derive(Debug)]
pub(super) struct Fsq {
    levels: Vec<i64>,
    vocabulary: Vocabulary,
}

impl Fsq {
    fn levels(&self, device: Device) -> Tensor {
        Tensor::from_slice(&self.levels).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1])
    }

    fn middle(&self, device: Device) -> Tensor {
        self.levels(device).floor_divide_scalar(2.)
    }

    /// FSQ's bounding and rounding (paper, section 3.1): integers centred on zero, `levels[d]` values for dimension
    /// `d`; the gradient is that of the bounding alone.
    fn round(&self, latent: &Tensor) -> Tensor {
        let levels = self.levels(latent.device());
        let half = (&levels - 1.) * (1. + 1e-3) / 2.;
        let offset = levels.remainder(2.).eq(0.).to_kind(Kind::Float) * 0.5;
        let shift = (&offset / &half).atanh();
        let bounded = (latent + shift).tanh() * &half - &offset;
        &bounded + (bounded.round() - &bounded).detach()
    }

    /// Levels scaled to about -1..1, which is the quantized latent.
    fn normalize(&self, levels: &Tensor) -> Tensor {
        levels / self.middle(levels.device())
    }

    /// Levels `[B, D, h, w]` to mixed-radix codes `[B, h, w]`.
    fn index(&self, levels: &Tensor) -> Tensor {
        let device = levels.device();
        let basis = Tensor::from_slice(&self.vocabulary.basis()).to_kind(Kind::Float).to_device(device);
        let digits = (levels + self.middle(device)).round();
        let code = (digits * basis.view([1, -1, 1, 1])).sum_dim_intlist(1i64, false, Kind::Float);
        code.round().to_kind(Kind::Int64)
    }
}

/// Latents whose distances from all vectors are computed at once on the processor. The distances of a whole batch do
/// not fit its caches and take four times as long.
const ROWS: i64 = 256;

/// Vector quantization. The vectors are not trained by gradient descent: training moves each to the mean of the latents
/// that are nearest to it.
#[derive(Debug)]
pub(super) struct Vq {
    /// `[codes, D]`.
    vectors: Tensor,
}

impl Vq {
    fn new(p: Path, sizes: Vectors) -> Self {
        let init = Init::Randn { mean: 0., stdev: 1. };
        let vectors = tch::nn::init(init, &[sizes.codes, sizes.width], p.device());
        Self { vectors: p.add("vectors", vectors, false) }
    }

    /// `[codes, D]`.
    pub(super) fn vectors(&self) -> &Tensor {
        &self.vectors
    }

    /// Latent `[B, D, h, w]` to the codes of the nearest vectors, `[B, h, w]`.
    fn nearest(&self, latent: &Tensor) -> Tensor {
        // |x - v|² without |x|², which is the same for all v.
        let squares = self.vectors.square().sum_dim_intlist(1i64, false, Kind::Float);
        let turned = self.vectors.tr() * -2.;
        let places = latent.permute([0, 2, 3, 1]);
        let rows = places.reshape([-1, latent.size()[1]]);
        // On the processor, `min` takes less than half the time of `argmin`.
        let nearest = |rows: &Tensor| squares.addmm(rows, &turned).min_dim(-1, false).1;
        let codes = match latent.device() {
            Device::Cpu => Tensor::cat(&rows.split(ROWS, 0).iter().map(nearest).collect::<Vec<_>>(), 0),
            _ => nearest(&rows),
        };
        codes.view(&places.size()[..3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;

    fn fsq(levels: &[i64]) -> Fsq {
        let codebook = Codebook::Fsq(levels.to_vec());
        Fsq { levels: levels.to_vec(), vocabulary: codebook.vocabulary() }
    }

    #[test]
    fn every_code_survives_dequantizing_and_indexing() {
        let fsq = fsq(&[8, 5, 5, 5]);
        let codes = Tensor::arange(1000, (Kind::Int64, Device::Cpu)).view([1, 25, 40]);
        let levels = fsq.vocabulary.digits(&codes).permute([0, 3, 1, 2]) - fsq.middle(Device::Cpu);
        assert_eq!(fsq.index(&levels), codes);
        let seen = fsq.normalize(&levels).permute([0, 2, 3, 1]).reshape([1000, 4]);
        assert_eq!(Quantizer::Fsq(fsq).table(Device::Cpu), seen);
    }

    #[test]
    fn the_latent_reaches_every_level_and_none_beyond() {
        let fsq = fsq(&[8, 5]);
        let sweep = Tensor::linspace(-20., 20., 4001, (Kind::Float, Device::Cpu));
        let levels = fsq.round(&Tensor::stack(&[&sweep, &sweep], 0).view([1, 2, 1, 4001]));
        assert_eq!(levels.get(0).get(0).unique_dim(1, true, false, false).0.size()[1], 8);
        assert_eq!(levels.get(0).get(1).unique_dim(1, true, false, false).0.size()[1], 5);
        let codes = fsq.index(&levels);
        assert!(i64::try_from(codes.min()).unwrap() >= 0 && i64::try_from(codes.max()).unwrap() < 40);
    }

    #[test]
    fn a_latent_gets_the_nearest_vector_and_its_gradient_passes_straight_through() {
        tch::manual_seed(3);
        let store = VarStore::new(Device::Cpu);
        let quantizer = Quantizer::new(store.root(), &Codebook::Vq(Vectors { codes: 50, width: 3 }));
        let latent = Tensor::randn([2, 3, 4, 5], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (seen, codes) = quantizer.quantize(&latent);

        let vectors: Vec<f32> = Vec::try_from(quantizer.table(Device::Cpu).view(-1)).unwrap();
        let places: Vec<f32> = Vec::try_from(latent.detach().permute([0, 2, 3, 1]).reshape([-1])).unwrap();
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let nearest = |place: &[f32]| {
            let each = vectors.chunks(3).map(|vector| distance(place, vector));
            each.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0 as i64
        };
        let expected: Vec<i64> = places.chunks(3).map(nearest).collect();
        assert_eq!(Vec::<i64>::try_from(codes.view(-1)).unwrap(), expected);
        let table = quantizer.table(Device::Cpu).index_select(0, &codes.view(-1)).view([2, 4, 5, 3]);
        assert!(seen.permute([0, 2, 3, 1]).allclose(&table, 1e-5, 1e-6, false));

        let slope = Tensor::randn([2, 3, 4, 5], (Kind::Float, Device::Cpu));
        (seen * &slope).sum(Kind::Float).backward();
        assert_eq!(latent.grad(), slope);
    }
}
