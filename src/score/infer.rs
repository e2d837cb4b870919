//! The networks' part: tokens, their anomaly probabilities, and the healthy restoration.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::map::{mean_in_brain, token_brain_fraction};
use super::{Evidence, MIN_TOKEN_BRAIN, Method, Settings, Tail, batch_slices};
use crate::error::{Error, Result};
use crate::model::{CONTEXT, Decoding, Masked, Networks, Prior, Resampling};
use crate::volume::Volume;

/// What the networks say of one scan. `S` slices were looked at, each of `rows x columns` tokens.
#[derive(Debug, Clone)]
pub struct Inference {
    /// Slice numbers on the model's grid, ascending; `S` of them.
    pub slices: Vec<usize>,
    /// Tokens along y and x.
    pub tokens: [usize; 2],
    /// Codes, `S * rows * columns`.
    pub codes: Vec<i16>,
    /// Probability of being anomalous, like `codes`.
    pub p_anomalous: Vec<f32>,
    /// Probability of being anomalous, `S * ny * nx` pixels; a token's is the mean over its pixels. Empty where the method
    /// has no detector.
    pub p_pixel: Vec<f32>,
    /// Negative log-likelihood in nats of in-painted tokens' codes, NaN elsewhere; like `codes`.
    pub nll: Vec<f32>,
    /// Tokens that were in-painted.
    pub n_inpainted: usize,
    /// Mean of the restorations, intensities in 0..1, `S * ny * nx` pixels.
    pub restored: Vec<f32>,
    /// Mean over the restorations of |image - restoration|, like `restored`.
    pub residual: Vec<f32>,
}

/// The slices of a scan that hold brain, as tokens.
#[derive(Debug)]
struct Encoded {
    slices: Vec<usize>,
    z_mm: Tensor,
    /// Pixels `[S, 1, ny, nx]`.
    pixels: Tensor,
    /// `[S, rows, columns]`.
    codes: Tensor,
    /// Codes of each slice and its neighbours, `[S, 3, rows, columns]`.
    context: Tensor,
    /// Tokens that hold brain, `[S, rows, columns]`.
    brain: Tensor,
    /// Tokens with enough brain in them to be judged, `[S, rows, columns]`.
    inside: Tensor,
}

/// Runs the tokenizer over every slice that holds brain, and over those beside them that the detector looks at. In f32
/// always: rounding moves codes, and all else works with them.
fn encode(networks: &Networks, image: &Volume<f32>, brain: &Volume<u8>, batch: usize) -> Result<Encoded> {
    let [nx, ny, nz] = image.grid.shape;
    let plane = nx * ny;
    let slices: Vec<usize> =
        brain.data.chunks(plane).enumerate().filter(|(_, m)| m.iter().any(|&v| v > 0)).map(|(z, _)| z).collect();
    if slices.is_empty() {
        return Err(Error::input("no_brain", "no slice of the model's grid holds brain"));
    }
    let beside = |z: usize| CONTEXT.map(|offset| (z as i64 + offset).clamp(0, nz as i64 - 1) as usize);
    let mut seen: Vec<usize> = slices.iter().flat_map(|&z| beside(z)).collect();
    seen.sort_unstable();
    seen.dedup();
    let values: Vec<f32> = seen.iter().flat_map(|&z| &image.data[z * plane..(z + 1) * plane]).copied().collect();
    let pixels = Tensor::from_slice(&values).view([seen.len() as i64, 1, ny as i64, nx as i64]);
    let pixels = pixels.to_device(networks.device);
    let heights_of = |slices: &[usize]| {
        let mm: Vec<f32> = slices.iter().map(|&z| image.grid.affine.apply([0., 0., z as f64])[2] as f32).collect();
        Tensor::from_slice(&mm).to_device(networks.device)
    };
    let codes = tch::no_grad(|| {
        let (pixels, heights) = (pixels.split(batch as i64, 0), heights_of(&seen).split(batch as i64, 0));
        let parts: Vec<Tensor> =
            pixels.iter().zip(&heights).map(|(pixels, z_mm)| networks.tokenizer.encode(pixels, z_mm)).collect();
        Tensor::cat(&parts, 0)
    });
    let rows_of = |slices: Vec<usize>| {
        let rows: Vec<i64> = slices.into_iter().map(|z| seen.partition_point(|&other| other < z) as i64).collect();
        Tensor::from_slice(&rows).to_device(networks.device)
    };
    let (own, around) = (rows_of(slices.clone()), rows_of(slices.iter().flat_map(|&z| beside(z)).collect()));
    let context = codes.index_select(0, &around).unflatten(0, [slices.len() as i64, CONTEXT.len() as i64]);
    let codes = codes.index_select(0, &own);
    let fraction = Tensor::from_slice(&token_brain_fraction(brain, &slices, tokens(&codes))).view_as(&codes);
    Ok(Encoded {
        z_mm: heights_of(&slices),
        pixels: pixels.index_select(0, &own),
        brain: fraction.gt(0.).to_device(networks.device),
        inside: fraction.ge(f64::from(MIN_TOKEN_BRAIN)).to_device(networks.device),
        context,
        codes,
        slices,
    })
}

