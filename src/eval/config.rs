//! Settings of an evaluation: the pipeline file of `neurosieve eval`.

use serde::{Deserialize, Serialize};

use crate::cohort::CohortConfig;
use crate::model::ModelConfig;
use crate::model::device::DeviceChoice;
use crate::preprocess::PreprocessConfig;
use crate::score::ScoreConfig;

/// What `neurosieve eval` does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalPipeline {
    /// Scans with truth masks.
    pub cohort: CohortConfig,
    /// Healthy scans, on which thresholds are fixed and with which scan scores are compared.
    pub healthy: CohortConfig,
    /// Preprocessing in front of the model.
    pub preprocess: PreprocessConfig,
    /// Which model scores.
    pub model: ModelConfig,
    /// Where figures are added to the table `evaluations`.
    pub tables: EvalTablesConfig,
    /// What is evaluated.
    pub eval: EvalConfig,
    /// How the machine is used.
    pub run: EvalRunConfig,
}

/// Where figures are written: the only key of `[tables]` that an evaluation uses, which commits once, at its end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalTablesConfig {
    /// Folder of the tables: any URL or path that `cohort.url` accepts. Default: no table is written.
    pub url: String,
}

/// How the machine is used: the only key of `[run]` that an evaluation uses, which reads all selected scans into memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalRunConfig {
    /// Device that runs the networks: `auto` (default), `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceChoice,
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Folder of the truth masks, below the cohort's root. Default: `derivatives/truth`.
    pub truth: String,
    /// Share of healthy brain voxels that score below a method's threshold, 0 to 1; used where the method's settings have
    /// no `mask_threshold`. Default: 0.998.
    pub healthy_quantile: f64,
    /// The methods that are compared.
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
    /// Its name in the report and in the table.
    pub name: String,
    /// How it scores.
    #[serde(default)]
    pub score: ScoreConfig,
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
