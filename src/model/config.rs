//! Settings of the model: the section `[model]` of a pipeline file.

use serde::{Deserialize, Serialize};

/// Which model scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder of a bundle, or `built-in` (default) for the one inside the program.
    pub bundle: String,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { bundle: "built-in".into() }
    }
}