impl Encoded {
    /// The detector's probabilities of tokens, `[S, rows, columns]`, and of pixels, `[S, ny, nx]`.
    fn detect(&self, networks: &Networks, batch: usize, kind: Kind) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let parts = |tensor: &Tensor| tensor.split(batch as i64, 0);
            let (codes, brain, heights) = (parts(&self.context), parts(&self.brain), parts(&self.z_mm));
            let logits: Vec<Tensor> = codes
                .iter()
                .zip(brain.iter().zip(&heights))
                .map(|(codes, (brain, z_mm))| networks.detector.forward(codes, brain, z_mm, kind))
                .collect();
            let logits = Tensor::cat(&logits, 0);
            (networks.detector.token_probability(&logits), logits.sigmoid())
        })
    }
}

/// `p_anomalous` of a scan's tokens inside the brain, without restoring anything.
///
/// `image`: intensities in 0..1 on the model's grid; `brain`: its mask, 0 or 1.
///
/// # Errors
/// [`Error::Input`] where there is no brain, [`Error::Device`] where libtorch fails.
pub fn detect(networks: &Networks, image: &Volume<f32>, brain: &Volume<u8>, batch: usize) -> Result<Vec<f32>> {
    let encoded = encode(networks, image, brain, batch.max(1))?;
    let (p, _) = encoded.detect(networks, batch.max(1), Kind::Float);
    Ok(to_vec(&p.masked_select(&encoded.inside)))
}

/// Negative log-likelihoods (nats), under the prior, of a scan's tokens inside the brain.
///
/// # Errors
/// [`Error::Input`] where there is no brain, [`Error::Config`] where the bundle has no prior.
pub fn surprise(networks: &Networks, image: &Volume<f32>, brain: &Volume<u8>, batch: usize) -> Result<Vec<f32>> {
    let encoded = encode(networks, image, brain, batch.max(1))?;
    let prior = prior(networks)?;
    let parts = |tensor: &Tensor| tensor.split(batch.max(1) as i64, 0);
    let (codes, inside, heights) = (parts(&encoded.codes), parts(&encoded.inside), parts(&encoded.z_mm));
    let nll = codes.iter().zip(inside.iter().zip(&heights)).flat_map(|(codes, (inside, z_mm))| {
        let nll = tch::no_grad(|| prior.nll(codes, inside, z_mm, Kind::Float));
        to_vec::<f32>(&nll.masked_select(inside))
    });
    Ok(nll.collect())
}

/// The bundle's prior.
fn prior(networks: &Networks) -> Result<&Prior> {
    networks.prior.as_ref().ok_or_else(|| {
        Error::Config(
            "the bundle has no prior, which score.method = \"ar\" needs: train one with a [train.prior] section".into(),
        )
    })
}

