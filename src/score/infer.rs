//! Inference on the device: tokens, their anomaly probabilities, and the healthy restoration.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::cells::mean_in_brain;
use super::config::{Evidence, Method, Tail};
use super::settings::Settings;
use super::slices::{Batching, Encoded, Part, Scan, encode};
use crate::error::{Error, Result};
use crate::model::{Decoding, Masked, Networks, Prior, Resampling, TokenSlices};
use crate::volume::Volume;

/// The networks' results for one scan: `S` slices that hold brain, each of `rows x columns` tokens.
#[derive(Debug, Clone)]
pub struct Inference {
    /// Slice numbers on the model's grid, ascending; `S` of them.
    pub slices: Vec<usize>,
    /// Tokens along y and x.
    pub tokens: [usize; 2],
    /// Codes, `S * rows * columns`.
    pub codes: Vec<i16>,
    /// Probability that a token is anomalous, like `codes`.
    pub p_anomalous: Vec<f32>,
    /// Probability that a pixel is anomalous, `S * ny * nx`; a token's is the mean over its pixels. Empty for a method
    /// without a detector.
    pub p_pixel: Vec<f32>,
    /// Negative log-likelihood (nats) of the codes of in-painted tokens, NaN elsewhere; like `codes`.
    pub nll: Vec<f32>,
    /// Number of in-painted tokens.
    pub n_inpainted: usize,
    /// Mean of the restorations, intensities in 0..1, `S * ny * nx` pixels.
    pub restored: Vec<f32>,
    /// Mean over the restorations of |image - restoration|, like `restored`.
    pub residual: Vec<f32>,
}

impl Encoded<'_> {
    /// The detector's probabilities for tokens `[R, rows, columns]` and for pixels `[R, ny, nx]`.
    fn detect(&self, networks: &Networks, kind: Kind) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let mut logits = self.pixels.squeeze_dim(1).zeros_like();
            for rows in self.batches(&self.real()) {
                let [codes, brain, z_mm] =
                    [&self.context, &self.brain, &self.z_mm].map(|tensor| tensor.index_select(0, &rows));
                let here = networks.detector.forward(&codes, &brain, &z_mm, kind);
                let _ = logits.index_copy_(0, &rows, &here);
            }
            (networks.detector.token_probability(&logits), logits.sigmoid())
        })
    }
}

/// `p_anomalous` of a scan's tokens inside the brain, without a restoration; `batch`: slices per batch.
///
/// # Errors
/// [`Error::Input`] where no slice holds brain.
pub fn detect(networks: &Networks, scan: Scan<'_>, batch: usize) -> Result<Vec<f32>> {
    let encoded = encode(networks, &[scan], Batching::alone(batch))?;
    let (p, _) = encoded.detect(networks, Kind::Float);
    Ok(to_vec(&p.masked_select(&encoded.inside)))
}

/// Negative log-likelihoods (nats) under the prior of a scan's tokens inside the brain; `batch`: slices per batch.
///
/// # Errors
/// [`Error::Input`] where no slice holds brain, [`Error::Config`] where the bundle has no prior.
pub fn surprise(networks: &Networks, scan: Scan<'_>, batch: usize) -> Result<Vec<f32>> {
    let encoded = encode(networks, &[scan], Batching::alone(batch))?;
    let prior = prior(networks)?;
    let nll = encoded.batches(&encoded.real()).into_iter().flat_map(|rows| {
        let [codes, inside, z_mm] =
            [&encoded.codes, &encoded.inside, &encoded.z_mm].map(|tensor| tensor.index_select(0, &rows));
        let slices = TokenSlices { codes: &codes, inside: &inside, z_mm: &z_mm };
        let nll = tch::no_grad(|| prior.nll(slices, Kind::Float));
        to_vec::<f32>(&nll.masked_select(&inside))
    });
    Ok(nll.collect())
}

/// The bundle's prior.
fn prior(networks: &Networks) -> Result<&Prior> {
    networks.prior.as_ref().ok_or_else(|| {
        Error::Config(
            "score.method = \"ar\" needs a bundle with a prior, and this one has none: train one with a [train.prior] section"
                .into(),
        )
    })
}

