//! Checking the tables: rows that are there twice, that no result owns, or that are missing; and removing those without an
//! owner.
//!
//! Commits are atomic per table, and `scans` is committed last. A run that is killed in between, and one of two runs that
//! screen the same scan at the same time, leave rows in the other tables that no row of `scans` owns. No view shows them, but
//! they take space, and readers without the views see them.
//!
//! Takes opened tables; gives [`CheckReport`]. [`Tables::remove_orphans`] deletes rows without an owner, except those of runs
//! that began within the last day: these may be active.

use std::collections::BTreeMap;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use chrono::{TimeDelta, Utc};
use datafusion::prelude::{SessionContext, col, lit};
use deltalake_core::protocol::DeltaOperation;

use super::open::Tables;
use super::rewrite::Rewrite;
use super::schema::Table;
use crate::error::Result;

/// Tables whose rows belong to a row of `scans`.
const OWNED: [Table; 3] = [Table::Tokens, Table::Masks, Table::Findings];

/// How long a run may be active.
const LONGEST_RUN: TimeDelta = TimeDelta::days(1);

/// Scans in one predicate of a deletion.
const SCANS_AT_ONCE: usize = 1000;

/// What a check found. Nothing is wrong where all are empty; rows without an owner only take space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Keys (`scan_id`, `content_id`, `recipe_id`) with more than one result.
    pub duplicates: Vec<String>,
    /// Results whose mask is missing, or whose tokens or findings are not as many as the result says.
    pub incomplete: Vec<String>,
    /// By table, the rows that no result owns.
    pub orphans: BTreeMap<&'static str, usize>,
}

impl CheckReport {
    /// Whether a result is there twice or is incomplete.
    pub fn is_damaged(&self) -> bool {
        !self.duplicates.is_empty() || !self.incomplete.is_empty()
    }
}

/// Scans of one run whose rows in a table have no owner, with the number of these rows.
type Orphans = BTreeMap<String, Vec<(String, usize)>>;

impl Tables {
    /// Looks for rows that are there twice, that are missing, or that no result owns, as of the last refresh.
    ///
    /// # Errors
    /// [`Error::Table`](crate::Error::Table) and [`Error::Query`](crate::Error::Query) where a table cannot be read.
    pub async fn check(&self) -> Result<CheckReport> {
        let context = self.raw_session().await?;
        let duplicates = "SELECT scan_id FROM raw.scans GROUP BY scan_id, content_id, recipe_id HAVING count(*) > 1";
        let incomplete = "
            SELECT s.scan_id FROM raw.scans s
            LEFT JOIN (SELECT run_id, scan_id, count(*) AS n FROM raw.tokens GROUP BY run_id, scan_id) t
                ON t.run_id = s.run_id AND t.scan_id = s.scan_id
            LEFT JOIN (SELECT run_id, scan_id, count(*) AS n FROM raw.masks GROUP BY run_id, scan_id) m
                ON m.run_id = s.run_id AND m.scan_id = s.scan_id
            LEFT JOIN (SELECT run_id, scan_id, count(*) AS n FROM raw.findings GROUP BY run_id, scan_id) f
                ON f.run_id = s.run_id AND f.scan_id = s.scan_id
            WHERE coalesce(t.n, 0) <> s.n_tokens OR coalesce(m.n, 0) <> 1 OR coalesce(f.n, 0) <> s.n_findings";
        let mut orphans = BTreeMap::new();
        for table in OWNED {
            let rows = count(&self.orphans(&context, table, None).await?);
            if rows > 0 {
                orphans.insert(table.name(), rows);
            }
        }
        let ids = async |sql: &str| -> Result<Vec<String>> {
            let rows = context.sql(&format!("{sql} ORDER BY scan_id")).await?.collect().await?;
            Ok(rows.iter().flat_map(|batch| texts(batch, 0)).collect())
        };
        Ok(CheckReport { duplicates: ids(duplicates).await?, incomplete: ids(incomplete).await?, orphans })
    }

    /// Deletes the rows that no result owns, except those of runs that began within the last day; gives their number by
    /// table.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a table with features that this program cannot write, and where other processes rewrite the
    /// same files; [`Error::Table`](crate::Error::Table) and [`Error::Query`](crate::Error::Query) where a table cannot be read or written.
    pub async fn remove_orphans(&mut self) -> Result<BTreeMap<&'static str, usize>> {
        let before = (Utc::now() - LONGEST_RUN).timestamp_micros();
        let mut removed = BTreeMap::new();
        for table in OWNED {
            let context = self.raw_session().await?;
            let orphans = self.orphans(&context, table, Some(before)).await?;
            for (run_id, scans) in &orphans {
                for scans in scans.chunks(SCANS_AT_ONCE) {
                    self.delete_rows(table, run_id, scans).await?;
                }
            }
            if !orphans.is_empty() {
                removed.insert(table.name(), count(&orphans));
            }
        }
        Ok(removed)
    }

    /// The rows of a table that no result owns; with `begun_before`, microseconds since 1970, only those of runs that began
    /// before.
    async fn orphans(&self, context: &SessionContext, table: Table, begun_before: Option<i64>) -> Result<Orphans> {
        let young = begun_before.map_or_else(String::new, |before| {
            format!(
                "AND NOT EXISTS (SELECT 1 FROM raw.runs r WHERE r.run_id = o.run_id
                AND r.started_at >= to_timestamp_micros({before}))"
            )
        });
        let sql = format!(
            "SELECT o.run_id, o.scan_id, count(*) AS n FROM raw.{} o
             WHERE NOT EXISTS (SELECT 1 FROM raw.scans s WHERE s.run_id = o.run_id AND s.scan_id = o.scan_id) {young}
             GROUP BY o.run_id, o.scan_id ORDER BY o.run_id, o.scan_id",
            table.name()
        );
        let mut orphans = Orphans::new();
        for batch in context.sql(&sql).await?.collect().await? {
            let rows = batch.column(2).as_primitive::<Int64Type>().values();
            for ((run_id, scan_id), &n) in texts(&batch, 0).zip(texts(&batch, 1)).zip(rows) {
                orphans.entry(run_id).or_default().push((scan_id, usize::try_from(n).unwrap_or_default()));
            }
        }
        Ok(orphans)
    }

    async fn delete_rows(&mut self, table: Table, run_id: &str, scans: &[(String, usize)]) -> Result<()> {
        let ids = scans.iter().map(|(scan_id, _)| lit(scan_id.as_str())).collect();
        let which = col("run_id").eq(lit(run_id)).and(col("scan_id").in_list(ids, false));
        let what = Rewrite {
            table,
            attempted: "delete rows of",
            operation: DeltaOperation::Delete { predicate: None },
            removed_rows: scans.iter().map(|(_, rows)| rows).sum(),
        };
        let deleted = self.rewrite(&what, |copy, commit| {
            copy.delete().with_predicate(which.clone()).with_commit_properties(commit).into_future()
        });
        deleted.await.map(drop)
    }
}

fn count(orphans: &Orphans) -> usize {
    orphans.values().flatten().map(|(_, rows)| rows).sum()
}

/// A text column.
fn texts(batch: &RecordBatch, column: usize) -> impl Iterator<Item = String> {
    let texts = batch.column(column).as_string::<i32>();
    texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect::<Vec<_>>().into_iter()
}
