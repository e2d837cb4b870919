//! Settings of the model: the section `[model]` of a pipeline file.

use serde::{Deserialize, Serialize};

/// Which model scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder of a bundle, or `built-in` (default) for the one inside the program.
    pub bundle: String,
    /// Screens scans whose name says that they are of another contrast than those that the bundle was trained on. Default:
    /// they are left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub any_contrast: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { bundle: "built-in".into(), any_contrast: false }
    }
}
