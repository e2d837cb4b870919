//! Files of a training's work folder.
//!
//! ```text
//! prepared/<key>.safetensors        a preprocessed brain
//! <name>.checkpoint.safetensors     state of a stage's optimizer and weights
//! <name>.curve.json                 figures of a stage up to its checkpoint
//! ```
//! `<name>` is the stage's name. In a training from another bundle's networks it ends in `-further`, since a checkpoint
//! from random weights is not one to continue from.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig};

/// Creates the work folder.
///
/// # Errors
/// [`Error::Io`] where it cannot be created.
pub(super) fn create(config: &TrainConfig) -> Result<()> {
    std::fs::create_dir_all(config.work.join("prepared"))
        .map_err(|e| Error::io(format!("cannot create the work folder `{}`", config.work.display()), e))
}

/// The preprocessed brain of a scan.
pub(super) fn prepared(
    config: &TrainConfig,
    scan_id: &str,
    content_id: &str,
    preprocess: &PreprocessConfig,
) -> PathBuf {
    let settings = serde_json::to_string(preprocess).unwrap_or_default();
    let key = Sha256::digest(format!("{scan_id}\0{content_id}\0{settings}\0{}", preprocess::VERSION));
    let name: String = key.iter().take(12).map(|b| format!("{b:02x}")).collect();
    config.work.join("prepared").join(format!("{name}.safetensors"))
}

/// The checkpoint of a stage.
pub(super) fn checkpoint(config: &TrainConfig, stage: &str) -> PathBuf {
    config.work.join(format!("{}.checkpoint.safetensors", stage_name(config, stage)))
}

/// The figures of a stage.
pub(super) fn curve(config: &TrainConfig, stage: &str) -> PathBuf {
    config.work.join(format!("{}.curve.json", stage_name(config, stage)))
}

fn stage_name(config: &TrainConfig, stage: &str) -> String {
    if config.networks_of.is_some() { format!("{stage}-further") } else { stage.to_owned() }
}
