//! The tokenizer's codes as numbers of one or several digits, and as what the transformers see of them.
//!
//! A code of finite scalar quantization (arXiv 2309.15505) is a mixed-radix number: digit `d` is the level of dimension
//! `d`, the first digit counts least. The transformers see a code as its digits, one-hot: two codes that differ by one
//! level look alike to them from the first update on, which a table with a row per code would have to learn from data
//! that a few hundred brains do not hold. A code of a learned codebook has one digit, itself; a training begins with
//! codes that look alike where their vectors do ([`CodeEmbedding::resemble`]).

use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::layers::Linear;

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
    fn width(&self) -> i64 {
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

    /// One-hot digits of all codes and of "masked", `[codes + 1, width]`.
    fn one_hot(&self, device: Device) -> Tensor {
        let codes = Tensor::arange(self.codes() + 1, (Kind::Int64, device));
        let masked = codes.eq(self.mask_code()).unsqueeze(-1);
        // Each place of a row belongs to one digit and stands for one of its levels.
        let places =
            self.levels.iter().enumerate().flat_map(|(digit, &n)| (0..n).map(move |level| (digit as i64, level)));
        let (owner, level): (Vec<i64>, Vec<i64>) = places.unzip();
        let row = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let digits = self.digits(&codes).index_select(-1, &row(&owner));
        let hot = digits.eq_tensor(&row(&level)).logical_and(&masked.logical_not());
        Tensor::cat(&[hot, masked], -1)
    }
}

/// A token's codes, its own and those of the slices around it, to features: a linear map of their one-hot digits.
#[derive(Debug)]
pub(super) struct CodeEmbedding {
    linear: Linear,
    vocabulary: Vocabulary,
    slices: i64,
}

/// What [`CodeEmbedding`] makes of every code.
#[derive(Debug)]
pub(super) struct CodeTable {
    /// `[slices * (codes + 1), features]`.
    rows: Tensor,
    bias: Tensor,
    slices: i64,
}

impl CodeEmbedding {
    /// `slices`: codes of a token.
    pub(super) fn new(p: Path, vocabulary: Vocabulary, slices: i64, features: i64) -> Self {
        Self { linear: Linear::new(p, vocabulary.width() * slices, features, 0.02), vocabulary, slices }
    }

    /// Codes whose `vectors` (`[codes, D]`) are alike get features that are alike, instead of any.
    pub(super) fn resemble(&self, vectors: &Tensor) {
        let (codes, width) = (self.vocabulary.codes(), self.vocabulary.width());
        let weight = self.linear.weight().detach();
        for slice in 0..self.slices {
            resemble(&weight.narrow(1, slice * width, codes).tr(), vectors, EMBEDDING_SD);
        }
    }

    /// A row per code, made once and picked from: there are far fewer codes than tokens.
    pub(super) fn table(&self) -> CodeTable {
        let weight = self.linear.weight();
        let maps = weight.unflatten(1, [self.slices, self.vocabulary.width()]).permute([1, 2, 0]);
        let rows = match self.vocabulary.levels.len() {
            // All codes, one-hot, are the identity.
            1 => maps.contiguous(),
            _ => self.vocabulary.one_hot(weight.device()).to_kind(weight.kind()).matmul(&maps),
        };
        CodeTable { rows: rows.flatten(0, 1), bias: self.linear.bias().shallow_clone(), slices: self.slices }
    }
}

impl CodeTable {
    /// Codes `[.., slices]`, masked ones among them, to features `[.., features]` in `kind`.
    pub(super) fn embed(&self, codes: &Tensor, kind: Kind) -> Tensor {
        let step = self.rows.size()[0] / self.slices;
        let first = Tensor::arange(self.slices, (Kind::Int64, codes.device())) * step;
        let rows = self.rows.index_select(0, &(codes + first).reshape([-1]));
        let shape: Vec<i64> = codes.size().into_iter().chain([-1]).collect();
        // In the weights' own kind until here: gradients of a code's many tokens add up in f32.
        (rows.view(shape.as_slice()).sum_dim_intlist(-2i64, false, None) + &self.bias).to_kind(kind)
    }
}

