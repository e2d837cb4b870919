//! Settings of a cohort: the section `[cohort]` of a pipeline file.

use serde::{Deserialize, Serialize};

use super::select::Selection;
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::store::Location;

/// Where scans come from and which are selected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CohortConfig {
    /// Root of the cohort: an `s3://`, `gs://`, `az://`, `http(s)://` or `file://` URL, or a plain path.
    pub url: String,
    /// Name of the cohort in the tables. Default: the last part of the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Allows the tables to know a cohort of this name from another address: for a cohort that has moved, and for one whose
    /// folder changes from run to run. Its scan ids must then be unique over all addresses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
    /// Shows subjects, sessions, paths and scan ids as pseudonyms in the tables, logs, reports and messages. Their key comes from
    /// the environment, `NEUROSIEVE_PSEUDONYM_KEY`. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pseudonyms: bool,
    /// Allows the tables to hold scans of this cohort under other names: their real ones, or pseudonyms of another key. Each
    /// scan then has a row under either name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub new_names: bool,
    /// Which scans are selected. Default: every `T1w` image outside `derivatives/`.
    pub select: Selection,
}

impl CohortConfig {
    /// The cohort's name in scan ids and tables, when it lies at `location`.
    pub fn name_at<'a>(&'a self, location: &'a Location) -> &'a str {
        self.name.as_deref().unwrap_or(location.name())
    }
}

impl Validate for CohortConfig {
    fn validate(&self) -> Result<()> {
        Section("cohort.select").within("participants_mib", self.select.participants_mib, 1..=1 << 20)
    }
}
