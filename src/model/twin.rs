//! What the networks give on made-up inputs, for comparing them with another implementation.
//!
//! `benches/twin/twin.py` holds the same networks in PyTorch; it reads the bundle's weights and the file that
//! [`write()`] makes, and compares outputs and gradients.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{Bundle, CONTEXT, Masked};
use crate::error::Result;

/// Slices of the made-up batch.
const BATCH: i64 = 4;

/// Writes inputs, outputs and gradients of every network of a bundle to a safetensors file, all in f32 on the processor.
///
/// | name | shape | what |
/// |---|---|---|
/// | `image` | `[B, 1, H, W]` | 0..1 |
/// | `codes`, `z_mm` | `[B, 3, h, w]`, `[B]` | of the detector; the others see the middle slice |
/// | `inside` | `[B, h, w]` | tokens that hold brain |
/// | `mask` | `[B, h, w]` | tokens hidden from the inpainter |
/// | `<network>.out` | | as scans are scored: pixels, logits of pixels, logits of masked tokens, likelihoods in nats |
/// | `<network>.weight.<weight>` | the weight's | the weight itself |
/// | `<network>.grad.<weight>` | the weight's | gradient of the mean square of the output |
///
/// # Errors
/// Where the weights do not fit, or the file cannot be written.
pub fn write(bundle: &Bundle, path: &Path) -> Result<()> {
    let (networks, stores) = bundle.build(Device::Cpu)?;
    let [rows, columns] = bundle.info.tokens;
    let vocabulary = bundle.info.tokenizer.vocabulary();
    tch::manual_seed(1);
    // Smooth like an image: noise would be far from anything that the weights were made for.
    let coarse = Tensor::rand([BATCH, 1, rows, columns], (Kind::Float, Device::Cpu));
    let size = [rows, columns].map(|n| n * bundle.info.tokenizer.cell());
    let image = coarse.upsample_bilinear2d(size, false, None, None);
    let codes =
        Tensor::randint(vocabulary.codes(), [BATCH, CONTEXT.len() as i64, rows, columns], (Kind::Int64, Device::Cpu));
    let middle = codes.select(1, CONTEXT.len() as i64 / 2);
    let z_mm = Tensor::linspace(-50., 60., BATCH, (Kind::Float, Device::Cpu));
    let mask = Tensor::rand([BATCH, rows, columns], (Kind::Float, Device::Cpu)).lt(0.2);
    // A brain of a kind: an ellipse that is larger in some slices than in others.
    let [y, x] = [rows, columns].map(|n| Tensor::linspace(-1., 1., n, (Kind::Float, Device::Cpu)).square());
    let radius = Tensor::linspace(0.3, 1., BATCH, (Kind::Float, Device::Cpu)).view([BATCH, 1, 1]);
    let inside = (y.unsqueeze(1) + x.unsqueeze(0)).unsqueeze(0).lt_tensor(&radius);
    let mask = mask.logical_and(&inside);

    let slices = Masked { codes: &middle, inside: &inside, mask: &mask, z_mm: &z_mm, shared: false };
    let run = || {
        let mut outputs = vec![
            networks.tokenizer.forward(&image, &z_mm).0,
            networks.detector.forward(&codes, &inside, &z_mm, Kind::Float),
            networks.inpainter.forward(&slices, Kind::Float),
        ];
        outputs.extend(networks.prior.as_ref().map(|prior| prior.nll(&middle, &inside, &z_mm, Kind::Float)));
        outputs
    };
    // Inference computes the same in other ways, so its outputs are the ones to compare.
    let inferred = tch::no_grad(run);
    let outputs = run();
    let mut file = vec![
        ("image".to_owned(), image),
        ("codes".to_owned(), codes),
        ("z_mm".to_owned(), z_mm),
        ("inside".to_owned(), inside.to_kind(Kind::Uint8)),
        ("mask".to_owned(), mask.to_kind(Kind::Uint8)),
    ];
    for (((network, out), inferred), store) in bundle.info.networks().zip(outputs).zip(inferred).zip(&stores) {
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
