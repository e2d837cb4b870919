//! The `runs` table: one row when a run starts, with status `running`, and one when it ends. And `reverts`, in which a run
//! records scans that have an earlier content again.
//!
//! The newest row of a run counts. A run that was killed stays `running` without an end, by which an operator recognises it.

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use chrono::{DateTime, Utc};
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::prelude::{col, lit};
use serde::Serialize;

use super::open::Tables;
use super::schema::Table;
use super::session::RAW_SCHEMA;
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
    pub run_number: Option<i64>,
    pub cohort_root: Option<String>,
    pub host: Option<String>,
    pub operator: Option<String>,
    pub image: Option<String>,
    pub message: Option<String>,
}

/// One row of `reverts`; the fields are its columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "documented in tables/columns.rs")]
pub struct RevertRow {
    pub run_id: String,
    pub run_number: i64,
    pub scan_id: String,
    pub content_id: String,
    pub recipe_id: String,
    pub cohort: String,
}

impl Tables {
    /// Writes and commits the first row of a run, once per run, and sets `row.run_number`: the version of the table that
    /// the row made. The numbers rise in the order of commits, whatever the clocks of the machines say.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Storage`](crate::Error::Storage) where the table cannot be written.
    pub async fn begin_run(&mut self, row: &mut RunRow) -> Result<()> {
        self.append_first_row(row).await
    }

    /// Writes and commits the row of a run that has ended, once per run.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Storage`](crate::Error::Storage) where the table cannot be written.
    pub async fn end_run(&mut self, row: &RunRow) -> Result<()> {
        self.append_rows(Table::Runs, std::slice::from_ref(row), &row.run_id, 1).await
    }

    /// Writes and commits the reverts that a run found, once per run. Does nothing without rows.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Storage`](crate::Error::Storage) where the table cannot be written.
    pub async fn record_reverts(&mut self, rows: &[RevertRow]) -> Result<()> {
        match rows.first() {
            Some(first) => self.append_rows(Table::Reverts, rows, &first.run_id, 0).await,
            None => Ok(()),
        }
    }

    /// What identifies the address at which the last run found this cohort, as of the last refresh; none for a cohort that
    /// is new here, or that only earlier versions have screened.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Query`](crate::Error::Query) where the table cannot be read.
    pub async fn last_root(&self, cohort: &str) -> Result<Option<String>> {
        let runs = self.raw_session().await?.table(format!("{RAW_SCHEMA}.{}", Table::Runs.name())).await?;
        let of_cohort = col("cohort").eq(lit(cohort)).and(col("cohort_root").is_not_null());
        let last = runs.filter(of_cohort)?.sort(vec![col("run_number").sort(false, false)])?.limit(0, Some(1))?;
        let rows = last.select_columns(&["cohort_root"])?.collect().await?;
        let root = |batch: &RecordBatch| Some(batch.column(0).as_string_opt::<i32>()?.value(0).to_owned());
        Ok(rows.iter().find(|batch| batch.num_rows() > 0).and_then(root))
    }

    /// When the last run began that did its work on the cohort at the address that `cohort_root` identifies, as of the last
    /// refresh: it finished or gave up. With a shard (`2/8`), runs of this shard only; with `success`, runs that finished and
    /// left a selected scan with a result, or had none to screen.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Query`](crate::Error::Query) where the table cannot be read.
    pub async fn last_run(
        &self,
        cohort_root: &str,
        shard: Option<&str>,
        success: bool,
    ) -> Result<Option<DateTime<Utc>>> {
        let runs = self.raw_session().await?.table(format!("{RAW_SCHEMA}.{}", Table::Runs.name())).await?;
        let finished = col("status").eq(lit("finished"));
        let with_result = (col("n_done") + col("n_already_done")).gt(lit(0_i64)).or(col("n_selected").eq(lit(0_i64)));
        let wanted = match success {
            true => finished.and(with_result),
            false => finished.or(col("status").eq(lit("gave_up"))),
        };
        let mut ended = col("cohort_root").eq(lit(cohort_root)).and(wanted);
        if let Some(shard) = shard {
            ended = ended.and(col("config").like(lit(format!("%shard = \"{shard}\"%"))));
        }
        let last = runs.filter(ended)?.aggregate(Vec::new(), vec![max(col("started_at"))])?.collect().await?;
        let time = last.iter().find(|batch| batch.num_rows() > 0).and_then(|batch| {
            let times = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>()?;
            times.is_valid(0).then(|| DateTime::from_timestamp_micros(times.value(0))).flatten()
        });
        Ok(time)
    }
}
