//! Packs the tokens that hold brain into sequences: planes `[B, h, w]` to `[B, N]`, and back.
//!
//! Half of a slice's tokens are air. They carry no information, so the transformers leave them out. The slices of a
//! batch have different numbers of tokens; shorter sequences end in padding, to which no token attends.

use tch::{Kind, Tensor};

/// Which tokens of each slice of a batch form its sequence, in raster order.
#[derive(Debug)]
pub struct Packing {
    /// Places in raster order, `[B, N]`, i64. N is the largest number of tokens of a slice.
    pub(super) places: Tensor,
    /// False at padding, `[B, N]`.
    pub(super) real: Tensor,
    /// Added to the attention logits: minus infinity at padding, else 0. `[B, 1, 1, N]`; `None` where no sequence is
    /// padded.
    pub(super) bias: Option<Tensor>,
    /// Number of tokens of each slice.
    counts: Vec<i64>,
    /// `[B, h, w]`.
    shape: [i64; 3],
}

/// Consecutive slices of a batch, whose sequences are padded to the longest among them alone.
#[derive(Debug)]
pub(super) struct Part {
    /// Number of the first slice.
    pub(super) first: i64,
    /// Number of slices.
    pub(super) slices: i64,
    /// Number of tokens of the longest sequence.
    pub(super) longest: i64,
    /// As [`Packing::bias`].
    pub(super) bias: Option<Tensor>,
}

impl Packing {
    /// `inside`: the tokens to take, `[B, h, w]`, bool.
    pub fn new(inside: &Tensor) -> Self {
        let (batch, rows, columns) = inside.size3().expect("tokens are [B, rows, columns]");
        let flat = inside.flatten(1, 2);
        let sums = flat.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
        let counts = Vec::<i64>::try_from(&sums).expect("one number per slice");
        let longest = counts.iter().copied().max().unwrap_or(0).max(1);
        // A stable sort moves the tokens to the front and keeps their order.
        let order = flat.to_kind(Kind::Uint8).argsort_stable(true, 1, true);
        let places = order.narrow(1, 0, longest).contiguous();
        let real = flat.gather(1, &places, false);
        let bias = counts.iter().any(|&n| n < longest).then(|| {
            // A slice without tokens attends to its padding: a softmax over no token is not a number.
            let empty = sums.eq(0).unsqueeze(1);
            let hidden = real.logical_not().logical_and(&empty.logical_not());
            let zero = Tensor::zeros(real.size(), (Kind::Float, real.device()));
            zero.masked_fill(&hidden, f64::NEG_INFINITY).view([batch, 1, 1, longest])
        });
        Self { places, real, bias, counts, shape: [batch, rows, columns] }
    }

    /// The batch in parts of at most `slices` slices.
    pub(super) fn parts(&self, slices: i64) -> impl Iterator<Item = Part> {
        self.counts.chunks(slices as usize).zip((0..).step_by(slices as usize)).map(|(counts, first)| {
            let longest = counts.iter().copied().max().unwrap_or(0).max(1);
            let slices = counts.len() as i64;
            let bias = self.bias.as_ref().filter(|_| counts.iter().any(|&n| n < longest));
            let bias = bias.map(|bias| bias.narrow(0, first, slices).narrow(3, 0, longest));
            Part { first, slices, longest, bias }
        })
    }

    /// `[B, h, w]` to `[B, N]`.
    pub fn pack(&self, plane: &Tensor) -> Tensor {
        plane.flatten(1, 2).gather(1, &self.places, false)
    }

    /// `[B, S, h, w]` to `[B, S, N]`.
    pub(super) fn pack_slices(&self, planes: &Tensor) -> Tensor {
        let flat = planes.flatten(2, 3);
        let places = self.places.unsqueeze(1).expand([-1, flat.size()[1], -1], false);
        flat.gather(2, &places, false)
    }

    /// `[B, N]` to `[B, h, w]`, with `elsewhere` where no sequence has a token.
    pub fn unpack(&self, values: &Tensor, elsewhere: f64) -> Tensor {
        self.unpack_features(&values.unsqueeze(-1), elsewhere).squeeze_dim(-1)
    }

    /// `[B, N, F]` to `[B, h, w, F]`, with `elsewhere` where no sequence has a token.
    pub(super) fn unpack_features(&self, values: &Tensor, elsewhere: f64) -> Tensor {
        let ([batch, rows, columns], features) = (self.shape, values.size()[2]);
        let real = self.real.unsqueeze(-1);
        let places = self.places.unsqueeze(-1).expand_as(values);
        let planes = Tensor::full([batch, rows * columns, features], elsewhere, (values.kind(), values.device()));
        // Padding has the places of air.
        let values = values.masked_fill(&real.logical_not(), elsewhere);
        planes.scatter(1, &places, &values).view([batch, rows, columns, features])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn what_is_packed_comes_back_to_its_place() {
        let inside = Tensor::from_slice(&[0u8, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0]).view([2, 2, 3]).to_kind(Kind::Bool);
        let packing = Packing::new(&inside);
        let codes = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 2, 3]);
        let packed = packing.pack(&codes);
        assert_eq!(packed.size(), [2, 3]);
        assert_eq!(Vec::<i64>::try_from(packed.get(0)).unwrap(), [1, 2, 4], "raster order");
        assert_eq!(Vec::<bool>::try_from(packing.real.view(-1)).unwrap(), [true, true, true, true, false, false]);
        assert_eq!(packing.unpack(&packed, -1.), codes.where_scalarother(&inside, -1));
        let both = Tensor::stack(&[&codes, &(&codes + 100)], 1);
        assert_eq!(packing.pack_slices(&both).select(1, 1), packed + 100);
    }

    #[test]
    fn parts_are_as_long_as_their_longest_slice() {
        let inside = Tensor::from_slice(&[1u8, 1, 0, 1, 1, 0, 0, 0, 0]).view([3, 1, 3]).to_kind(Kind::Bool);
        let packing = Packing::new(&inside);
        let of = |slices| -> Vec<(i64, i64, i64, bool)> {
            packing.parts(slices).map(|p| (p.first, p.slices, p.longest, p.bias.is_some())).collect()
        };
        assert_eq!(of(2), [(0, 2, 2, false), (2, 1, 1, true)], "an empty slice keeps one place");
        assert_eq!(of(3), [(0, 3, 2, true)]);
    }

    #[test]
    fn a_batch_of_full_slices_needs_no_padding() {
        let packing = Packing::new(&Tensor::ones([2, 2, 3], (Kind::Bool, Device::Cpu)));
        assert!(packing.bias.is_none());
        assert_eq!(packing.places.size(), [2, 6]);
    }
}
