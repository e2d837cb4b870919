//! A bundle: everything a trained model needs, in one folder.
//!
//! ```text
//! bundle.toml              architecture, the preprocessing it expects, calibration, training data
//!                          and licences, metrics, SHA-256 of each weight file
//! tokenizer.safetensors    weights in f16
//! detector.safetensors
//! inpainter.safetensors
//! prior.safetensors        only where `bundle.toml` has a `prior`
//! healthy.safetensors      scores of healthy scans by place, where `bundle.toml` has its checksum
//! MODEL_CARD.md            for humans
//! ```
//! The built-in bundle is compiled into the program; `[model] bundle = "<folder>"` names another.
//! Weights whose checksum differs from `bundle.toml` are refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::{Detector, HealthyMap, Inpainter, Prior, Tokenizer, TokenizerConfig, TransformerConfig};
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig};

/// The layout of `bundle.toml` that this program reads and writes.
const FORMAT: u32 = 4;

/// Names of the networks that every bundle has; each has a weight file `<name>.safetensors`.
pub const NETWORKS: [&str; 3] = ["tokenizer", "detector", "inpainter"];

/// The network that a bundle may have besides.
pub const PRIOR: &str = "prior";

/// The healthy scores that a bundle may have besides.
const HEALTHY: &str = "healthy";

/// What `bundle.toml` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleInfo {
    /// Layout version of this file.
    pub format: u32,
    /// Short name, e.g. `t1w-2mm`.
    pub name: String,
    /// Version of the weights.
    pub version: String,
    /// BIDS suffix the model was trained on, e.g. `T1w`.
    pub modality: String,
    /// Tokens of a slice: rows (along y) and columns (along x).
    pub tokens: [i64; 2],
    /// Tokenizer sizes.
    pub tokenizer: TokenizerConfig,
    /// Detector sizes.
    pub detector: TransformerConfig,
    /// Inpainter sizes.
    pub inpainter: TransformerConfig,
    /// Prior sizes; without one, the method `ar` cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<TransformerConfig>,
    /// The preprocessing the weights were trained behind.
    pub preprocess: PreprocessConfig,
    /// Thresholds fixed on healthy scans.
    pub calibration: Calibration,
    /// Where the training data came from.
    pub training: Training,
    /// Held-out figures by name.
    pub metrics: BTreeMap<String, f64>,
    /// SHA-256 of each file of weights or healthy scores, by its name.
    pub weights: BTreeMap<String, String>,
}

/// Thresholds fixed on healthy validation scans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Tokens with `p_anomalous` above this are in-painted (lambda).
    pub token_threshold: f64,
    /// Voxels whose anomaly score is above this are in the mask.
    pub mask_threshold: f64,
    /// Share of healthy brain voxels that lie below `mask_threshold`.
    pub healthy_quantile: f64,
    /// Healthy scans the thresholds were fixed on.
    pub scans: usize,
    /// Tokens less likely than this (nats) are drawn anew by the method `ar`; only where there is a prior.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ar_limit_nats: Option<f64>,
}

/// How the weights came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Scans fitted on.
    pub train_scans: usize,
    /// Scans held out for choosing and calibrating.
    pub val_scans: usize,
    /// Version of the program that trained.
    pub program: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// Data sets with their licences.
    #[serde(default)]
    pub data: Vec<DataSource>,
}

/// A data set that weights were trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// Name of the data set.
    pub name: String,
    /// Its licence.
    pub licence: String,
    /// Where it is published.
    pub source: String,
}

/// A bundle in memory: description and weight files, checked against each other.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// What `bundle.toml` holds.
    pub info: BundleInfo,
    /// SHA-256 over `bundle.toml` (which holds the weights' sums), hex.
    pub digest: String,
    /// In the order of [`BundleInfo::networks`].
    weights: Vec<Cow<'static, [u8]>>,
    /// Scores of healthy scans by place.
    pub healthy: Option<Arc<HealthyMap>>,
}

impl BundleInfo {
    /// Names of its networks.
    pub fn networks(&self) -> impl Iterator<Item = &'static str> + use<> {
        NETWORKS.into_iter().chain(self.prior.is_some().then_some(PRIOR))
    }
}

/// The three networks on a device, ready for inference.
#[derive(Debug)]
pub struct Networks {
    /// Image to tokens and back.
    pub tokenizer: Tokenizer,
    /// Which tokens are anomalous.
    pub detector: Detector,
    /// What a healthy slice would hold instead.
    pub inpainter: Inpainter,
    /// The autoregressive rival, where the bundle has one.
    pub prior: Option<Prior>,
    /// Where the weights lie.
    pub device: Device,
}

