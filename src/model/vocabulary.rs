//! The tokenizer's codes as numbers of one or several digits.
//!
//! A code of finite scalar quantization (arXiv 2309.15505) is a mixed-radix number: digit `d` is the level of dimension
//! `d`, the first digit counts least. The transformers see a code as its digits, one-hot: two codes that differ by one
//! level look alike to them from the first update on, which a table with a row per code would have to learn from data
//! that a few hundred brains do not hold. A code of a learned codebook has one digit, itself: one-hot over all codes.

use tch::{Device, Kind, Tensor};

/// Levels of each digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    levels: Vec<i64>,
}

impl Vocabulary {
    /// Codes of as many digits as `levels` has numbers.
    pub fn new(levels: &[i64]) -> Self {
        Self { levels: levels.to_vec() }
    }

    /// Number of codes.
    pub fn codes(&self) -> i64 {
        self.levels.iter().product()
    }

    /// The code that stands for "masked": one beyond the last.
    pub fn mask_code(&self) -> i64 {
        self.codes()
    }

    /// Length of a one-hot row: a place for each level of each digit, and one for "masked".
    pub fn width(&self) -> i64 {
        self.levels.iter().sum::<i64>() + 1
    }

    /// What a step of each digit counts for, `[D]`.
    pub(super) fn basis(&self) -> Vec<i64> {
        (0..self.levels.len()).map(|digit| self.levels[..digit].iter().product()).collect()
    }

    /// Codes of any shape to digits, a new last axis of length D; i64.
    pub fn digits(&self, codes: &Tensor) -> Tensor {
        let row = |values: &[i64]| Tensor::from_slice(values).to_device(codes.device());
        codes.unsqueeze(-1).floor_divide(&row(&self.basis())).remainder_tensor(&row(&self.levels))
    }

    /// Codes of any shape, masked ones among them, to one-hot digits: a new last axis of length [`Self::width`].
    pub(super) fn one_hot(&self, codes: &Tensor, kind: Kind) -> Tensor {
        if self.levels.len() == 1 {
            return self.rows(codes, kind);
        }
        // A row per code, made once and picked from: there are far fewer codes than tokens.
        let rows = self.rows(&Tensor::arange(self.codes() + 1, (Kind::Int64, codes.device())), kind);
        let shape: Vec<i64> = codes.size().into_iter().chain([self.width()]).collect();
        rows.index_select(0, &codes.reshape([-1])).view(shape.as_slice())
    }

    /// One-hot digits of codes of any shape.
    fn rows(&self, codes: &Tensor, kind: Kind) -> Tensor {
        let masked = codes.eq(self.mask_code()).unsqueeze(-1);
        // Each place of a row belongs to one digit and stands for one of its levels.
        let places =
            self.levels.iter().enumerate().flat_map(|(digit, &n)| (0..n).map(move |level| (digit as i64, level)));
        let (owner, level): (Vec<i64>, Vec<i64>) = places.unzip();
        let row = |values: &[i64], device: Device| Tensor::from_slice(values).to_device(device);
        let digits = self.digits(codes).index_select(-1, &row(&owner, codes.device()));
        let hot = digits.eq_tensor(&row(&level, codes.device())).logical_and(&masked.logical_not());
        Tensor::cat(&[hot, masked], -1).to_kind(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_hot_once_per_digit_and_a_masked_one_in_its_own_place() {
        let vocabulary = Vocabulary::new(&[3, 2, 4]);
        assert_eq!((vocabulary.codes(), vocabulary.width()), (24, 10));
        // 23 = 2 + 3 * 1 + 6 * 3; 7 = 1 + 3 * 0 + 6 * 1; 24 is masked.
        let rows = vocabulary.one_hot(&Tensor::from_slice(&[23i64, 7, 24]), Kind::Float);
        let expected = [
            [0., 0., 1., 0., 1., 0., 0., 0., 1., 0.],
            [0., 1., 0., 1., 0., 0., 1., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0., 0., 0., 0., 1.],
        ];
        assert_eq!(rows, Tensor::from_slice2(&expected).to_kind(Kind::Float));
    }
}
