//! Loads a training's pipeline file, with the sizes of a preset where the file leaves them out.

use std::path::Path;

use super::config::{NetworkTraining, TrainConfig, TrainPipeline};
use crate::config;
use crate::error::{Error, Result};
use crate::model::Preset;
use crate::preprocess;

/// Reads a pipeline file; `overrides` are `section.key=value`. `train.preset` names the sizes (`tiny`, `small`) of
/// networks that `[train]` does not configure; the settings in `[train]` win.
///
/// # Errors
/// As [`config::load`]; [`Error::Config`] also where the preset is unknown or made for slices of another size.
pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<TrainPipeline> {
    let mut table = config::merged(path, overrides)?;
    if let Some(train) = table.get_mut("train").and_then(toml::Value::as_table_mut) {
        apply_preset(train)?;
    }
    config::settings(table, path)
}

/// Replaces `preset` in the section `[train]` by the sizes that it stands for.
fn apply_preset(train: &mut toml::Table) -> Result<()> {
    let Some(name) = train.remove("preset") else { return Ok(()) };
    let preset: Preset = name.as_str().unwrap_or_default().parse()?;
    let [nx, ny, _] = preprocess::model_grid().shape;
    preset.fits([nx, ny])?;
    let sizes = preset.sizes();
    let mut defaults = TrainConfig::default();
    let detector = NetworkTraining { network: sizes.detector, ..defaults.detector.clone() };
    defaults.prior = train.contains_key("prior").then(|| detector.clone());
    defaults.detector = detector;
    defaults.inpainter.network = sizes.inpainter;
    defaults.tokenizer.network = sizes.tokenizer;
    let defaults = toml::Table::try_from(defaults).map_err(|e| Error::Bug(format!("the training's defaults: {e}")))?;
    fill(train, defaults);
    Ok(())
}

/// Adds the keys that are missing, in nested tables too. A network's sizes belong together, so a `network` table is kept as
/// it is.
fn fill(table: &mut toml::Table, defaults: toml::Table) {
    for (key, value) in defaults {
        match (table.get_mut(&key), value) {
            (None, value) => drop(table.insert(key, value)),
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) if key != "network" => fill(inner, value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_gives_sizes_and_what_the_file_says_wins() {
        let load = |preset: &str| load(None, &[format!("train.preset={preset}"), "train.seed=7".into()]);
        let tiny = load("tiny").unwrap().train;
        assert_eq!((tiny.detector.network.width, tiny.seed), (Preset::Tiny.sizes().detector.width, 7));
        let error = load("paper").unwrap_err().to_string();
        assert!(error.contains("160 x 160"), "{error}");
    }

    #[test]
    fn an_unknown_key_beside_a_preset_names_the_nearest_known_one() {
        let overrides = ["train.preset=tiny", "train.detector.stepps=5"].map(String::from);
        let error = load(None, &overrides).unwrap_err().to_string();
        assert!(error.contains("did you mean `steps`"), "{error}");
    }
}