/// The image that the decoder makes of a scan's tokens, without a restoration; 0 in slices without brain.
///
/// # Errors
/// [`Error::Input`] where no slice holds brain.
pub fn reconstruct(networks: &Networks, scan: Scan<'_>) -> Result<Volume<f32>> {
    /// Slices per batch.
    const BATCH: usize = 16;
    let encoded = encode(networks, &[scan], Batching::alone(BATCH))?;
    let plane = scan.image.grid.shape[0] * scan.image.grid.shape[1];
    let mut out = Volume::zeros(scan.image.grid);
    let (codes, heights) = (encoded.codes.split(BATCH as i64, 0), encoded.z_mm.split(BATCH as i64, 0));
    for (slices, (codes, z_mm)) in encoded.parts[0].slices.chunks(BATCH).zip(codes.iter().zip(&heights)) {
        let decoded: Vec<f32> = to_vec(&tch::no_grad(|| networks.tokenizer.decode(codes, z_mm, Kind::Float)));
        for (&z, pixels) in slices.iter().zip(decoded.chunks(plane)) {
            out.data[z * plane..(z + 1) * plane].copy_from_slice(pixels);
        }
    }
    Ok(out)
}

/// Runs the settings' method on scans, and gives an inference for each, in their order. Their slices may share batches,
/// but the numbers of a scan do not depend on the other scans. Draws are seeded by the scan's id, the slice and
/// `score.seed`.
///
/// # Errors
/// [`Error::Input`] where a scan has no slice with brain, [`Error::Config`] where the method needs a prior and the
/// bundle has none, [`Error::NotFinite`] where a scan's numbers are not finite, [`Error::Device`] where libtorch reports an
/// error. Most of libtorch's errors are panics; see
/// [`device::caught`](crate::model::device::caught).
pub fn infer(networks: &Networks, scans: &[Scan<'_>], settings: &Settings) -> Result<Vec<Inference>> {
    let config = &settings.config;
    let kind = config.precision.kind();
    let encoded = encode(networks, scans, settings.batching(networks.device))?;
    let restoring = Restoring { networks, encoded: &encoded, settings, kind };
    let inferences = match config.method {
        Method::Mim if config.evidence == Evidence::Intensity => without_model(&encoded, Tail::Both),
        Method::Mim => restoring.mim()?,
        Method::Ar => restoring.ar()?,
        Method::Threshold => without_model(&encoded, config.tail),
    };
    inferences.iter().try_for_each(Inference::refuse_not_finite)?;
    Ok(inferences)
}

/// A restoration of scans: networks, slices and settings.
struct Restoring<'a> {
    networks: &'a Networks,
    encoded: &'a Encoded<'a>,
    settings: &'a Settings,
    kind: Kind,
}

/// The restoration of all slices.
struct Restored {
    /// Negative log-likelihood of tokens (nats), NaN where not computed, `[R, rows, columns]`.
    nll: Tensor,
    /// Weighted mean of the draws, `[R, ny, nx]`.
    image: Tensor,
    /// Weighted mean of |image - draw|, `[R, ny, nx]`.
    residual: Tensor,
}

