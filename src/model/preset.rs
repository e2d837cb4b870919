//! Sizes of all networks under one name.
//!
//! | name | slices | tokens | for |
//! |---|---|---|---|
//! | `tiny` | 80 x 96 | 24 x 20 | tests and demonstrations on a processor |
//! | `small` | 80 x 96 | 24 x 20 | the built-in bundle's sizes, with finite scalar quantization |
//! | `paper` | 160 x 160 | 20 x 20 | a GPU: transformers of the size for which figures are published |
//!
//! The MIM-OOD paper (arXiv 2307.14701) does not state its sizes; `paper` uses those of comparable models.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::codebook::Codebook;
use super::sizes::Sizes;
use super::tokenizer::TokenizerConfig;
use super::transformer::TransformerConfig;
use crate::error::{Error, Result};

/// A name for sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the table above describes them")]
pub enum Preset {
    Tiny,
    Small,
    Paper,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Small, Self::Paper];

    /// The sizes that it names.
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

    /// Checks that the preset is for slices of `[nx, ny]` voxels.
    ///
    /// # Errors
    /// [`Error::Config`] where it is for slices of another size.
    pub fn fits(self, [nx, ny]: [usize; 2]) -> Result<()> {
        let sizes = self.sizes();
        let [rows, columns] = sizes.tokens.map(|n| (n * sizes.tokenizer.cell()) as usize);
        if [columns, rows] == [nx, ny] {
            return Ok(());
        }
        Err(Error::Config(format!(
            "preset `{self}` is for slices of {columns} x {rows} voxels, but the model's grid has {nx} x {ny}; this preset \
             can be measured (`neurosieve bench device --preset {self}`) but not trained: use tiny or small"
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
            .ok_or_else(|| Error::Config(format!("unknown preset '{text}'; the presets are tiny, small and paper")))
    }
}

#[cfg(test)]
mod tests {
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
}
