//! A bundle: a trained model as one folder, which is what `[model] bundle` names.
//!
//! ```text
//! bundle.toml              architecture, the preprocessing it was trained with, calibration, training data
//!                          and licences, metrics, SHA-256 of each .safetensors file
//! tokenizer.safetensors    weights in f16
//! detector.safetensors
//! inpainter.safetensors
//! prior.safetensors        only where `bundle.toml` has a `prior`
//! healthy.safetensors      the healthy map, only where `bundle.toml` has its SHA-256
//! MODEL_CARD.md            for human readers
//! ```
//! The SHA-256 of `bundle.toml` identifies the bundle ([`Bundle::digest`]). The built-in bundle is compiled into the
//! program; `[model] bundle = "<folder>"` names another. A file whose checksum differs from `bundle.toml` is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tch::nn::VarStore;
use tch::{Device, Kind};

use super::description::BundleInfo;
use super::healthy::HealthyMap;
use super::network::{Network, Stores};
use super::sizes::{Networks, Sizes};
use super::weights;
use crate::error::{Error, Result};
use crate::hex::hexadecimal;
use crate::preprocess;

/// The layout of `bundle.toml` that this program reads and writes.
const FORMAT: u32 = 4;

/// A bundle in memory: the description and the files, each checked against its SHA-256.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// What `bundle.toml` holds.
    pub info: BundleInfo,
    /// SHA-256 of `bundle.toml`, which holds the checksums of the other files; hex.
    pub digest: String,
    /// Weight files of its networks.
    weights: BTreeMap<Network, Bytes>,
    /// The healthy map.
    pub healthy: Option<Arc<HealthyMap>>,
}

/// Content of a file: compiled into the program, or read.
type Bytes = Cow<'static, [u8]>;

/// A .safetensors file of a bundle.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Weights(Network),
    HealthyMap,
}

impl Part {
    /// The file's name without extension, as in [`BundleInfo::weights`].
    fn name(self) -> &'static str {
        match self {
            Self::Weights(network) => network.name(),
            Self::HealthyMap => "healthy",
        }
    }
}

impl Bundle {
    /// The bundle compiled into the program.
    ///
    /// # Errors
    /// [`Error::Model`] where the program was built with files that do not belong together.
    pub fn built_in() -> Result<Self> {
        Self::from_parts(include_str!("../../models/t1w-2mm/bundle.toml"), |part| {
            Ok(Cow::Borrowed(match part {
                Part::Weights(Network::Tokenizer) => {
                    include_bytes!("../../models/t1w-2mm/tokenizer.safetensors").as_slice()
                }
                Part::Weights(Network::Detector) => include_bytes!("../../models/t1w-2mm/detector.safetensors"),
                Part::Weights(Network::Inpainter) => include_bytes!("../../models/t1w-2mm/inpainter.safetensors"),
                Part::Weights(Network::Prior) => include_bytes!("../../models/t1w-2mm/prior.safetensors"),
                Part::HealthyMap => include_bytes!("../../models/t1w-2mm/healthy.safetensors"),
            }))
        })
    }