impl Bundle {
    /// The bundle compiled into the program.
    pub fn built_in() -> Result<Self> {
        Self::from_parts(include_str!("../../models/t1w-2mm/bundle.toml"), |network| match network {
            "tokenizer" => Ok(Cow::Borrowed(include_bytes!("../../models/t1w-2mm/tokenizer.safetensors"))),
            "detector" => Ok(Cow::Borrowed(include_bytes!("../../models/t1w-2mm/detector.safetensors"))),
            "inpainter" => Ok(Cow::Borrowed(include_bytes!("../../models/t1w-2mm/inpainter.safetensors"))),
            "prior" => Ok(Cow::Borrowed(include_bytes!("../../models/t1w-2mm/prior.safetensors"))),
            "healthy" => Ok(Cow::Borrowed(include_bytes!("../../models/t1w-2mm/healthy.safetensors"))),
            absent => Err(Error::Bug(format!("the built-in bundle has no {absent}"))),
        })
    }

    /// `built-in`, or a folder.
    ///
    /// # Errors
    /// [`Error::Model`] where a file is missing, damaged or of another layout.
    pub fn open(name: &str) -> Result<Self> {
        if name == "built-in" {
            return Self::built_in();
        }
        let folder = Path::new(name);
        let read = |file: &str| {
            std::fs::read(folder.join(file)).map_err(|e| {
                Error::Model(format!(
                    "cannot read {file} of bundle `{name}`: {e}. A bundle is a folder written by `neurosieve train`; \
                     `built-in` names the one inside this program."
                ))
            })
        };
        let toml = String::from_utf8(read("bundle.toml")?)
            .map_err(|_| Error::Model(format!("bundle.toml of bundle `{name}` is not text")))?;
        Self::from_parts(&toml, |network| read(&format!("{network}.safetensors")).map(Cow::Owned))
    }

    /// `weights` gives the bytes of a file of weights or healthy scores.
    fn from_parts(toml: &str, weights: impl Fn(&'static str) -> Result<Cow<'static, [u8]>>) -> Result<Self> {
        let info: BundleInfo =
            toml::from_str(toml).map_err(|e| Error::Model(format!("bundle.toml cannot be read: {}", e.message())))?;
        if info.format != FORMAT {
            return Err(Error::Model(format!(
                "bundle `{}` has layout {}, this program reads layout {FORMAT}; train it again or use a program of its time",
                info.name, info.format
            )));
        }
        let checked = |name: &'static str| {
            let bytes = weights(name)?;
            let found = sha256(&bytes);
            if info.weights.get(name) == Some(&found) {
                return Ok(bytes);
            }
            Err(Error::Model(format!(
                "{name}.safetensors of bundle `{}` is damaged: its SHA-256 is {found}, bundle.toml says {}; copy the bundle again",
                info.name,
                info.weights.get(name).map_or("nothing", String::as_str)
            )))
        };
        let weights: Vec<Cow<'static, [u8]>> = info.networks().map(checked).collect::<Result<_>>()?;
        let healthy = match info.weights.contains_key(HEALTHY) {
            false => None,
            true => Some(HealthyMap::from_bytes(&checked(HEALTHY)?)?),
        };
        if healthy.as_ref().is_some_and(|map| !map.fits(preprocess::model_grid().shape)) {
            return Err(Error::Model(format!("healthy.safetensors of bundle `{}` is for another grid", info.name)));
        }
        Ok(Self { info, digest: sha256(toml.as_bytes()), weights, healthy: healthy.map(Arc::new) })
    }

    /// `name` and `version` as one word for tables and logs.
    pub fn label(&self) -> String {
        format!("{}@{}", self.info.name, self.info.version)
    }

    /// Builds the networks on `device` with weights in f32, ready for inference.
    ///
    /// # Errors
    /// [`Error::Model`] where the weights do not fit the architecture in `bundle.toml`.
    pub fn networks(&self, device: Device) -> Result<Networks> {
        let (networks, mut stores) = self.build(device)?;
        stores.iter_mut().for_each(VarStore::freeze);
        Ok(networks)
    }

