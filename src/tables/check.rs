//! Checking the tables: rows that are there twice, that no result owns, or that are missing; and removing those without an
//! owner.
//!
//! Commits are atomic per table, and `scans` is committed last. A run that is killed in between, and one of two runs that
//! screen the same scan at the same time, leave rows in the other tables that no row of `scans` owns. No view shows them, but
//! they take space, and readers without the views see them.
//!
//! Takes opened tables; gives [`CheckReport`]. [`Tables::remove_orphans`] deletes rows without an owner, except those of runs
//! that may be active (`activity.rs`), which may be about to commit the owner. Rows that are there twice are mended in
//! `doubles.rs`.

use std::collections::{BTreeMap, HashSet};

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use chrono::Utc;
use datafusion::prelude::SessionContext;

use super::open::Tables;
use super::rewrite::of_scans;
use super::schema::Table;
use super::session::texts;
use crate::error::Result;

/// Tables whose rows belong to a row of `scans`.
pub(super) const OWNED: [Table; 3] = [Table::Tokens, Table::Masks, Table::Findings];

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
            let rows = count(&self.orphans(&context, table).await?);
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

    /// Deletes the rows that no result owns, except those of runs that may still commit the result; gives their number by
    /// table. Reads the newest commits first.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a table with features that this program cannot write, and where other processes rewrite the
    /// same files; [`Error::Table`](crate::Error::Table) and [`Error::Query`](crate::Error::Query) where a table cannot be read or written.
    pub async fn remove_orphans(&mut self) -> Result<BTreeMap<&'static str, usize>> {
        self.refresh().await?;
        let now = Utc::now();
        let over: HashSet<String> =
            self.run_states().await?.into_iter().filter(|run| !run.may_be_active(now)).map(|run| run.run_id).collect();
        // A run that is over by now committed all of its results before: none of them can be missing in what is read next.
        self.refresh().await?;
        let context = self.raw_session().await?;
        let mut found = Vec::new();
        for table in OWNED {
            found.push((table, self.orphans(&context, table).await?));
        }
        // A run that began meanwhile has a row by now; rows of a run without one are of no run that is known.
        self.refresh().await?;
        let known: HashSet<String> = self.run_states().await?.into_iter().map(|run| run.run_id).collect();
        let mut removed = BTreeMap::new();
        for (table, mut orphans) in found {
            orphans.retain(|run_id, _| over.contains(run_id) || !known.contains(run_id));
            for (run_id, scans) in &orphans {
                for scans in scans.chunks(SCANS_AT_ONCE) {
                    let (ids, counts): (Vec<String>, Vec<usize>) = scans.iter().cloned().unzip();
                    self.delete_where(table, &of_scans(run_id, &ids), counts.iter().sum()).await?;
                }
            }
            if !orphans.is_empty() {
                removed.insert(table.name(), count(&orphans));
            }
        }
        Ok(removed)
    }

    /// The rows of a table that no result owns.
    async fn orphans(&self, context: &SessionContext, table: Table) -> Result<Orphans> {
        let sql = format!(
            "SELECT o.run_id, o.scan_id, count(*) AS n FROM raw.{} o
             WHERE NOT EXISTS (SELECT 1 FROM raw.scans s WHERE s.run_id = o.run_id AND s.scan_id = o.scan_id)
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
}

fn count(orphans: &Orphans) -> usize {
    orphans.values().flatten().map(|(_, rows)| rows).sum()
}
