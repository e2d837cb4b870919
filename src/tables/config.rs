//! Settings of the result tables: the section `[tables]` of a pipeline file.

use serde::{Deserialize, Serialize};

use crate::config::{Section, Validate};
use crate::error::Result;

/// Where results are written, and how often they are committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesConfig {
    /// Folder of the tables: any URL or path that `cohort.url` accepts.
    pub url: String,
    /// Most scans that finish between two commits. Also limits the scans per data file if it is below 64. At least
    /// 1. Default: 512.
    pub commit_scans: usize,
    /// Longest time between two commits, in seconds. Finished scans are written to data files after the same time, however
    /// few they are. From 1 to 21600, six hours. Default: 60.
    pub commit_seconds: u64,
}

impl Default for TablesConfig {
    fn default() -> Self {
        Self { url: String::new(), commit_scans: 512, commit_seconds: 60 }
    }
}

impl Validate for TablesConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("tables");
        section.within("commit_scans", self.commit_scans, 1..=1_000_000)?;
        section.within("commit_seconds", self.commit_seconds, 1..=LONGEST_S)
    }
}

/// Six hours. A vacuum may delete files that are a day old, and a file that is not committed yet may also have waited for an
/// outage of the store, up to twelve hours.
const LONGEST_S: u64 = 6 * 3600;