/// Standard deviation at first of the weights that give a code its logit.
pub(super) const HEAD_SD: f64 = 0.02;

/// Standard deviation of features at first, that of the sum of four digits.
const EMBEDDING_SD: f64 = 0.04;

/// Makes the rows of a weight, `[codes, features]`, random ones of standard deviation `sd` that are alike where the codes'
/// vectors `[codes, D]` are.
pub(super) fn resemble(rows: &Tensor, vectors: &Tensor, sd: f64) {
    let centred = vectors - vectors.mean_dim(0i64, true, Kind::Float);
    let scaled = &centred / (centred.std_dim(0i64, false, true) + 1e-6);
    let width = vectors.size()[1];
    let map = Tensor::randn([width, rows.size()[1]], (Kind::Float, vectors.device())) * (sd / (width as f64).sqrt());
    tch::no_grad(|| rows.shallow_clone().copy_(&scaled.matmul(&map)));
}

#[cfg(test)]
mod tests {
    use tch::nn::VarStore;

    use super::*;

    #[test]
    fn a_code_is_hot_once_per_digit_and_a_masked_one_in_its_own_place() {
        let vocabulary = Vocabulary::new(&[3, 2, 4]);
        assert_eq!((vocabulary.codes(), vocabulary.width()), (24, 10));
        // 23 = 2 + 3 * 1 + 6 * 3; 7 = 1 + 3 * 0 + 6 * 1; 24 is masked.
        let rows = vocabulary.one_hot(Device::Cpu).index_select(0, &Tensor::from_slice(&[23i64, 7, 24]));
        let expected = [
            [0., 0., 1., 0., 1., 0., 0., 0., 1., 0.],
            [0., 1., 0., 1., 0., 0., 1., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0., 0., 0., 0., 1.],
        ];
        assert_eq!(rows.to_kind(Kind::Float), Tensor::from_slice2(&expected).to_kind(Kind::Float));
    }

    #[test]
    fn features_are_a_linear_map_of_one_hot_digits() {
        tch::manual_seed(1);
        for levels in [vec![3, 2, 4], vec![24]] {
            let (store, vocabulary) = (VarStore::new(Device::Cpu), Vocabulary::new(&levels));
            let embedding = CodeEmbedding::new(store.root(), vocabulary.clone(), 2, 5);
            let codes = Tensor::from_slice(&[23i64, 7, 24, 0, 11, 24]).view([1, 3, 2]);
            let one_hot = vocabulary.one_hot(Device::Cpu).to_kind(Kind::Float);
            let rows = one_hot.index_select(0, &codes.view(-1)).view([1, 3, -1]);
            let expected = embedding.linear.forward(&rows);
            let features = embedding.table().embed(&codes, Kind::Float);
            assert!(features.allclose(&expected, 1e-5, 1e-6, false), "{levels:?}: {features} {expected}");
        }
    }

    #[test]
    fn codes_whose_vectors_are_alike_begin_alike() {
        tch::manual_seed(1);
        let store = VarStore::new(Device::Cpu);
        let embedding = CodeEmbedding::new(store.root(), Vocabulary::new(&[50]), 3, 64);
        let vectors = Tensor::randn([50, 4], (Kind::Float, Device::Cpu));
        vectors.get(7).copy_(&(vectors.get(3) + 0.01));
        embedding.resemble(&vectors);
        let features = |code: i64| embedding.table().embed(&Tensor::from_slice(&[code; 3]), Kind::Float);
        let far = |a: i64, b: i64| f64::try_from((features(a) - features(b)).norm()).unwrap();
        assert!(far(3, 7) < 0.05 * far(3, 20) && far(3, 20) > 0.1, "{} {}", far(3, 7), far(3, 20));
    }
}