impl Restoring<'_> {
    /// [`Method::Mim`]: restores the tokens that the detector finds anomalous.
    fn mim(&self) -> Result<Vec<Inference>> {
        let (config, encoded) = (&self.settings.config, self.encoded);
        let (p, p_pixel) = encoded.detect(self.networks, self.kind);
        let anomalous = p.gt(f64::from(self.settings.token_threshold)).logical_and(&encoded.inside);
        let decoding = Decoding { steps: config.steps.max(1), temperature: config.temperature.max(1e-3) };
        let vocabulary = self.networks.tokenizer.config().codes() as usize;
        // The inpainter runs on slices with anomalous tokens alone.
        let restored = self.restore(&anomalous.flatten(1, 2).any_dim(1, false), None, |rows, draw| {
            let pick = |tensor: &Tensor| tensor.index_select(0, rows);
            let [codes, inside, mask, z_mm] = [&encoded.codes, &encoded.brain, &anomalous, &encoded.z_mm].map(pick);
            let masked =
                Masked { codes: &codes, inside: &inside, mask: &mask, z_mm: &z_mm, shared: encoded.shares_batches() };
            let elsewhere = mask.logical_not();
            if config.restorations == 0 {
                let tokenizer = &self.networks.tokenizer;
                let table = tokenizer.table(self.networks.device);
                let (mean, nll) = self.networks.inpainter.mean(&masked, &table, self.kind);
                let image = tokenizer.decode_embedded(&mean, &z_mm, self.kind).squeeze_dim(1);
                return (image, nll.masked_fill(&elsewhere, f64::NAN));
            }
            let counts: Vec<i64> = to_vec(&mask.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64));
            let noise = self.noise(rows, draw, counts.iter().map(|&n| n as usize * vocabulary));
            let noise = noise.view([-1, vocabulary as i64]);
            let (new, nll) = self.networks.inpainter.restore(&masked, &noise, decoding, self.kind);
            (self.decode(&new, &z_mm), nll.masked_fill(&elsewhere, f64::NAN))
        })?;
        Ok(self.inferences(&p, Some(&p_pixel), &anomalous, &restored))
    }

    /// [`Method::Ar`]: the method of Naval Marimont and Tarroni (arXiv 2012.06765), with a transformer in place of
    /// their PixelSNAIL. `p_anomalous` is the logistic function of the difference between a token's negative
    /// log-likelihood and the limit, in nats.
    fn ar(&self) -> Result<Vec<Inference>> {
        let (config, encoded) = (&self.settings.config, self.encoded);
        let prior = prior(self.networks)?;
        let vocabulary = self.networks.tokenizer.config().codes();
        let resampling = Resampling { limit_nats: self.settings.ar_limit_nats, cached: config.ar_cached };
        let all = encoded.inside.flatten(1, 2).any_dim(1, false);
        // Restorations that are closer to the image have more weight.
        let mut restored = self.restore(&all, Some(3.0), |slices, draw| {
            let pick = |tensor: &Tensor| tensor.index_select(0, slices);
            let [codes, inside, z_mm] = [&encoded.codes, &encoded.inside, &encoded.z_mm].map(pick);
            let noise = |tokens: i64| {
                let per_slice = std::iter::repeat_n((tokens * vocabulary) as usize, slices.size()[0] as usize);
                self.noise(slices, draw, per_slice).view([-1, tokens, vocabulary])
            };
            let tokens = TokenSlices { codes: &codes, inside: &inside, z_mm: &z_mm };
            let (new, nll) = prior.restore(tokens, noise, resampling, self.kind);
            (self.decode(&new, &z_mm), nll)
        })?;
        restored.nll = restored.nll.where_scalarother(&encoded.inside, f64::NAN);
        let p = (&restored.nll - self.settings.ar_limit_nats).sigmoid();
        let p = p.masked_fill(&encoded.inside.logical_not(), 0.);
        let unlikely = restored.nll.gt(self.settings.ar_limit_nats);
        Ok(self.inferences(&p, None, &unlikely, &restored))
    }

    /// Restores the slices that are `open` (`[R]`, bool), `score.restorations` times. `restore` gets the rows of some
    /// of them and the number of the draw, and gives their images `[n, ny, nx]` and likelihoods `[n, rows, columns]`.
    /// With `sharpness`, the weights of a slice's draws are the softmax of `sharpness` divided by their mean distance
    /// from the image; without, all draws have the same weight.
    fn restore(
        &self,
        open: &Tensor,
        sharpness: Option<f64>,
        restore: impl Fn(&Tensor, usize) -> (Tensor, Tensor),
    ) -> Result<Restored> {
        let (config, encoded) = (&self.settings.config, self.encoded);
        let device = self.networks.device;
        let open: Vec<i64> = Vec::try_from(open.nonzero().squeeze_dim(1).to_device(Device::Cpu))?;
        Ok(tch::no_grad(|| {
            let pixels = encoded.pixels.squeeze_dim(1);
            let mut out = Restored {
                nll: Tensor::full(encoded.codes.size(), f64::NAN, (Kind::Float, device)),
                residual: pixels.zeros_like(),
                image: pixels.zeros_like(),
            };
            // Slices without anything to restore are decoded unchanged.
            let closed: Vec<i64> = encoded.real().into_iter().filter(|row| !open.contains(row)).collect();
            for rows in encoded.batches(&closed) {
                let pick = |tensor: &Tensor| tensor.index_select(0, &rows);
                let image = self.decode(&pick(&encoded.codes), &pick(&encoded.z_mm));
                let _ = out.residual.index_copy_(0, &rows, &(pick(&pixels) - &image).abs());
                let _ = out.image.index_copy_(0, &rows, &image);
            }
            for rows in encoded.batches(&open) {
                let here = pixels.index_select(0, &rows);
                let draws: Vec<(Tensor, Tensor)> =
                    (0..config.restorations.max(1)).map(|draw| restore(&rows, draw)).collect();
                let images = Tensor::stack(&draws.iter().map(|(image, _)| image).collect::<Vec<_>>(), 0);
                let residuals = (&images - &here).abs();
                // [draws, slices, 1, 1]
                let distance = residuals.mean_dim([2i64, 3].as_slice(), true, Kind::Float);
                let weights = match sharpness {
                    Some(sharpness) => (distance.clamp_min(1e-6).reciprocal() * sharpness).softmax(0, Kind::Float),
                    None => distance.ones_like() / draws.len() as f64,
                };
                let mean = |values: &Tensor| (values * &weights).sum_dim_intlist(0i64, false, Kind::Float);
                let _ = out.image.index_copy_(0, &rows, &mean(&images));
                let _ = out.residual.index_copy_(0, &rows, &mean(&residuals));
                let _ = out.nll.index_copy_(0, &rows, &draws[0].1);
            }
            out
        }))
    }

    /// Codes `[n, rows, columns]` to images `[n, ny, nx]`.
    fn decode(&self, codes: &Tensor, z_mm: &Tensor) -> Tensor {
        self.networks.tokenizer.decode(codes, z_mm, self.kind).squeeze_dim(1)
    }

    /// Uniform random numbers for slices of one draw: `counts` numbers for each row, concatenated. They depend on the
    /// scan, the slice and the draw, and not on the other rows; those of fillers are 0.
    fn noise(&self, rows: &Tensor, draw: usize, counts: impl Iterator<Item = usize>) -> Tensor {
        let mut values: Vec<f32> = Vec::new();
        for (row, count) in to_vec::<i64>(rows).into_iter().zip(counts) {
            let Some((scan_id, slice)) = self.encoded.slice(row) else {
                values.resize(values.len() + count, 0.);
                continue;
            };
            let mut rng = draw_rng(scan_id, self.settings.config.seed);
            rng.set_stream(((slice as u64) << 16) + draw as u64);
            values.extend((0..count).map(|_| rng.random::<f32>()));
        }
        Tensor::from_slice(&values).to_device(self.networks.device)
    }

    /// Splits the results by scan. `p` and `restored_tokens` are `[R, rows, columns]`, `p_pixel` is `[R, ny, nx]`.
    fn inferences(
        &self,
        p: &Tensor,
        p_pixel: Option<&Tensor>,
        restored_tokens: &Tensor,
        restored: &Restored,
    ) -> Vec<Inference> {
        let inference = |part: &Part<'_>| {
            let of = |tensor: &Tensor| tensor.narrow(0, part.rows.start as i64, part.rows.len() as i64);
            let n: Vec<i64> = to_vec(&of(restored_tokens).sum(Kind::Int64));
            Inference {
                slices: part.slices.clone(),
                tokens: self.encoded.tokens(),
                codes: codes(&of(&self.encoded.codes)),
                p_anomalous: to_vec(&of(p)),
                p_pixel: p_pixel.map(|p| to_vec(&of(p))).unwrap_or_default(),
                nll: to_vec(&of(&restored.nll)),
                n_inpainted: n.iter().sum::<i64>() as usize,
                restored: to_vec(&of(&restored.image)),
                residual: to_vec(&of(&restored.residual)),
            }
        };
        self.encoded.parts.iter().map(inference).collect()
    }
}