    /// The bundle that `name` names: `built-in`, or a folder.
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
            .map_err(|_| Error::Model(format!("bundle.toml of bundle `{name}` is not UTF-8 text")))?;
        Self::from_parts(&toml, |part| read(&format!("{}.safetensors", part.name())).map(Cow::Owned))
    }

    /// Reads the description of a bundle, `bundle.toml`.
    ///
    /// # Errors
    /// [`Error::Model`] where it has another layout, or a number that no bundle has.
    pub fn describe(toml: &str) -> Result<BundleInfo> {
        let info: BundleInfo =
            toml::from_str(toml).map_err(|e| Error::Model(format!("bundle.toml cannot be read: {}", e.message())))?;
        if info.format != FORMAT {
            return Err(Error::Model(format!(
                "bundle `{}` has layout {}, but this program reads layout {FORMAT}; train the bundle again, or use the \
                 program version that wrote it",
                info.name, info.format
            )));
        }
        info.check()?;
        Ok(info)
    }

    /// Reads the description and checks the files, which `read` gives, against it.
    fn from_parts(toml: &str, read: impl Fn(Part) -> Result<Bytes>) -> Result<Self> {
        let info = Self::describe(toml)?;
        let checked = |part: Part| {
            let bytes = read(part)?;
            let (name, found) = (part.name(), sha256(&bytes));
            if info.weights.get(name) == Some(&found) {
                return Ok(bytes);
            }
            Err(Error::Model(format!(
                "{name}.safetensors of bundle `{}` is damaged: its SHA-256 is {found}, but bundle.toml has {}; copy the \
                 bundle again",
                info.name,
                info.weights.get(name).map_or("none", String::as_str)
            )))
        };
        let weights = info
            .networks()
            .map(|network| {
                let bytes = checked(Part::Weights(network))?;
                refuse_too_small(&info, network, bytes.len())?;
                Ok((network, bytes))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let healthy = match info.weights.contains_key(Part::HealthyMap.name()) {
            false => None,
            true => Some(HealthyMap::from_bytes(&checked(Part::HealthyMap)?)?),
        };
        let grid = preprocess::model_grid().shape;
        if healthy.as_ref().is_some_and(|map| !map.fits(grid)) {
            return Err(Error::Model(format!(
                "healthy.safetensors of bundle `{}` was made on another grid than the {grid:?} voxels of this program; \
                 use the program version that wrote it",
                info.name
            )));
        }
        Ok(Self { info, digest: sha256(toml.as_bytes()), weights, healthy: healthy.map(Arc::new) })
    }

    /// `name@version`, for tables and logs.
    pub fn label(&self) -> String {
        format!("{}@{}", self.info.name, self.info.version)
    }

    /// Sizes of its networks.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            tokens: self.info.tokens,
            tokenizer: self.info.tokenizer.clone(),
            detector: self.info.detector.clone(),
            inpainter: self.info.inpainter.clone(),
            prior: self.info.prior.clone(),
        }
    }

    /// Builds the networks on `device` with weights in f32, ready for inference.
    ///
    /// # Errors
    /// [`Error::Model`] where the weights do not fit the architecture in `bundle.toml`.
    pub fn networks(&self, device: Device) -> Result<Networks> {
        let (networks, mut stores) = self.build(device)?;
        stores.iter_mut().for_each(|(_, store)| VarStore::freeze(store));
        Ok(networks)
    }

    /// As [`Bundle::networks`], with weights in `kind`, so that no pass casts them; the tokenizer's encoder stays in
    /// f32.
    ///
    /// # Errors
    /// [`Error::Model`] where the weights do not fit the architecture in `bundle.toml`.
    pub fn networks_in(&self, device: Device, kind: Kind) -> Result<Networks> {
        let (networks, mut stores) = self.build(device)?;
        stores.iter_mut().for_each(|(_, store)| weights::freeze(store, kind));
        Ok(networks)
    }

    /// Builds the networks on `device` with weights in f32, and gives the stores of these weights for training.
    ///
    /// # Errors
    /// [`Error::Model`] where the weights do not fit the architecture in `bundle.toml`.
    pub fn build(&self, device: Device) -> Result<(Networks, Stores)> {
        let (networks, mut stores) = self.sizes().build(device, |_| {});
        // The networks share their tensors with the stores, so filling a store fills its network.
        for (network, store) in stores.iter_mut() {
            let bytes = self.weights.get(&network).ok_or_else(|| {
                Error::Bug(format!("bundle `{}` was opened without the weights of its {network}", self.info.name))
            })?;
            weights::load(store, network, bytes)?;
        }
        Ok((networks, stores))
    }
}

/// The files of a bundle with this description, besides `bundle.toml`.
pub fn files(info: &BundleInfo) -> impl Iterator<Item = String> {
    let healthy = info.weights.contains_key(Part::HealthyMap.name()).then_some(Part::HealthyMap);
    info.networks().map(Part::Weights).chain(healthy).map(|part| format!("{}.safetensors", part.name()))
}

/// Refuses a file that cannot hold the network that `bundle.toml` describes, before memory is taken for that network.
fn refuse_too_small(info: &BundleInfo, network: Network, bytes: usize) -> Result<()> {
    /// Bytes of a weight in f16.
    const WEIGHT: i64 = 2;
    let least = info.least_weights(network);
    if bytes as i64 >= WEIGHT * least {
        return Ok(());
    }
    Err(Error::Model(format!(
        "{network}.safetensors of bundle `{}` has {bytes} bytes, but the {network} that bundle.toml describes has {least} \
         weights or more; copy the bundle again, or train it again",
        info.name
    )))
}

