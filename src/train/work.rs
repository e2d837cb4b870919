//! Files of a training's work folder.
//!
//! ```text
//! prepared/<key>.safetensors        a preprocessed brain
//! <name>.checkpoint.safetensors     state of a stage's optimizer and weights
//! <name>.curve.json                 figures of a stage up to its checkpoint
//! ```
//! `<name>` is the stage's name. In a training from another bundle's networks it ends in `-further`, since a checkpoint
//! from random weights is not one to continue from.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::hex::hexadecimal;
use crate::preprocess::{self, PreprocessConfig};

/// Creates the work folder. Refuses, before hours of training, folders that hold files of others.
///
/// # Errors
/// [`Error::Config`] for such a folder; [`Error::Io`] where the work folder cannot be created.
pub(super) fn create(config: &TrainConfig) -> Result<()> {
    let refuse = |key: &str, folder: &Path, held: &str| {
        Err(Error::Config(format!(
            "{key} = `{}` holds `{held}`, which is not of a training: give a new folder",
            folder.display()
        )))
    };
    // Work folders may lie inside one another. Their file names are those of no one else.
    if config.work.join("dataset_description.json").exists() {
        return refuse("train.work", &config.work, "dataset_description.json");
    }
    // A folder that cannot be read is reported where it is written.
    for entry in std::fs::read_dir(&config.out).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !["bundle.toml", "MODEL_CARD.md", "training.parquet"].contains(&&*name) && !name.ends_with(".safetensors") {
            return refuse("train.out", &config.out, &name);
        }
    }
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
    let name: String = hexadecimal(&key[..12]);
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
