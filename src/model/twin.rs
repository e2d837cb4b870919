//! Outputs and gradients of the networks on made-up inputs, to compare them with another implementation.
//!
//! `benches/twin/twin.py` holds the same networks in PyTorch. It reads the bundle's weights and the file from
//! [`write()`], and compares outputs and gradients.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::bundle::Bundle;
use super::detector::CONTEXT;
use super::inpainter::Masked;
use super::network::Network;
use super::prior::TokenSlices;
use crate::error::Result;

/// Slices of the made-up batch.
const BATCH: i64 = 4;

/// Writes inputs, outputs and gradients of every network of a bundle to a safetensors file, all in f32 on the
/// processor.
///
/// | name | shape | what |
/// |---|---|---|
/// | `image` | `[B, 1, H, W]` | 0..1 |
/// | `codes`, `z_mm` | `[B, 3, h, w]`, `[B]` | input of the detector; inpainter and prior take the middle slice |
/// | `inside` | `[B, h, w]` | tokens that hold brain |
/// | `mask` | `[B, h, w]` | tokens hidden from the inpainter |
/// | `<network>.out` | the network's | output as in inference: pixels, logits of pixels, logits of masked tokens, nats |
/// | `<network>.weight.<weight>` | the weight's | the weight itself |
/// | `<network>.grad.<weight>` | the weight's | gradient of the mean square of the output |
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) where the weights do not fit the architecture,
/// [`Error::Device`](crate::Error::Device) where libtorch cannot write the file.
pub fn write(bundle: &Bundle, path: &Path) -> Result<()> {
    let (networks, stores) = bundle.build(Device::Cpu)?;
    let [rows, columns] = bundle.info.tokens;
    let vocabulary = bundle.info.tokenizer.vocabulary();
    tch::manual_seed(1);
    // Smooth like an image, because the weights were not trained on noise.
    let coarse = Tensor::rand([BATCH, 1, rows, columns], (Kind::Float, Device::Cpu));
    let size = [rows, columns].map(|n| n * bundle.info.tokenizer.cell());
    let image = coarse.upsample_bilinear2d(size, false, None, None);
    let codes =
        Tensor::randint(vocabulary.codes(), [BATCH, CONTEXT.len() as i64, rows, columns], (Kind::Int64, Device::Cpu));
    let middle = codes.select(1, CONTEXT.len() as i64 / 2);
    let z_mm = Tensor::linspace(-50., 60., BATCH, (Kind::Float, Device::Cpu));
    let mask = Tensor::rand([BATCH, rows, columns], (Kind::Float, Device::Cpu)).lt(0.2);
    // In place of a brain: an ellipse whose size varies between slices.
    let [y, x] = [rows, columns].map(|n| Tensor::linspace(-1., 1., n, (Kind::Float, Device::Cpu)).square());
    let radius = Tensor::linspace(0.3, 1., BATCH, (Kind::Float, Device::Cpu)).view([BATCH, 1, 1]);
    let inside = (y.unsqueeze(1) + x.unsqueeze(0)).unsqueeze(0).lt_tensor(&radius);
    let mask = mask.logical_and(&inside);

    let slices = Masked { codes: &middle, inside: &inside, mask: &mask, z_mm: &z_mm, shared: false };
    let run = |network| match network {
        Network::Tokenizer => Some(networks.tokenizer.forward(&image, &z_mm).0),
        Network::Detector => Some(networks.detector.forward(&codes, &inside, &z_mm, Kind::Float)),
        Network::Inpainter => Some(networks.inpainter.forward(&slices, Kind::Float)),
        Network::Prior => {
            let slices = TokenSlices { codes: &middle, inside: &inside, z_mm: &z_mm };
            networks.prior.as_ref().map(|prior| prior.nll(slices, Kind::Float))
        }
    };
    let mut file = vec![
        ("image".to_owned(), image.shallow_clone()),
        ("codes".to_owned(), codes.shallow_clone()),
        ("z_mm".to_owned(), z_mm.shallow_clone()),
        ("inside".to_owned(), inside.to_kind(Kind::Uint8)),
        ("mask".to_owned(), mask.to_kind(Kind::Uint8)),
    ];
    for (network, store) in stores.iter() {
        // Inference computes the same in other ways, so its outputs are the ones to compare.
        let (Some(inferred), Some(out)) = (tch::no_grad(|| run(network)), run(network)) else { continue };
        out.square().mean(Kind::Float).backward();
        for (name, weight) in store.variables() {
            file.push((format!("{network}.weight.{name}"), weight.detach()));
            // Learned codebooks have no gradient.
            let gradient = weight.grad();
            if gradient.defined() {
                file.push((format!("{network}.grad.{name}"), gradient));
            }
        }
        file.push((format!("{network}.out"), inferred));
    }
    Ok(Tensor::write_safetensors(&file, path)?)
}
