//! Settings of an evaluation: the pipeline file of `neurosieve eval`.

use serde::{Deserialize, Serialize};

use crate::cohort::CohortConfig;
use crate::config::{Section, Validate};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::device::DeviceChoice;
use crate::preprocess::PreprocessConfig;
use crate::score::ScoreConfig;

/// The pipeline of `neurosieve eval`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalPipeline {
    /// The cohort with truth masks.
    pub cohort: CohortConfig,
    /// The healthy cohort: thresholds are fixed on it, and the scan scores of the other cohort are compared with its scores.
    pub healthy: CohortConfig,
    /// How scans are preprocessed.
    pub preprocess: PreprocessConfig,
    /// Which bundle scores.
    pub model: ModelConfig,
    /// Where the figures are stored, in the table `evaluations`.
    pub tables: EvalTablesConfig,
    /// The methods, and what they are compared with.
    pub eval: EvalConfig,
    /// On which device the networks run.
    pub run: EvalRunConfig,
}

/// Where the figures are stored. An evaluation commits once, at its end, so it has no other key of `[tables]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalTablesConfig {
    /// Folder of the tables: any URL or path that `cohort.url` accepts. Default: no table is written.
    pub url: String,
}

/// On which device the networks run. An evaluation reads all selected scans into memory, so it has no other key of `[run]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalRunConfig {
    /// Device that runs the networks: `auto` (default), `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceChoice,
}

/// The methods, and what they are compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Folder of the truth masks, relative to the cohort's root. Default: `derivatives/truth`.
    pub truth: String,
    /// Share of healthy brain voxels that lie below a method's threshold, 0 to 1. Not used for a method that sets
    /// `mask_threshold`. Default: 0.998.
    pub healthy_quantile: f64,
    /// The methods to compare. Default: none, which is refused.
    pub methods: Vec<MethodConfig>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { truth: "derivatives/truth".into(), healthy_quantile: 0.998, methods: Vec::new() }
    }
}

/// One method of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// Name in the report and in the table.
    pub name: String,
    /// How the method scores.
    #[serde(default)]
    pub score: ScoreConfig,
}

impl Validate for EvalPipeline {
    fn validate(&self) -> Result<()> {
        self.preprocess.validate()?;
        Section("eval").within("healthy_quantile", self.eval.healthy_quantile, 0. ..=1.)?;
        self.eval.methods.iter().try_for_each(|method| {
            method.score.validate().map_err(|e| Error::Config(format!("eval.methods `{}`: {e}", method.name)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn settings_of_a_screening_that_an_evaluation_ignores_are_refused() {
        for (key, nearest) in [
            ("run.limit=3", "device"),
            ("run.shard=1/8", "device"),
            ("run.memory_mib=4096", "device"),
            ("tables.commit_scans=4", "url"),
            ("tables.commit_seconds=10", "url"),
        ] {
            let error = config::load::<EvalPipeline>(None, &[key.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean `{nearest}`")), "{key}: {error}");
        }
        let used = ["run.device=cpu".to_owned(), "tables.url=results".to_owned()];
        let pipeline: EvalPipeline = config::load(None, &used).unwrap();
        assert_eq!((pipeline.run.device, pipeline.tables.url.as_str()), (DeviceChoice::Cpu, "results"));
    }
}