/// The image as its tokens have it: decoded, nothing restored; 0 in slices without brain.
///
/// # Errors
/// [`Error::Input`] where there is no brain, [`Error::Device`] where libtorch fails.
pub fn reconstruct(networks: &Networks, image: &Volume<f32>, brain: &Volume<u8>) -> Result<Volume<f32>> {
    /// Slices that pass through the decoder at once.
    const BATCH: usize = 16;
    let encoded = encode(networks, image, brain, BATCH)?;
    let plane = image.grid.shape[0] * image.grid.shape[1];
    let mut out = Volume::zeros(image.grid);
    let (codes, heights) = (encoded.codes.split(BATCH as i64, 0), encoded.z_mm.split(BATCH as i64, 0));
    for (slices, (codes, z_mm)) in encoded.slices.chunks(BATCH).zip(codes.iter().zip(&heights)) {
        let decoded: Vec<f32> = to_vec(&tch::no_grad(|| networks.tokenizer.decode(codes, z_mm, Kind::Float)));
        for (&z, pixels) in slices.iter().zip(decoded.chunks(plane)) {
            out.data[z * plane..(z + 1) * plane].copy_from_slice(pixels);
        }
    }
    Ok(out)
}

/// Runs the method of the settings over one scan; draws are seeded by `scan_id`, the slice and the settings' seed.
///
/// # Errors
/// [`Error::Input`] where there is no brain, [`Error::Config`] where the bundle lacks what the method needs,
/// [`Error::Device`] where libtorch fails.
pub fn infer(
    networks: &Networks,
    image: &Volume<f32>,
    brain: &Volume<u8>,
    scan_id: &str,
    settings: &Settings,
) -> Result<Inference> {
    let config = &settings.config;
    let kind = config.precision.kind();
    let encoded = encode(networks, image, brain, batch_slices(config.batch_slices, networks.device))?;
    let restoring = Restoring { networks, encoded: &encoded, settings, scan_id, kind };
    match config.method {
        Method::Mim if config.evidence == Evidence::Intensity => Ok(without_model(&encoded, image, brain, Tail::Both)),
        Method::Mim => restoring.mim(),
        Method::Ar => restoring.ar(),
        Method::Threshold => Ok(without_model(&encoded, image, brain, config.tail)),
    }
}

/// Everything that restoring a scan needs.
struct Restoring<'a> {
    networks: &'a Networks,
    encoded: &'a Encoded,
    settings: &'a Settings,
    scan_id: &'a str,
    kind: Kind,
}

/// Restorations of all slices.
struct Restored {
    nll: Tensor,
    /// Each `[S, ny, nx]`.
    image: Tensor,
    residual: Tensor,
}

