//! The `evaluations` table: what `neurosieve eval` found, a row per method, so that methods, bundles and versions can be
//! compared by SQL.

use serde::Serialize;

use super::{DataFile, Receipt, Table, Tables};
use crate::error::{Error, Result};

/// One row of `evaluations`; the fields are its columns. Times are microseconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented in tables/columns.rs")]
pub struct EvaluationRow {
    pub evaluation_id: String,
    pub evaluated_at: i64,
    pub method: String,
    pub score: String,
    pub bundle: String,
    pub bundle_digest: String,
    pub device: String,
    pub cohort: String,
    pub n_lesioned: i64,
    pub n_healthy: i64,
    pub mask_threshold: f32,
    pub prevalence: f32,
    pub average_precision: f32,
    pub average_precision_low: f32,
    pub average_precision_high: f32,
    pub best_dice: f32,
    pub best_dice_low: f32,
    pub best_dice_high: f32,
    pub dice: f32,
    pub dice_low: f32,
    pub dice_high: f32,
    pub scan_dice_q1: f32,
    pub scan_dice_median: f32,
    pub scan_dice_q3: f32,
    pub lesion_f1: f32,
    pub lesion_f1_low: f32,
    pub lesion_f1_high: f32,
    pub false_findings_per_scan: f32,
    pub scan_auroc: f32,
    pub scan_auroc_low: f32,
    pub scan_auroc_high: f32,
    pub healthy_ml_median: f32,
    pub healthy_ml_p90: f32,
    pub device_seconds: f32,
    pub reconstruction_l1: f32,
    pub version: String,
}

impl Tables {
    /// Writes and commits the rows of one evaluation, making the table where it is not there yet.
    pub async fn record_evaluation(&mut self, rows: &[EvaluationRow]) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        self.with_evaluations().await?;
        let receipt = self.put_rows(Table::Evaluations, rows, &first.evaluation_id).await?;
        self.append(&first.evaluation_id, 0, receipt).await
    }

    /// Puts rows into a data file of their own, which awaits its commit.
    pub(super) async fn put_rows<T: Serialize>(&self, table: Table, rows: &[T], batch_id: &str) -> Result<Receipt> {
        let batch = table.rows(rows)?;
        let encoded = tokio::task::spawn_blocking(move || DataFile::encode(table, &[batch])).await;
        let file = encoded.map_err(|e| Error::Bug(format!("encoding rows of {}: {e}", table.name())))??;
        Ok(Receipt {
            batch_id: batch_id.to_owned(),
            table,
            path: file.put(self.location(), table).await?,
            size_bytes: file.bytes.len() as i64,
            num_rows: rows.len() as i64,
            stats: file.stats,
            n_scans: 0,
            n_failed: 0,
        })
    }
}
