//! The networks' part: tokens, their anomaly probabilities, and the healthy restoration.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::{MIN_TOKEN_BRAIN, Settings, map::token_brain_fraction};
use crate::error::{Error, Result};
use crate::model::{Decoding, Networks};
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
    /// Negative log-likelihood in nats of in-painted tokens' codes, NaN elsewhere; like `codes`.
    pub nll: Vec<f32>,
    /// Tokens that were in-painted.
    pub n_inpainted: usize,
    /// Decoded restoration, intensities in 0..1, `S * ny * nx` pixels.
    pub restored: Vec<f32>,
}

/// Codes and anomaly probabilities of a scan's slices, without restoring anything.
#[derive(Debug)]
pub struct Detection {
    slices: Vec<usize>,
    z_mm: Tensor,
    codes: Tensor,
    p: Tensor,
}

impl Detection {
    /// `p_anomalous` of the tokens inside the brain.
    pub fn brain_probabilities(&self, brain: &Volume<u8>) -> Vec<f32> {
        let fraction = token_brain_fraction(brain, &self.slices);
        let p: Vec<f32> = to_vec(&self.p);
        p.into_iter().zip(fraction).filter(|&(_, f)| f >= MIN_TOKEN_BRAIN).map(|(p, _)| p).collect()
    }
}

/// Runs tokenizer and detector over every slice that holds brain.
///
/// `image`: intensities in 0..1 on the model's grid; `brain`: its mask, 0 or 1.
///
/// # Errors
/// [`Error::Device`] where libtorch fails.
pub fn detect(networks: &Networks, image: &Volume<f32>, brain: &Volume<u8>, batch: usize) -> Result<Detection> {
    let [nx, ny, _] = image.grid.shape;
    let plane = nx * ny;
    let slices: Vec<usize> =
        brain.data.chunks(plane).enumerate().filter(|(_, m)| m.iter().any(|&v| v > 0)).map(|(z, _)| z).collect();
    if slices.is_empty() {
        return Err(Error::input("no_brain", "no slice of the model's grid holds brain"));
    }
    let heights: Vec<f32> = slices.iter().map(|&z| image.grid.affine.apply([0., 0., z as f64])[2] as f32).collect();
    let z_mm = Tensor::from_slice(&heights).to_device(networks.device);
    let (mut codes, mut p) = (Vec::new(), Vec::new());
    tch::no_grad(|| {
        for (chunk, start) in slices.chunks(batch).zip((0i64..).step_by(batch)) {
            let pixels: Vec<f32> =
                chunk.iter().flat_map(|&z| image.data[z * plane..(z + 1) * plane].iter().copied()).collect();
            let pixels = Tensor::from_slice(&pixels)
                .view([chunk.len() as i64, 1, ny as i64, nx as i64])
                .to_device(networks.device);
            let here = networks.tokenizer.encode(&pixels);
            let z_here = z_mm.narrow(0, start, chunk.len() as i64);
            p.push(networks.detector.forward(&here, &z_here, Kind::Float).sigmoid());
            codes.push(here);
        }
    });
    Ok(Detection { slices, z_mm, codes: Tensor::cat(&codes, 0), p: Tensor::cat(&p, 0) })
}

/// Runs the whole method over one scan; the draw is seeded by `scan_id` and the settings' seed.
///
/// # Errors
/// [`Error::Input`] where there is no brain, [`Error::Device`] where libtorch fails.
pub fn infer(
    networks: &Networks,
    image: &Volume<f32>,
    brain: &Volume<u8>,
    scan_id: &str,
    settings: &Settings,
) -> Result<Inference> {
    let batch = settings.config.batch_slices.max(1);
    let Detection { slices, z_mm, codes, p } = detect(networks, image, brain, batch)?;
    let (rows, columns) = (codes.size()[1], codes.size()[2]);
    let fraction = Tensor::from_slice(&token_brain_fraction(brain, &slices)).view_as(&p).to_device(networks.device);
    let anomalous = p.gt(f64::from(settings.token_threshold)).logical_and(&fraction.ge(f64::from(MIN_TOKEN_BRAIN)));

    // Only slices with something to restore pass through the inpainter.
    let open: Vec<i64> =
        Vec::try_from(anomalous.flatten(1, 2).any_dim(1, false).nonzero().squeeze_dim(1).to_device(Device::Cpu))?;
    let mut restored_codes = codes.copy();
    let mut nll = Tensor::full_like(&p, f64::NAN);
    let mut rng = draw_rng(scan_id, settings.config.seed);
    let decoding = Decoding { steps: settings.config.steps.max(1), temperature: settings.config.temperature.max(1e-3) };
    tch::no_grad(|| {
        for chunk in open.chunks(batch) {
            let index = Tensor::from_slice(chunk).to_device(networks.device);
            let (codes_here, mask) = (codes.index_select(0, &index), anomalous.index_select(0, &index));
            let masked = i64::try_from(mask.sum(Kind::Int64)).unwrap_or_default();
            let vocabulary = networks.tokenizer.config().codes();
            let noise: Vec<f32> = (0..masked * vocabulary).map(|_| rng.random::<f32>()).collect();
            let noise = Tensor::from_slice(&noise).view([masked, vocabulary]).to_device(networks.device);
            let (new, nll_here) = networks.inpainter.restore(
                &codes_here,
                &mask,
                &z_mm.index_select(0, &index),
                &noise,
                decoding,
                Kind::Float,
            );
            restored_codes = restored_codes.index_copy(0, &index, &new);
            nll = nll.index_copy(0, &index, &nll_here.masked_fill(&mask.logical_not(), f64::NAN));
        }
    });
    let decoded: Vec<Tensor> = tch::no_grad(|| {
        restored_codes
            .split(batch as i64, 0)
            .iter()
            .map(|c| networks.tokenizer.decode(c, Kind::Float).clamp(0., 1.).to_device(Device::Cpu))
            .collect()
    });
    let codes: Vec<i64> = to_vec(&codes);
    Ok(Inference {
        slices,
        tokens: [rows as usize, columns as usize],
        codes: codes.into_iter().map(|c| c as i16).collect(),
        p_anomalous: to_vec(&p),
        nll: to_vec(&nll),
        n_inpainted: i64::try_from(anomalous.sum(Kind::Int64))? as usize,
        restored: to_vec(&Tensor::cat(&decoded, 0)),
    })
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