/// Writes a bundle folder; fills in the layout version and the checksums of `info`.
///
/// # Errors
/// [`Error::Model`] where a weight or a threshold is not finite, [`Error::Io`] where the folder cannot be written,
/// [`Error::Device`] where the weights cannot be read from the device.
pub fn write(
    folder: &Path,
    mut info: BundleInfo,
    stores: &Stores,
    healthy: Option<&HealthyMap>,
    card: &str,
) -> Result<()> {
    let save = |file: String, bytes: &[u8]| {
        std::fs::write(folder.join(&file), bytes)
            .map_err(|e| Error::io(format!("cannot write {file} of the bundle"), e))
    };
    info.check()?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io("cannot create the bundle's folder", e))?;
    info.format = FORMAT;
    info.weights.clear();
    let mut files = stores
        .iter()
        .map(|(network, store)| Ok((Part::Weights(network), weights::to_bytes(store)?)))
        .collect::<Result<Vec<_>>>()?;
    if let Some(map) = healthy {
        let bytes = map.to_bytes()?;
        HealthyMap::from_bytes(&bytes)?;
        files.push((Part::HealthyMap, bytes));
    }
    for (part, bytes) in files {
        info.weights.insert(part.name().to_owned(), sha256(&bytes));
        save(format!("{}.safetensors", part.name()), &bytes)?;
    }
    let toml = toml::to_string_pretty(&info).map_err(|e| Error::Bug(format!("bundle.toml: {e}")))?;
    save("MODEL_CARD.md".into(), card.as_bytes())?;
    save("bundle.toml".into(), toml.as_bytes())
}

/// SHA-256 in hex.
fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_bundle_loads_and_fits() {
        let bundle = Bundle::built_in().unwrap();
        let networks = bundle.networks(Device::Cpu).unwrap();
        let size: usize = bundle.weights.values().map(|w| w.len()).sum();
        assert!(size <= 20_000_000, "weights take {size} bytes");
        assert_eq!(networks.tokenizer.config().codes(), bundle.info.tokenizer.codes());
    }

    #[test]
    fn damaged_weights_are_refused() {
        let bundle = Bundle::built_in().unwrap();
        let toml = toml::to_string_pretty(&bundle.info).unwrap();
        let healthy = bundle.healthy.as_ref().map(|map| map.to_bytes().unwrap()).unwrap_or_default();
        let read = |part| {
            let mut bytes = match part {
                Part::Weights(network) => bundle.weights[&network].clone(),
                Part::HealthyMap => Cow::Owned(healthy.clone()),
            };
            if part == Part::Weights(Network::Detector) {
                bytes.to_mut()[1000] ^= 1;
            }
            Ok(bytes)
        };
        let error = Bundle::from_parts(&toml, read).unwrap_err();
        assert!(error.to_string().contains("detector.safetensors") && error.to_string().contains("damaged"), "{error}");
    }

    #[test]
    fn numbers_that_no_network_has_are_refused_with_their_key() {
        let bundle = Bundle::built_in().unwrap();
        let toml = toml::to_string_pretty(&bundle.info).unwrap();
        let number = |key: &str, wrong: &str, section: &str| {
            let (before, after) = toml.split_once(&format!("[{section}]\n")).unwrap();
            let line = after.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
            format!("{before}[{section}]\n{}", after.replacen(line, &format!("{key} = {wrong}"), 1))
        };
        for (key, wrong, section) in [
            ("mask_threshold", "nan", "calibration"),
            ("token_threshold", "inf", "calibration"),
            ("heads", "0", "detector"),
            ("heads", "3", "detector"),
            ("layers", "1000000000", "inpainter"),
            ("width", "-1", "prior"),
            ("blocks", "1000000000", "tokenizer"),
            ("spacing_max_mm", "nan", "preprocess"),
        ] {
            let read = |_| -> Result<Bytes> { unreachable!("the description is refused before a file is read") };
            let refused = Bundle::from_parts(&number(key, wrong, section), read).unwrap_err();
            let text = refused.to_string();
            assert!(text.contains(&format!("{section}.{key} is")) && text.contains("expected"), "{text}");
            assert_eq!(refused.kind(), "model");
        }
        // Sizes that are in range, but not those of the file, take no memory.
        let large = number("width", "8192", "detector");
        let read = |part| match part {
            Part::Weights(network) => Ok(bundle.weights[&network].clone()),
            Part::HealthyMap => unreachable!("the weights come first"),
        };
        let refused = Bundle::from_parts(&large, read).unwrap_err().to_string();
        assert!(refused.contains("detector.safetensors") && refused.contains("weights or more"), "{refused}");
    }
}
