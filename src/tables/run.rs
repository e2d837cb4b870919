//! The `runs` table: a row when a run starts, with status `running`, and one when it ends. The newest counts; a run
//! that was killed stays `running` without an end, which is how an operator sees it.

use serde::Serialize;

use super::{DataFile, Receipt, Table, Tables};
use crate::error::{Error, Result};

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
        let rows = Table::Runs.rows(std::slice::from_ref(row))?;
        let encode = move || DataFile::encode(Table::Runs, &[rows]);
        let encoded = tokio::task::spawn_blocking(encode).await;
        let file = encoded.map_err(|e| Error::Bug(format!("encoding a run's row: {e}")))??;
        let receipt = Receipt {
            batch_id: row.run_id.clone(),
            table: Table::Runs,
            path: file.put(self.location(), Table::Runs).await?,
            size_bytes: file.bytes.len() as i64,
            num_rows: 1,
            stats: file.stats,
            n_scans: 0,
            n_failed: 0,
        };
        let epoch = i64::from(row.finished_at.is_some());
        self.append(Table::Runs, &row.run_id, epoch, &[&receipt]).await.map(drop)
    }
}