/// Codes in the type that the tables hold.
fn codes(codes: &Tensor) -> Vec<i16> {
    to_vec::<i64>(codes).into_iter().map(|code| code as i16).collect()
}

/// The intensity itself as a score: `residual` is a voxel's distance from the healthy end of the tail, `p_anomalous`
/// its mean over a token's brain, and nothing is restored.
fn without_model(encoded: &Encoded<'_>, tail: Tail) -> Vec<Inference> {
    let inference = |part: &Part<'_>| {
        let Scan { image, brain, .. } = part.scan;
        let plane = image.grid.shape[0] * image.grid.shape[1];
        let inside = image.data.iter().zip(&brain.data).filter(|&(_, &b)| b > 0);
        let mut inside: Vec<f32> = inside.map(|(&v, _)| v).collect();
        let half = inside.len() / 2;
        let median = if inside.is_empty() { 0. } else { *inside.select_nth_unstable_by(half, f32::total_cmp).1 };
        let score = |v: f32| match tail {
            Tail::Dark => 1. - v,
            Tail::Bright => v,
            Tail::Both => (v - median).abs(),
        };
        let tokens @ [rows, columns] = encoded.tokens();
        let pixels = |value: &dyn Fn(f32) -> f32| {
            let slices = part.slices.iter();
            slices.flat_map(|&z| &image.data[z * plane..(z + 1) * plane]).map(|&v| value(v)).collect::<Vec<f32>>()
        };
        let n = part.slices.len();
        Inference {
            slices: part.slices.clone(),
            tokens,
            codes: codes(&encoded.codes.narrow(0, part.rows.start as i64, n as i64)),
            p_anomalous: mean_in_brain(brain, &part.slices, tokens, |i| score(image.data[i])),
            p_pixel: Vec::new(),
            nll: vec![f32::NAN; n * rows * columns],
            n_inpainted: 0,
            restored: pixels(&|v| v),
            residual: pixels(&score),
        }
    };
    encoded.parts.iter().map(inference).collect()
}

