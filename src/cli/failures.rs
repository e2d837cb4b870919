//! `neurosieve failures`: shows which scans have no result, and why.

use datafusion::prelude::{col, lit};

use crate::error::Result;
use crate::query::{self, Access, Format};
use crate::tables::Tables;

/// Show which scans have no result, and why
///
/// The next run tries a temporary failure again, and later runs after further failures, up to eight times in all. A permanent
/// failure is tried again after the scan's file has changed; too_large and too_large_for_memory also under higher limits
/// (`run.max_scan_mib`, `run.memory_mib`). `neurosieve run --retry` tries all.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve failures --tables ./results
  neurosieve failures --tables ./results --scans --kind truncated --format csv")]
pub struct FailuresArgs {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    tables: String,
    /// Print a row per scan instead of a row per reason
    #[arg(long)]
    scans: bool,
    /// Show only failures of this kind, as in the column `kind` [default: all]
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Show only failures in this stage: fetch, decode, preprocess or score [default: all]
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A row per reason.
const REASONS: &str = include_str!("../../sql/failures_by_reason.sql");

/// A row per scan.
const SCANS: &str =
    "SELECT scan_id, uri, stage, kind, permanent, attempts, failed_at, message FROM failures ORDER BY scan_id";

impl FailuresArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Tables::open`] and [`query::execute`].
    pub async fn run(self) -> Result<()> {
        let context = query::session(&Tables::open(&self.tables).await?).await?;
        // Literals of expressions instead of SQL text, so that a value cannot inject SQL.
        let wanted = [("kind", self.kind), ("stage", self.stage)];
        let rows = wanted
            .into_iter()
            .filter_map(|(column, value)| Some((column, value?)))
            .try_fold(context.table("failures").await?, |rows, (column, value)| {
                rows.filter(col(column).eq(lit(value)))
            })?;
        // Replaces the view, so that the ready query reads the filtered rows.
        context.deregister_table("failures")?;
        context.register_table("failures", rows.into_view())?;
        query::execute(&context, Access::Tables, if self.scans { SCANS } else { REASONS }, self.format, None).await
    }
}
