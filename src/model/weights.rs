//! Weights of a network as a safetensors file in f16, and their kind during inference.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::network::Network;
use crate::error::{Error, Result};

/// Parts of a tokenizer that stay in f32: rounded weights would give other codes, on which all other networks depend.
const EXACT: [&str; 4] = ["codebook", "down", "encoder_height", "to_code"];

/// The weights of a transformer's code embedding, `[features, one-hot digits]`.
const CODE_EMBEDDING: &str = "trunk.code.weight";

/// Makes a store's weights ready for inference in `kind`; those of the tokenizer's encoder stay in f32.
pub(super) fn freeze(store: &mut VarStore, kind: Kind) {
    store.freeze();
    for (name, mut variable) in store.variables() {
        if EXACT.iter().any(|part| name.split('.').next() == Some(part)) {
            continue;
        }
        // The network shares its tensors with the store, so new data reaches the network too.
        let cast = variable.to_kind(kind);
        // Column-major: the features of one code lie together in memory, so no pass has to gather them.
        let laid_out = if name == CODE_EMBEDDING { cast.tr().contiguous().tr() } else { cast };
        variable.set_data(&laid_out);
    }
}

/// All weights of a store as the bytes of a safetensors file in f16.
///
/// # Errors
/// [`Error::Model`] where a weight is not finite in f16, [`Error::Device`] where libtorch cannot copy the weights,
/// [`Error::Bug`] where they do not form a safetensors file.
pub(super) fn to_bytes(store: &VarStore) -> Result<Vec<u8>> {
    let tensors: BTreeMap<String, Half> = store
        .variables()
        .into_iter()
        .map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&d| d as usize).collect();
            let values: Vec<half::f16> =
                Vec::try_from(tensor.detach().to_device(Device::Cpu).to_kind(Kind::Half).view(-1))?;
            let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            if !is_finite(&data) {
                return Err(Error::Model(format!(
                    "the trained weight `{name}` is not finite: train again with a lower learning rate"
                )));
            }
            Ok((name, Half { shape, data }))
        })
        .collect::<Result<_>>()?;
    serialize(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
}

/// An f16 tensor as it lies in a safetensors file.
pub(super) struct Half {
    /// Length of each axis.
    pub(super) shape: Vec<usize>,
    /// Little-endian values in row-major order.
    pub(super) data: Vec<u8>,
}

/// The bytes of a safetensors file with these tensors.
///
/// # Errors
/// [`Error::Bug`] where the tensors do not form a safetensors file.
pub(super) fn serialize<'a>(tensors: impl Iterator<Item = (&'a str, &'a Half)>) -> Result<Vec<u8>> {
    tensors
        .map(|(name, tensor)| Ok((name, TensorView::new(Dtype::F16, tensor.shape.clone(), &tensor.data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, &None))
        .map_err(|e| Error::Bug(format!("tensors cannot be serialized: {e}")))
}

/// Fills a store from the bytes of a safetensors file, which must hold every variable in its shape.
///
/// # Errors
/// [`Error::Model`] where a variable is missing or of another shape, [`Error::Device`] where libtorch cannot copy it.
pub(super) fn load(store: &mut VarStore, network: Network, bytes: &[u8]) -> Result<()> {
    let misfit = |what: String| Error::Model(format!("{network}.safetensors does not fit bundle.toml: {what}"));
    let file = SafeTensors::deserialize(bytes).map_err(|e| misfit(e.to_string()))?;
    for (name, mut variable) in store.variables() {
        let view = file.tensor(&name).map_err(|_| misfit(format!("`{name}` is missing")))?;
        let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
        if shape != variable.size() || view.dtype() != Dtype::F16 {
            return Err(misfit(format!(
                "`{name}` is {:?} {shape:?}, expected F16 {:?}",
                view.dtype(),
                variable.size()
            )));
        }
        if !is_finite(view.data()) {
            return Err(Error::Model(format!(
                "{network}.safetensors has a weight in `{name}` that is not finite, so that no scan could be scored: copy the \
                 bundle again, or train it again"
            )));
        }
        let weights = Tensor::f_from_data_size(view.data(), &shape, Kind::Half)?;
        tch::no_grad(|| variable.f_copy_(&weights))?;
    }
    Ok(())
}

/// Whether none of these f16 values, little-endian, is NaN or infinite: their exponents are all ones.
fn is_finite(halves: &[u8]) -> bool {
    halves.chunks_exact(2).all(|half| half[1] & 0x7c != 0x7c)
}

#[cfg(test)]
mod tests {
    use super::super::codebook::Codebook;
    use super::super::tokenizer::{Tokenizer, TokenizerConfig};
    use super::*;

    #[test]
    fn a_weight_that_is_no_number_is_refused_with_its_name() {
        let config = TokenizerConfig { codebook: Codebook::Fsq(vec![8, 5, 5]), channels: vec![16, 32], blocks: 1 };
        let mut store = VarStore::new(Device::Cpu);
        Tokenizer::new(store.root(), &config);
        let mut bytes = to_bytes(&store).unwrap();
        load(&mut store, Network::Tokenizer, &bytes).unwrap();
        let last = bytes.len() - 2;
        for value in [half::f16::NAN, half::f16::INFINITY, half::f16::NEG_INFINITY] {
            bytes[last..].copy_from_slice(&value.to_le_bytes());
            let refused = load(&mut store, Network::Tokenizer, &bytes).unwrap_err().to_string();
            assert!(refused.contains("tokenizer.safetensors") && refused.contains("` that is not finite"), "{refused}");
        }
        // No training writes such a bundle.
        let (name, mut weight) = store.variables().into_iter().next().unwrap();
        let _ = tch::no_grad(|| weight.view(-1).get(0).fill_(1e6));
        let refused = to_bytes(&store).unwrap_err().to_string();
        assert!(refused.contains(&format!("`{name}` is not finite")), "{refused}");
        let _ = tch::no_grad(|| weight.fill_(0.));
    }

    #[test]
    fn weights_in_bf16_give_the_same_codes_and_almost_the_same_pixels() {
        let codebook = Codebook::Fsq(vec![8, 5, 5]);
        let mut store = VarStore::new(Device::Cpu);
        let tokenizer = Tokenizer::new(store.root(), &TokenizerConfig { codebook, channels: vec![16, 32], blocks: 1 });
        let image = Tensor::rand([2, 1, 96, 80], (Kind::Float, Device::Cpu));
        let z_mm = Tensor::from_slice(&[0f32, 30.]);
        freeze(&mut store, Kind::Float);
        let codes = tokenizer.encode(&image, &z_mm);
        let single = tokenizer.decode(&codes, &z_mm, Kind::Float);
        freeze(&mut store, Kind::BFloat16);
        assert_eq!(tokenizer.encode(&image, &z_mm), codes);
        let far = f64::try_from((tokenizer.decode(&codes, &z_mm, Kind::BFloat16) - single).abs().max()).unwrap();
        assert!(far > 0. && far < 0.1, "{far}");
    }
}
