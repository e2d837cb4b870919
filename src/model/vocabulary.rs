//! The tokenizer's codes as mixed-radix numbers, and their embedding in the transformers: codes `[.., slices]` to
//! features `[.., width]`.
//!
//! A code of finite scalar quantization (arXiv 2309.15505) is a mixed-radix number: digit `d` is the level of dimension
//! `d`, and the first digit is the least significant. The transformers embed the one-hot digits of a code, so two codes
//! that differ in one level share most of their embedding from the first update on. A table with a row per code would
//! have to learn that from more data than a few hundred brains. A code of a learned codebook has one digit, itself;
//! there, [`CodeEmbedding::resemble`] makes embeddings start as similar as the codebook vectors are.

use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::layers::Linear;

/// Levels of each digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    levels: Vec<i64>,
}

impl Vocabulary {
    /// Codes with one digit per entry of `levels`, each of which is the number of values of that digit.
    pub fn new(levels: &[i64]) -> Self {
        Self { levels: levels.to_vec() }
    }

    /// Number of codes.
    pub fn codes(&self) -> i64 {
        self.levels.iter().product()
    }

    /// The code that stands for "masked": one above the last code.
    pub fn mask_code(&self) -> i64 {
        self.codes()
    }

    /// Length of a one-hot row: one entry for each level of each digit, and one for "masked".
    fn width(&self) -> i64 {
        self.levels.iter().sum::<i64>() + 1
    }

    /// Place value of each digit, `[D]`.
    pub(super) fn basis(&self) -> Vec<i64> {
        (0..self.levels.len()).map(|digit| self.levels[..digit].iter().product()).collect()
    }

    /// Codes `[..]` to their digits `[.., D]`, i64.
    pub fn digits(&self, codes: &Tensor) -> Tensor {
        let row = |values: &[i64]| Tensor::from_slice(values).to_device(codes.device());
        codes.unsqueeze(-1).floor_divide(&row(&self.basis())).remainder_tensor(&row(&self.levels))
    }

    /// One-hot digits of all codes and of "masked", `[codes + 1, width]`.
    fn one_hot(&self, device: Device) -> Tensor {
        let codes = Tensor::arange(self.codes() + 1, (Kind::Int64, device));
        let masked = codes.eq(self.mask_code()).unsqueeze(-1);
        // Each entry of a row stands for one level of one digit.
        let places =
            self.levels.iter().enumerate().flat_map(|(digit, &n)| (0..n).map(move |level| (digit as i64, level)));
        let (owner, level): (Vec<i64>, Vec<i64>) = places.unzip();
        let row = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let digits = self.digits(&codes).index_select(-1, &row(&owner));
        let hot = digits.eq_tensor(&row(&level)).logical_and(&masked.logical_not());
        Tensor::cat(&[hot, masked], -1)
    }
}

/// A linear map from the one-hot digits of a token's codes, its own and those of the slices around it, to features.
#[derive(Debug)]
pub(super) struct CodeEmbedding {
    linear: Linear,
    vocabulary: Vocabulary,
    slices: i64,
}

/// The features that [`CodeEmbedding`] gives every code.
#[derive(Debug)]
pub(super) struct CodeTable {
    /// `[slices * (codes + 1), features]`.
    rows: Tensor,
    bias: Tensor,
    slices: i64,
}

impl CodeEmbedding {
    /// `slices`: codes per token.
    pub(super) fn new(p: Path, vocabulary: Vocabulary, slices: i64, features: i64) -> Self {
        Self { linear: Linear::new(p, vocabulary.width() * slices, features, 0.02), vocabulary, slices }
    }

    /// Draws new initial weights under which codes with similar codebook vectors (`[codes, D]`) have similar features.
    pub(super) fn resemble(&self, vectors: &Tensor) {
        let (codes, width) = (self.vocabulary.codes(), self.vocabulary.width());
        let weight = self.linear.weight().detach();
        for slice in 0..self.slices {
            resemble(&weight.narrow(1, slice * width, codes).tr(), vectors, EMBEDDING_SD);
        }
    }

    /// The features of all codes. Computed once per pass and indexed by token, since codes are fewer than tokens.
    pub(super) fn table(&self) -> CodeTable {
        let weight = self.linear.weight();
        let maps = weight.unflatten(1, [self.slices, self.vocabulary.width()]).permute([1, 2, 0]);
        let rows = match self.vocabulary.levels.len() {
            // The one-hot rows of all codes form the identity matrix.
            1 => maps.contiguous(),
            _ => self.vocabulary.one_hot(weight.device()).to_kind(weight.kind()).matmul(&maps),
        };
        CodeTable { rows: rows.flatten(0, 1), bias: self.linear.bias().shallow_clone(), slices: self.slices }
    }
}

impl CodeTable {
    /// Codes `[.., slices]`, which may be masked, to features `[.., features]` in `kind`.
    pub(super) fn embed(&self, codes: &Tensor, kind: Kind) -> Tensor {
        let step = self.rows.size()[0] / self.slices;
        let first = Tensor::arange(self.slices, (Kind::Int64, codes.device())) * step;
        let rows = self.rows.index_select(0, &(codes + first).reshape([-1]));
        let shape: Vec<i64> = codes.size().into_iter().chain([-1]).collect();
        // Cast last, so that the gradients of a code's many tokens are summed in f32.
        (rows.view(shape.as_slice()).sum_dim_intlist(-2i64, false, None) + &self.bias).to_kind(kind)
    }
}

/// Initial standard deviation of embeddings: that of a sum of four digits.
const EMBEDDING_SD: f64 = 0.04;

/// Overwrites a weight `[codes, features]` with a random linear map of the codebook vectors `[codes, D]`, of standard
/// deviation `sd`: codes with similar vectors get similar rows.
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
    fn a_code_is_one_hot_per_digit_and_a_masked_one_has_its_own_entry() {
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
    fn codes_with_similar_vectors_start_with_similar_features() {
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
