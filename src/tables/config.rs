//! Settings of the result tables: the section `[tables]` of a pipeline file.

use serde::{Deserialize, Serialize};

/// Where results are written, and how often they are committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesConfig {
    /// Folder of the tables: any URL or path that `cohort.url` accepts.
    pub url: String,
    /// Most scans that finish between two commits. Also limits the scans per data file if it is below 64. Default: 512.
    pub commit_scans: usize,
    /// Longest time between two commits, in seconds. Finished scans are written to data files after the same time, however
    /// few they are. Default: 60.
    pub commit_seconds: u64,
}

impl Default for TablesConfig {
    fn default() -> Self {
        Self { url: String::new(), commit_scans: 512, commit_seconds: 60 }
    }
}
