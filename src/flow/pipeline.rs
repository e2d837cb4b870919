//! A pipeline file of `neurosieve run` and `neurosieve schedule`: the settings of all modules that screening uses.

use serde::{Deserialize, Serialize};

use super::config::{RunConfig, ScheduleConfig};
use crate::cohort::CohortConfig;
use crate::model::ModelConfig;
use crate::preprocess::PreprocessConfig;
use crate::score::ScoreConfig;
use crate::tables::TablesConfig;

/// What `neurosieve run` and `neurosieve schedule` do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Where scans come from and which are selected.
    pub cohort: CohortConfig,
    /// Where results are written, and how often they are committed.
    pub tables: TablesConfig,
    /// Preprocessing. Default: the settings that the bundle was trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<PreprocessConfig>,
    /// Which model scores.
    pub model: ModelConfig,
    /// How it scores.
    pub score: ScoreConfig,
    /// How a run uses the machine, and which of the pending scans it takes.
    pub run: RunConfig,
    /// When `neurosieve schedule` works; `neurosieve run` ignores it and runs at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleConfig>,
}