/// The generator of a scan's draws.
fn draw_rng(scan_id: &str, seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::digest(format!("{seed}\0{scan_id}")).into())
}

/// A tensor's values in row-major order.
fn to_vec<T: tch::kind::Element>(tensor: &Tensor) -> Vec<T>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    // A contiguous one-dimensional CPU tensor always converts.
    Vec::try_from(tensor.to_device(Device::Cpu).contiguous().view(-1)).expect("contiguous CPU tensor")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::super::config::ScoreConfig;
    use super::*;
    use crate::model::{Preset, device};
    use crate::preprocess::model_grid;

    /// An ellipsoid of noise; semi-axes in voxels.
    fn ball(seed: u64, half: [f64; 3]) -> (Volume<f32>, Volume<u8>) {
        let grid = model_grid();
        let [nx, ny, nz] = grid.shape;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut image, mut brain) = (Volume::zeros(grid), Volume::<u8>::zeros(grid));
        for i in 0..nx * ny * nz {
            let at = [i % nx, i / nx % ny, i / (nx * ny)];
            let far: f64 = (0..3).map(|a| ((at[a] as f64 - grid.shape[a] as f64 / 2.) / half[a]).powi(2)).sum();
            if far < 1. {
                brain.data[i] = 1;
                image.data[i] = rng.random();
            }
        }
        (image, brain)
    }

    /// Which fields of two inferences have the same bits.
    fn same(a: &Inference, b: &Inference) -> [bool; 8] {
        let floats = |a: &[f32], b: &[f32]| a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
        [
            a.slices == b.slices,
            a.codes == b.codes,
            a.n_inpainted == b.n_inpainted,
            floats(&a.p_anomalous, &b.p_anomalous),
            floats(&a.p_pixel, &b.p_pixel),
            floats(&a.nll, &b.nll),
            floats(&a.restored, &b.restored),
            floats(&a.residual, &b.residual),
        ]
    }

    #[test]
    fn the_numbers_of_a_scan_do_not_depend_on_the_scans_that_share_its_batches() {
        device::on_calling_thread();
        let networks = Preset::Tiny.sizes().networks(Device::Cpu, Kind::Float, 3);
        let balls =
            [(1, [30., 40., 6.]), (2, [18., 12., 9.]), (3, [37., 30., 3.])].map(|(seed, half)| ball(seed, half));
        let ids = ["a", "b", "c"];
        let scans: Vec<Scan<'_>> =
            ids.iter().zip(&balls).map(|(scan_id, (image, brain))| Scan { scan_id, image, brain }).collect();
        for restorations in [0, 2] {
            let settings = |scans_at_once| Settings {
                config: ScoreConfig {
                    restorations,
                    scans_at_once: NonZeroUsize::new(scans_at_once),
                    batch_slices: 4,
                    ..ScoreConfig::default()
                },
                // Random networks call about half of the tokens anomalous.
                token_threshold: 0.5,
                mask_threshold: 0.5,
                ar_limit_nats: 5.,
                healthy: None,
            };
            let together = infer(&networks, &scans, &settings(3)).unwrap();
            assert!(together.iter().all(|one| one.n_inpainted > 10), "something is restored in each");
            for (scan, together) in scans.iter().zip(&together) {
                let alone = infer(&networks, std::slice::from_ref(scan), &settings(3)).unwrap();
                assert_eq!(same(&alone[0], together), [true; 8], "scan {}, {restorations} draws", scan.scan_id);
                // Batches of one scan give the same numbers except for rounding.
                let own = infer(&networks, std::slice::from_ref(scan), &settings(1)).unwrap();
                assert_eq!(own[0].codes, together.codes);
                let far = own[0].p_pixel.iter().zip(&together.p_pixel).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                assert!(far < 1e-4, "{far}");
            }
        }
    }
}
