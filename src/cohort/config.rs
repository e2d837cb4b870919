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
    /// What is taken from `participants.tsv` into the table `participants`.
    #[serde(skip_serializing_if = "MetadataConfig::is_default")]
    pub metadata: MetadataConfig,
    /// Which scans are selected. Default: every `T1w` image outside `derivatives/`.
    pub select: Selection,
}

/// Which columns of `participants.tsv` fill the table `participants`: the section `[cohort.metadata]`. A column that is named
/// must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataConfig {
    /// Whether the table is filled. Default: true.
    pub read: bool,
    /// Column with the age in years. Default: `age`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<String>,
    /// Column with the sex. Default: `sex` or `gender`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sex: Option<String>,
    /// Column with the site. Default: `site`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Column with the group, such as patients and controls. Default: `group`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Further columns, for `more`. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<String>,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self { read: true, age: None, sex: None, site: None, group: None, more: Vec::new() }
    }
}

impl MetadataConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
