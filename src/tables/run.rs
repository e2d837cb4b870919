//! The `runs` table: one row when a run starts, with status `running`, and one when it ends.
//!
//! The newest row of a run counts. A run that was killed stays `running` without an end, by which an operator recognises it.

use serde::Serialize;

use super::open::Tables;
use super::schema::Table;
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
    /// Writes and commits one row of `runs`: at most one per run without an end and one with.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Storage`](crate::Error::Storage) where the table cannot be written.
    pub async fn record_run(&mut self, row: &RunRow) -> Result<()> {
        let epoch = i64::from(row.finished_at.is_some());
        self.append_rows(Table::Runs, std::slice::from_ref(row), &row.run_id, epoch).await
    }
}
