//! What the networks give on made-up inputs, for comparing them with another implementation.
//!
//! `benches/twin/twin.py` holds the same networks in PyTorch; it reads the bundle's weights and the file that
//! [`write()`] makes, and compares outputs and gradients.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{Bundle, CONTEXT, DOWNSAMPLING};
use crate::error::Result;

/// Slices of the made-up batch.
const BATCH: i64 = 4;

/// Writes inputs, outputs and gradients of every network of a bundle to a safetensors file, all in f32 on the processor.
///
/// | name | shape | what |
/// |---|---|---|
/// | `image` | `[B, 1, H, W]` | 0..1 |
/// | `codes`, `z_mm` | `[B, 3, h, w]`, `[B]` | of the detector; the others see the middle slice |
/// | `mask` | `[B, h, w]` | tokens hidden from the inpainter |
/// | `<network>.out` | | its output |
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
    let size = [rows * DOWNSAMPLING, columns * DOWNSAMPLING];
    let image = coarse.upsample_bilinear2d(size, false, None, None);
    let codes =
        Tensor::randint(vocabulary.codes(), [BATCH, CONTEXT.len() as i64, rows, columns], (Kind::Int64, Device::Cpu));
    let middle = codes.select(1, CONTEXT.len() as i64 / 2);
    let z_mm = Tensor::linspace(-50., 60., BATCH, (Kind::Float, Device::Cpu));
    let mask = Tensor::rand([BATCH, rows, columns], (Kind::Float, Device::Cpu)).lt(0.2);
    let hidden = middle.masked_fill(&mask, vocabulary.mask_code());

    let mut outputs = vec![
        networks.tokenizer.forward(&image).0,
        networks.detector.forward(&codes, &z_mm, Kind::Float),
        networks.inpainter.forward(&hidden, &z_mm, Kind::Float),
    ];
    outputs.extend(networks.prior.as_ref().map(|prior| prior.forward(&middle, &z_mm, Kind::Float)));
    let mut file = vec![
        ("image".to_owned(), image),
        ("codes".to_owned(), codes),
        ("z_mm".to_owned(), z_mm),
        ("mask".to_owned(), mask.to_kind(Kind::Uint8)),
    ];
    for ((network, out), store) in bundle.info.networks().zip(outputs).zip(&stores) {
        out.square().mean(Kind::Float).backward();
        for (name, weight) in store.variables() {
            file.push((format!("{network}.grad.{name}"), weight.grad()));
        }
        file.push((format!("{network}.out"), out.detach()));
    }
    Ok(Tensor::write_safetensors(&file, path)?)
}
