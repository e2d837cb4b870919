//! Settings of a cohort: the section `[cohort]` of a pipeline file.

use serde::{Deserialize, Serialize};

use super::select::Selection;

/// Where scans come from and which are selected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CohortConfig {
    /// Root of the cohort: an `s3://`, `gs://`, `az://`, `http(s)://` or `file://` URL, or a plain path.
    pub url: String,
    /// Name of the cohort in the tables. Default: the last part of the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which scans are selected. Default: every `T1w` image outside `derivatives/`.
    pub select: Selection,
}
