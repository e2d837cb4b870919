//! The settings of preprocessing: limits of its own, and those of every step.

use serde::{Deserialize, Serialize};

use super::bias::BiasConfig;
use super::normalize::NormalizeConfig;
use super::qc::{QcConfig, RefuseConfig};
use super::register::RegisterConfig;
use super::skull_strip::SkullStripConfig;
use super::stripped::StrippedConfig;
use crate::config::{Section, Validate};
use crate::error::Result;

/// All parameters of preprocessing; part of the recipe's fingerprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreprocessConfig {
    /// Largest accepted voxel side in mm.
    pub spacing_max_mm: f64,
    /// Smallest and largest accepted field of view in mm, along every axis.
    pub field_of_view_mm: [f64; 2],
    /// Smallest and largest accepted volume of a brain in ml.
    pub brain_volume_ml: [f64; 2],
    /// How a bare brain is recognised.
    pub stripped: StrippedConfig,
    /// How the brain is found in a head.
    pub skull_strip: SkullStripConfig,
    /// How the bias field is estimated.
    pub bias: BiasConfig,
    /// How the brain is registered to MNI space.
    pub register: RegisterConfig,
    /// How intensities are scaled.
    pub normalize: NormalizeConfig,
    /// When quality flags are raised.
    pub qc: QcConfig,
    /// When a volume is refused because it is no MRI scan of a brain.
    pub refuse: RefuseConfig,
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self {
            spacing_max_mm: 6.0,
            field_of_view_mm: [100.0, 800.0],
            brain_volume_ml: [400.0, 2600.0],
            stripped: StrippedConfig::default(),
            skull_strip: SkullStripConfig::default(),
            bias: BiasConfig::default(),
            register: RegisterConfig::default(),
            normalize: NormalizeConfig::default(),
            qc: QcConfig::default(),
            refuse: RefuseConfig::default(),
        }
    }
}

impl Validate for PreprocessConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess");
        section.within("spacing_max_mm", self.spacing_max_mm, 0.1..=50.)?;
        section.bounds("field_of_view_mm", self.field_of_view_mm, 0. ..=10_000.)?;
        section.bounds("brain_volume_ml", self.brain_volume_ml, 0. ..=10_000.)?;
        self.stripped.validate()?;
        self.skull_strip.validate()?;
        self.bias.validate()?;
        self.register.validate()?;
        self.normalize.validate()?;
        self.qc.validate()?;
        self.refuse.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_toml_and_unknown_keys_are_refused() {
        let cfg = PreprocessConfig::default();
        let text = toml::to_string(&cfg).expect("TOML");
        assert_eq!(toml::from_str::<PreprocessConfig>(&text).expect("settings"), cfg);
        assert_eq!(toml::from_str::<PreprocessConfig>("").expect("settings"), cfg);
        assert!(toml::from_str::<PreprocessConfig>("[skull_strip]\nfractional = 0.5").is_err());
    }
}
