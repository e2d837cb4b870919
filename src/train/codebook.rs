//! Training of a learned codebook by running averages (van den Oord et al., arXiv 1711.00937, appendix A.1).
//!
//! Every vector is the running mean of the latents `[D]` that are nearest to it. A vector that is nearest to hardly any
//! latent is dead: it is moved to a latent of the batch, as in SoundStream (arXiv 2107.03312, section III-C). Here
//! latents far from their vector are chosen with higher probability, since most of a slice is black.

use rand::Rng;
use tch::{Kind, Tensor};

/// Decay of the averages per step.
const DECAY: f64 = 0.99;

/// A vector is dead if its use is below this share of the mean use of all vectors.
const DEAD: f64 = 0.1;

/// Use of a revived vector, as a share of the mean: it is dead again after ln 2 / 0.01, about 70 steps, without use.
const REVIVED: f64 = 0.2;

/// Running averages behind the vectors of a codebook.
pub(super) struct Averages {
    /// The codebook, `[codes, D]`, shared with the tokenizer.
    vectors: Tensor,
    /// Number of latents of a batch that are nearest to each vector, `[codes]`.
    counts: Tensor,
    /// Sum of these latents, `[codes, D]`.
    sums: Tensor,
}

impl Averages {
    /// All vectors start dead, so the first batch places them.
    pub(super) fn new(vectors: &Tensor) -> Self {
        let counts = Tensor::zeros([vectors.size()[0]], (Kind::Float, vectors.device()));
        Self { vectors: vectors.shallow_clone(), counts, sums: vectors.zeros_like() }
    }

    /// The state that a checkpoint has to keep, besides the vectors.
    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        [("codebook.counts", &self.counts), ("codebook.sums", &self.sums)]
            .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
            .into()
    }

    /// The commitment loss of latents `[B, D, h, w]` with codes `[B, h, w]`: mean square distance from their vectors.
    pub(super) fn commitment(&self, latent: &Tensor, codes: &Tensor) -> Tensor {
        (rows(latent) - self.vectors.index_select(0, &codes.view(-1))).square().mean(Kind::Float)
    }

    /// Moves the vectors towards the latents `[B, D, h, w]` that have their codes `[B, h, w]`; `rng` draws the latents
    /// to which dead vectors move.
    pub(super) fn update(&mut self, latent: &Tensor, codes: &Tensor, rng: &mut impl Rng) {
        let (latents, codes) = (rows(&latent.detach()), codes.view(-1));
        let even = latents.size()[0] as f64 / self.counts.size()[0] as f64;
        let ones = codes.ones_like().to_kind(Kind::Float);
        let _ = self.counts.lerp_(&self.counts.zeros_like().index_add(0, &codes, &ones), 1. - DECAY);
        let _ = self.sums.lerp_(&self.sums.zeros_like().index_add(0, &codes, &latents), 1. - DECAY);

        let dead = self.counts.lt(DEAD * even).nonzero().squeeze_dim(1);
        let dead = dead.narrow(0, 0, dead.size()[0].min(latents.size()[0]));
        // Draws without replacement, each latent weighted by its squared distance (Efraimidis and Spirakis, 2006).
        let distance =
            (&latents - self.vectors.index_select(0, &codes)).square().sum_dim_intlist(1i64, false, Kind::Float);
        let draw: Vec<f32> = (0..latents.size()[0]).map(|_| rng.random()).collect();
        let order =
            Tensor::from_slice(&draw).to_device(latents.device()).clamp(1e-7, 1. - 1e-7).log() / (distance + 1e-9);
        let chosen = order.topk(dead.size()[0], 0, true, false).1;
        let counts = Tensor::full([dead.size()[0]], REVIVED * even, (Kind::Float, latents.device()));
        let _ = self.counts.index_copy_(0, &dead, &counts);
        let _ = self.sums.index_copy_(0, &dead, &(latents.index_select(0, &chosen) * (REVIVED * even)));

        let means = &self.sums / self.counts.unsqueeze(1);
        // A small batch may have fewer latents than there are dead vectors.
        let alive = self.counts.ge(DEAD * even).unsqueeze(1);
        self.vectors.copy_(&means.where_self(&alive, &self.vectors));
    }
}

/// `[B, D, h, w]` to `[B * h * w, D]`.
fn rows(latent: &Tensor) -> Tensor {
    latent.permute([0, 2, 3, 1]).reshape([-1, latent.size()[1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::Device;

    /// Latents of two numbers each, as one row of a slice.
    fn latent(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice2(rows).tr().view([1, 2, 1, rows.len() as i64])
    }

    #[test]
    fn a_vector_in_use_moves_to_the_running_mean_of_its_latents() {
        let vectors = Tensor::from_slice2(&[[0f32, 0.], [5., 5.]]);
        let mut averages = Averages::new(&vectors);
        averages.counts.copy_(&Tensor::from_slice(&[2f32, 2.]));
        averages.sums.copy_(&Tensor::from_slice2(&[[0f32, 0.], [10., 10.]]));
        let batch = latent(&[[1., 0.], [0., 2.], [2., 1.], [5., 6.]]);
        let codes = Tensor::from_slice(&[0i64, 0, 0, 1]).view([1, 1, 4]);
        averages.update(&batch, &codes, &mut ChaCha8Rng::seed_from_u64(1));
        // (0.99 * sum + 0.01 * sum of the batch) / (0.99 * 2 + 0.01 * n), for n = 3 and n = 1.
        let expected = [[0.03f32 / 2.01, 0.03 / 2.01], [(9.9 + 0.05) / 1.99, (9.9 + 0.06) / 1.99]];
        assert!(vectors.allclose(&Tensor::from_slice2(&expected), 1e-5, 1e-6, false), "{vectors}");
    }

    #[test]
    fn dead_vectors_move_to_latents_of_the_batch() {
        tch::manual_seed(1);
        let vectors = Tensor::randn([8, 2], (Kind::Float, Device::Cpu)) + 100.;
        let mut averages = Averages::new(&vectors);
        let places: Vec<[f32; 2]> = (0..12).map(|i| [i as f32, (i * i) as f32]).collect();
        let codes = Tensor::zeros([1, 1, 12], (Kind::Int64, Device::Cpu));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        averages.update(&latent(&places), &codes, &mut rng);
        let (now, at): (Vec<f32>, Vec<[f32; 2]>) = (Vec::try_from(vectors.view(-1)).unwrap(), places);
        let is = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let mut taken: Vec<usize> =
            now.chunks(2).map(|v| at.iter().position(|p| is(p, v)).expect("a latent of the batch")).collect();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 8, "no latent is taken twice");
    }

    #[test]
    fn more_dead_vectors_than_latents_wait_for_the_next_batch() {
        let vectors = Tensor::zeros([5, 2], (Kind::Float, Device::Cpu));
        let mut averages = Averages::new(&vectors);
        let codes = Tensor::zeros([1, 1, 2], (Kind::Int64, Device::Cpu));
        averages.update(&latent(&[[1., 1.], [1., 1.]]), &codes, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(f64::try_from(vectors.sum(Kind::Double)).unwrap(), 4.);
    }
}
