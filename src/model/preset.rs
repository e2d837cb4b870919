//! Sizes of all networks under one name.
//!
//! | name | slices | tokens | for |
//! |---|---|---|---|
//! | `tiny` | 80 x 96 | 24 x 20 | tests and demonstrations on a processor |
//! | `small` | 80 x 96 | 24 x 20 | the built-in bundle's sizes, with finite scalar quantization |
//! | `paper` | 160 x 160 | 20 x 20 | a GPU: the scale of transformers that the published figures are for |
//!
//! MIM-OOD (arXiv 2307.14701) does not say its sizes; `paper` has those of its kind of model.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Device, Kind};

use super::{Bundle, Codebook, Detector, Inpainter, Networks, Prior, Tokenizer, TokenizerConfig, TransformerConfig};
use crate::error::{Error, Result};

/// A name for sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the table above says what they are")]
pub enum Preset {
    Tiny,
    Small,
    Paper,
}

/// Sizes of all networks.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each says what it is")]
pub struct Sizes {
    /// Tokens of a slice: rows and columns.
    pub tokens: [i64; 2],
    pub tokenizer: TokenizerConfig,
    pub detector: TransformerConfig,
    pub inpainter: TransformerConfig,
    pub prior: Option<TransformerConfig>,
}

impl Preset {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Small, Self::Paper];

    /// What it stands for.
    pub fn sizes(self) -> Sizes {
        let (tokens, levels, channels, blocks, [width, heads, layers]): (_, &[i64], &[i64], _, _) = match self {
            Self::Tiny => ([24, 20], &[8, 5, 5], &[16, 32], 1, [32, 2, 2]),
            Self::Small => ([24, 20], &[8, 8, 6, 5], &[64, 128], 2, [128, 4, 4]),
            Self::Paper => ([20, 20], &[8, 8, 6, 5], &[64, 128, 256], 2, [512, 8, 12]),
        };
        let transformer = TransformerConfig { width, heads, layers };
        Sizes {
            tokens,
            tokenizer: TokenizerConfig {
                codebook: Codebook::Fsq(levels.to_vec()),
                channels: channels.to_vec(),
                blocks,
            },
            detector: transformer.clone(),
            inpainter: transformer.clone(),
            prior: Some(transformer),
        }
    }

    /// Refuses a preset for slices of another size than these, `[nx, ny]` voxels.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn fits(self, [nx, ny]: [usize; 2]) -> Result<()> {
        let sizes = self.sizes();
        let [rows, columns] = sizes.tokens.map(|n| (n * sizes.tokenizer.cell()) as usize);
        if [columns, rows] == [nx, ny] {
            return Ok(());
        }
        Err(Error::Config(format!(
            "preset `{self}` is for slices of {columns} x {rows} voxels, the model's grid has {nx} x {ny}: it can be \
             measured (`neurosieve bench device --preset {self}`) but not trained; take tiny or small"
        )))
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Paper => "paper",
        })
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.to_string() == text)
            .ok_or_else(|| Error::Config(format!("'{text}' is no preset: write tiny, small or paper")))
    }
}

impl Sizes {
    /// Networks with random weights on `device`, for measuring; the same `seed` gives the same.
    pub fn networks(&self, device: Device, kind: Kind, seed: i64) -> Networks {
        tch::manual_seed(seed);
        let mut stores = [(); 4].map(|()| VarStore::new(device));
        let vocabulary = self.tokenizer.vocabulary();
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|i: usize| stores[i].root());
        let networks = Networks {
            tokenizer: Tokenizer::new(first, &self.tokenizer),
            detector: Detector::new(second, &self.detector, vocabulary.clone(), self.tokens, self.tokenizer.cell()),
            inpainter: Inpainter::new(third, &self.inpainter, vocabulary.clone(), self.tokens),
            prior: self.prior.as_ref().map(|sizes| Prior::new(fourth, sizes, vocabulary, self.tokens)),
            device,
        };
        stores.iter_mut().for_each(|store| freeze(store, kind));
        networks
    }
}

impl Bundle {
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

    /// As [`Bundle::networks`], with weights in `kind` but for the tokenizer's encoder: bf16 need not be cast to
    /// each time then.
    ///
    /// # Errors
    /// [`Error::Model`] where the weights do not fit the architecture in `bundle.toml`.
    pub fn networks_in(&self, device: Device, kind: Kind) -> Result<Networks> {
        let (networks, mut stores) = self.build(device)?;
        stores.iter_mut().for_each(|store| freeze(store, kind));
        Ok(networks)
    }
}

/// Parts of a tokenizer that stay in f32: rounded weights would give other codes, which all else works with.
const EXACT: [&str; 4] = ["codebook", "down", "encoder_height", "to_code"];

/// The weights that say what a code looks like to a transformer, `[features, codes]`.
const OF_CODES: &str = "trunk.code.weight";

/// Makes a store's weights ready for inference in `kind`.
fn freeze(store: &mut VarStore, kind: Kind) {
    store.freeze();
    for (name, mut variable) in store.variables() {
        if EXACT.iter().any(|part| name.split('.').next() == Some(part)) {
            continue;
        }
        // The networks hold the same tensors.
        let cast = variable.to_kind(kind);
        // What is picked of a code lies together then: it would be brought together anew in every pass.
        let laid = if name == OF_CODES { cast.tr().contiguous().tr() } else { cast };
        variable.set_data(&laid);
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn presets_are_named_and_know_their_grid() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse::<Preset>().unwrap(), preset);
            assert_eq!(preset.fits([80, 96]).is_ok(), preset != Preset::Paper);
        }
        let error = Preset::Paper.fits([80, 96]).unwrap_err().to_string();
        assert!(error.contains("160 x 160") && error.contains("80 x 96"), "{error}");
    }

    #[test]
    fn weights_in_bf16_give_the_same_codes_and_almost_the_same_pixels() {
        let sizes = Preset::Tiny.sizes();
        let mut store = VarStore::new(Device::Cpu);
        let tokenizer = Tokenizer::new(store.root(), &sizes.tokenizer);
        let [rows, columns] = sizes.tokens.map(|n| n * sizes.tokenizer.cell());
        let image = Tensor::rand([2, 1, rows, columns], (Kind::Float, Device::Cpu));
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