    /// The networks and the stores of their weights, in the order of [`BundleInfo::networks`].
    ///
    /// # Errors
    /// [`Error::Model`] where the weights do not fit the architecture in `bundle.toml`.
    pub fn build(&self, device: Device) -> Result<(Networks, Vec<VarStore>)> {
        let info = &self.info;
        let vocabulary = info.tokenizer.vocabulary();
        let mut stores: Vec<VarStore> = info.networks().map(|_| VarStore::new(device)).collect();
        let root = |index: usize| stores[index].root();
        let networks = Networks {
            tokenizer: Tokenizer::new(root(0), &info.tokenizer),
            detector: Detector::new(root(1), &info.detector, vocabulary.clone(), info.tokens, info.tokenizer.cell()),
            inpainter: Inpainter::new(root(2), &info.inpainter, vocabulary.clone(), info.tokens),
            prior: info.prior.as_ref().map(|sizes| Prior::new(root(3), sizes, vocabulary, info.tokens)),
            device,
        };
        // The networks share their tensors with the stores, so filling a store fills its network.
        for ((store, network), bytes) in stores.iter_mut().zip(info.networks()).zip(&self.weights) {
            load_weights(store, network, bytes)?;
        }
        Ok((networks, stores))
    }
}

/// Writes a bundle folder; the weights' sums in `info` are filled in.
///
/// `stores`: the weights in the order of [`BundleInfo::networks`].
pub fn write(
    folder: &Path,
    mut info: BundleInfo,
    stores: &[VarStore],
    healthy: Option<&HealthyMap>,
    card: &str,
) -> Result<()> {
    let save = |file: String, bytes: &[u8]| {
        std::fs::write(folder.join(&file), bytes)
            .map_err(|e| Error::io(format!("cannot write {file} of the bundle"), e))
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io("cannot create the bundle's folder", e))?;
    info.format = FORMAT;
    info.weights.clear();
    let mut files: Vec<(&str, Vec<u8>)> = info
        .networks()
        .zip(stores)
        .map(|(network, store)| Ok((network, weights_f16(store)?)))
        .collect::<Result<_>>()?;
    if let Some(map) = healthy {
        files.push((HEALTHY, map.to_bytes()?));
    }
    for (name, bytes) in files {
        info.weights.insert(name.to_owned(), sha256(&bytes));
        save(format!("{name}.safetensors"), &bytes)?;
    }
    let toml = toml::to_string_pretty(&info).map_err(|e| Error::Bug(format!("bundle.toml: {e}")))?;
    save("MODEL_CARD.md".into(), card.as_bytes())?;
    save("bundle.toml".into(), toml.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// All weights of a store as a safetensors file in f16.
fn weights_f16(store: &VarStore) -> Result<Vec<u8>> {
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = store
        .variables()
        .into_iter()
        .map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&d| d as usize).collect();
            let half: Vec<half::f16> =
                Vec::try_from(tensor.detach().to_device(Device::Cpu).to_kind(Kind::Half).view(-1))?;
            Ok((name, (shape, half.iter().flat_map(|v| v.to_le_bytes()).collect())))
        })
        .collect::<Result<_>>()?;
    let views = tensors
        .iter()
        .map(|(name, (shape, data))| Ok((name.as_str(), TensorView::new(Dtype::F16, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
    views
        .and_then(|views| safetensors::serialize(views, &None))
        .map_err(|e| Error::Bug(format!("weights cannot be serialized: {e}")))
}

/// Fills a store from a safetensors file; every variable must be there with its shape.
fn load_weights(store: &mut VarStore, network: &str, bytes: &[u8]) -> Result<()> {
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
        let weights = Tensor::f_from_data_size(view.data(), &shape, Kind::Half)?;
        tch::no_grad(|| variable.f_copy_(&weights))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_bundle_loads_and_fits() {
        let bundle = Bundle::built_in().unwrap();
        let networks = bundle.networks(Device::Cpu).unwrap();
        let size: usize = bundle.weights.iter().map(|w| w.len()).sum();
        assert!(size <= 20_000_000, "weights take {size} bytes");
        assert_eq!(networks.tokenizer.config().codes(), bundle.info.tokenizer.codes());
    }

    #[test]
    fn damaged_weights_are_refused() {
        let bundle = Bundle::built_in().unwrap();
        let toml = toml::to_string_pretty(&bundle.info).unwrap();
        let mut weights = bundle.weights.clone();
        let healthy = bundle.healthy.as_ref().map(|map| map.to_bytes().unwrap()).unwrap_or_default();
        weights[1].to_mut()[1000] ^= 1;
        let given = |network: &str| {
            let index = bundle.info.networks().position(|name| name == network);
            Ok(index.map_or_else(|| Cow::Owned(healthy.clone()), |index| weights[index].clone()))
        };
        let error = Bundle::from_parts(&toml, given).unwrap_err();
        assert!(error.to_string().contains("detector.safetensors") && error.to_string().contains("damaged"), "{error}");
    }
}
