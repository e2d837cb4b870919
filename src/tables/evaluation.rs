//! The `evaluations` table: the figures of `neurosieve eval`, one row per method, so that SQL can compare methods, bundles
//! and versions.

use serde::Serialize;

use super::open::Tables;
use super::schema::Table;
use crate::error::Result;

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
    /// Writes and commits the rows of one evaluation, and creates the table where it does not exist. Does nothing without
    /// rows.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Storage`](crate::Error::Storage) where the table cannot be created
    /// or written.
    pub async fn record_evaluation(&mut self, rows: &[EvaluationRow]) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        self.create_missing(Table::Evaluations).await?;
        self.append_rows(Table::Evaluations, rows, &first.evaluation_id, 0).await
    }
}