impl Restoring<'_> {
    fn batch(&self) -> usize {
        batch_slices(self.settings.config.batch_slices, self.networks.device)
    }

    fn mim(&self) -> Result<Inference> {
        let (config, encoded) = (&self.settings.config, self.encoded);
        let (p, p_pixel) = encoded.detect(self.networks, self.batch(), self.kind);
        let anomalous = p.gt(f64::from(self.settings.token_threshold)).logical_and(&encoded.inside);
        let decoding = Decoding { steps: config.steps.max(1), temperature: config.temperature.max(1e-3) };
        let vocabulary = self.networks.tokenizer.config().codes() as usize;
        // Only slices with something to restore pass through the inpainter.
        let restored = self.restore(&anomalous.flatten(1, 2).any_dim(1, false), None, |rows, draw| {
            let pick = |tensor: &Tensor| tensor.index_select(0, rows);
            let [codes, inside, mask, z_mm] = [&encoded.codes, &encoded.brain, &anomalous, &encoded.z_mm].map(pick);
            let masked = Masked { codes: &codes, inside: &inside, mask: &mask, z_mm: &z_mm };
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
        Ok(self.inference(&p, Some(&p_pixel), &anomalous, restored))
    }

    /// As Naval Marimont and Tarroni (arXiv 2012.06765) do, with a transformer for their PixelSNAIL. `p_anomalous` is the
    /// logistic function of how far a token's negative log-likelihood lies above the limit, in nats.
    fn ar(&self) -> Result<Inference> {
        let (config, encoded) = (&self.settings.config, self.encoded);
        let prior = prior(self.networks)?;
        let vocabulary = self.networks.tokenizer.config().codes();
        let resampling = Resampling { limit_nats: self.settings.ar_limit_nats, cached: config.ar_cached };
        let all = encoded.inside.flatten(1, 2).any_dim(1, false);
        // Restorations close to the input count more.
        let mut restored = self.restore(&all, Some(3.0), |slices, draw| {
            let pick = |tensor: &Tensor| tensor.index_select(0, slices);
            let [codes, inside, z_mm] = [&encoded.codes, &encoded.inside, &encoded.z_mm].map(pick);
            let noise = |tokens: i64| {
                let per_slice = std::iter::repeat_n((tokens * vocabulary) as usize, slices.size()[0] as usize);
                self.noise(slices, draw, per_slice).view([-1, tokens, vocabulary])
            };
            let (new, nll) = prior.restore(&codes, &inside, &z_mm, noise, resampling, self.kind);
            (self.decode(&new, &z_mm), nll)
        })?;
        restored.nll = restored.nll.where_scalarother(&encoded.inside, f64::NAN);
        let p = (&restored.nll - self.settings.ar_limit_nats).sigmoid().nan_to_num(0., 0., 0.);
        let unlikely = restored.nll.gt(self.settings.ar_limit_nats);
        Ok(self.inference(&p, None, &unlikely, restored))
    }

    /// Draws restorations of the slices that are `open` (`[S]`, bool). `restore` gets the numbers of some of them and the
    /// number of the draw, and gives their images `[n, ny, nx]` and the likelihoods. A restoration's weight is the softmax of `sharpness`
    /// over its mean distance from the image; all weigh the same without.
    fn restore(
        &self,
        open: &Tensor,
        sharpness: Option<f64>,
        restore: impl Fn(&Tensor, usize) -> (Tensor, Tensor),
    ) -> Result<Restored> {
        let (config, encoded) = (&self.settings.config, self.encoded);
        let (batch, device) = (self.batch(), self.networks.device);
        let open: Vec<i64> = Vec::try_from(open.nonzero().squeeze_dim(1).to_device(Device::Cpu))?;
        Ok(tch::no_grad(|| {
            let pixels = encoded.pixels.squeeze_dim(1);
            let mut out = Restored {
                nll: Tensor::full(encoded.codes.size(), f64::NAN, (Kind::Float, device)),
                residual: pixels.zeros_like(),
                image: pixels.zeros_like(),
            };
            // Where nothing is restored, what the tokens say stands.
            let closed: Vec<i64> = (0..encoded.slices.len() as i64).filter(|row| !open.contains(row)).collect();
            for chunk in closed.chunks(batch) {
                let rows = Tensor::from_slice(chunk).to_device(device);
                let pick = |tensor: &Tensor| tensor.index_select(0, &rows);
                let image = self.decode(&pick(&encoded.codes), &pick(&encoded.z_mm));
                let _ = out.residual.index_copy_(0, &rows, &(pick(&pixels) - &image).abs());
                let _ = out.image.index_copy_(0, &rows, &image);
            }
            for chunk in open.chunks(batch) {
                let rows = Tensor::from_slice(chunk).to_device(device);
                let here = pixels.index_select(0, &rows);
                let draws: Vec<(Tensor, Tensor)> =
                    (0..config.restorations.max(1)).map(|draw| restore(&rows, draw)).collect();
                let images = Tensor::stack(&draws.iter().map(|(image, _)| image).collect::<Vec<_>>(), 0);
                let residuals = (&images - &here).abs();
                // [draws, slices, 1, 1]
                let far = residuals.mean_dim([2i64, 3].as_slice(), true, Kind::Float);
                let weights = match sharpness {
                    Some(sharpness) => (far.clamp_min(1e-6).reciprocal() * sharpness).softmax(0, Kind::Float),
                    None => far.ones_like() / draws.len() as f64,
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

    /// Uniform numbers for some slices of one draw, `counts` of them for each, one after the other. They depend on the
    /// scan, the slice and the draw, not on what else is in the batch.
    fn noise(&self, rows: &Tensor, draw: usize, counts: impl Iterator<Item = usize>) -> Tensor {
        let mut values: Vec<f32> = Vec::new();
        for (row, count) in to_vec::<i64>(rows).into_iter().zip(counts) {
            let mut rng = draw_rng(self.scan_id, self.settings.config.seed);
            rng.set_stream(((self.encoded.slices[row as usize] as u64) << 16) + draw as u64);
            values.extend((0..count).map(|_| rng.random::<f32>()));
        }
        Tensor::from_slice(&values).to_device(self.networks.device)
    }

    fn inference(
        &self,
        p: &Tensor,
        p_pixel: Option<&Tensor>,
        restored_tokens: &Tensor,
        restored: Restored,
    ) -> Inference {
        let codes: Vec<i64> = to_vec(&self.encoded.codes);
        let n: Vec<i64> = to_vec(&restored_tokens.sum(Kind::Int64));
        Inference {
            slices: self.encoded.slices.clone(),
            tokens: tokens(&self.encoded.codes),
            codes: codes.into_iter().map(|c| c as i16).collect(),
            p_anomalous: to_vec(p),
            p_pixel: p_pixel.map(to_vec).unwrap_or_default(),
            nll: to_vec(&restored.nll),
            n_inpainted: n.iter().sum::<i64>() as usize,
            restored: to_vec(&restored.image),
            residual: to_vec(&restored.residual),
        }
    }
}

/// The intensity itself as a score: `residual` is how far a voxel lies in the tail, `p_anomalous` its mean over a token's
/// brain, and nothing is restored.
fn without_model(encoded: &Encoded, image: &Volume<f32>, brain: &Volume<u8>, tail: Tail) -> Inference {
    let plane = image.grid.shape[0] * image.grid.shape[1];
    let mut inside: Vec<f32> = image.data.iter().zip(&brain.data).filter(|&(_, &b)| b > 0).map(|(&v, _)| v).collect();
    let half = inside.len() / 2;
    let median = if inside.is_empty() { 0. } else { *inside.select_nth_unstable_by(half, f32::total_cmp).1 };
    let score = |v: f32| match tail {
        Tail::Dark => 1. - v,
        Tail::Bright => v,
        Tail::Both => (v - median).abs(),
    };
    let tokens @ [rows, columns] = tokens(&encoded.codes);
    let p_anomalous = mean_in_brain(brain, &encoded.slices, tokens, |i| score(image.data[i]));
    let pixels = |value: &dyn Fn(f32) -> f32| {
        let slices = encoded.slices.iter();
        slices.flat_map(|&z| &image.data[z * plane..(z + 1) * plane]).map(|&v| value(v)).collect::<Vec<f32>>()
    };
    let n = encoded.slices.len();
    Inference {
        slices: encoded.slices.clone(),
        tokens,
        codes: to_vec::<i64>(&encoded.codes).into_iter().map(|c| c as i16).collect(),
        p_anomalous,
        p_pixel: Vec::new(),
        nll: vec![f32::NAN; n * rows * columns],
        n_inpainted: 0,
        restored: pixels(&|v| v),
        residual: pixels(&score),
    }
}

/// Rows and columns of codes `[S, rows, columns]`.
fn tokens(codes: &Tensor) -> [usize; 2] {
    [codes.size()[1] as usize, codes.size()[2] as usize]
}

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
