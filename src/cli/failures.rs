//! `neurosieve failures`: which scans have no result, and why.

use datafusion::prelude::{col, lit};

use crate::error::Result;
use crate::query::{self, Format};
use crate::tables::Tables;

/// Show which scans have no result, and why
///
/// Those that are permanent need a new file; `neurosieve run --retry` tries them all the same. The others are tried again
/// by every run.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve failures --tables ./results
  neurosieve failures --tables ./results --scans --kind truncated --format csv")]
pub struct FailuresArgs {
    /// Where the tables are: a folder or a URL such as s3://bucket/results
    #[arg(long, value_name = "URL")]
    tables: String,
    /// Every scan instead of every reason
    #[arg(long)]
    scans: bool,
    /// Only failures of this kind, as the column `kind` has it
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only failures in this stage: fetch, decode, preprocess or score
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// How rows are written
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
    pub async fn run(self) -> Result<()> {
        let context = query::session(&Tables::open(&self.tables).await?).await?;
        // Literals of expressions, not text in a statement: what is typed here cannot be SQL.
        let wanted = [("kind", self.kind), ("stage", self.stage)];
        let rows = wanted
            .into_iter()
            .filter_map(|(column, value)| Some((column, value?)))
            .try_fold(context.table("failures").await?, |rows, (column, value)| {
                rows.filter(col(column).eq(lit(value)))
            })?;
        // In place of the view, so that the ready query sees them.
        context.deregister_table("failures")?;
        context.register_table("failures", rows.into_view())?;
        query::execute(&context, if self.scans { SCANS } else { REASONS }, self.format, None).await
    }
}
