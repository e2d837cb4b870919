//! The `runs` table: a row when a run starts, with status `running`, and one when it ends. The newest counts; a run
//! that was killed stays `running` without an end, which is how an operator sees it.

use serde::Serialize;

use super::{Table, Tables};
use crate::error::Result;

/// One row of `runs`; the fields are its columns. Times are microseconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented in tables/columns.rs")]
pub struct RunRow {
    pub run_id: String,
    pub cohort: String,
    pub started_at: i64,
    pub finished_at: Option<i64>,
    pub status: String,
    pub n_listed: i64,
    pub n_selected: i64,
    pub n_already_done: i64,
    pub n_done: i64,
    pub n_failed: i64,
    pub scans_per_minute: f32,
    pub device: String,
    pub recipe_id: String,
    pub bundle: String,
    pub bundle_digest: String,
    pub config: String,
    pub version: String,
    pub cores: i32,
}

impl Tables {
    /// Writes and commits one row of `runs`. At most one row per run without an end and one with.
    pub async fn record_run(&mut self, row: &RunRow) -> Result<()> {
        let receipt = self.put_rows(Table::Runs, std::slice::from_ref(row), &row.run_id).await?;
        let epoch = i64::from(row.finished_at.is_some());
        self.append(&row.run_id, epoch, receipt).await
    }
}
