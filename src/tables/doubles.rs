//! Mending rows that are there twice, as two rewrites at once by an older version left them, and results with missing rows.
//!
//! | what is there twice | what stays |
//! |---|---|
//! | a row, in every column | one of them |
//! | a result of one scan, content and recipe, by two runs | that of the run with the higher number, which the views show |
//!
//! A result with missing rows cannot be completed. It is deleted, so that the next run screens its scan again.
//!
//! Takes opened tables; gives the number of rows that were deleted. Rows of one run and scan that differ are left, and
//! reported by [`Tables::check`]: which of them is right cannot be known.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use datafusion::prelude::{SessionContext, col};
use deltalake_core::protocol::{DeltaOperation, SaveMode};

use super::check::OWNED;
use super::datafile::properties;
use super::open::Tables;
use super::rewrite::{Rewrite, of_scans};
use super::schema::Table;
use super::session::{RAW_SCHEMA, texts};
use crate::error::{Error, Result};

/// Scans whose rows are held in memory at once: their masks have a megabyte each.
const SCANS_AT_ONCE: usize = 32;

/// Tables with the columns that name a row. Tokens have none here, because there are too many to group by them.
const KEYS: [(Table, Option<&str>); 6] = [
    (Table::Scans, Some("run_id, scan_id, content_id, recipe_id")),
    (Table::Tokens, None),
    (Table::Masks, Some("run_id, scan_id")),
    (Table::Findings, Some("run_id, scan_id, finding")),
    (Table::Failures, Some("run_id, scan_id, content_id, recipe_id, attempts")),
    (Table::Reverts, Some("run_id, scan_id, content_id, recipe_id")),
];

/// Scans with more tokens than their result says. To group the tokens by their key would hold each of them in memory, and a
/// cohort has hundreds of millions. Tokens without a result are deleted as such.
const TOO_MANY_TOKENS: &str = "
    SELECT t.run_id, t.scan_id
    FROM (SELECT run_id, scan_id, count(*) AS n FROM raw.tokens GROUP BY run_id, scan_id) t
    JOIN (SELECT run_id, scan_id, max(n_tokens) AS n FROM raw.scans GROUP BY run_id, scan_id) s
        ON s.run_id = t.run_id AND s.scan_id = t.scan_id
    WHERE t.n > s.n ORDER BY t.run_id, t.scan_id";

/// Results whose mask is missing, or that have fewer tokens or findings than they say. More of them are rows that differ.
const WITH_MISSING_ROWS: &str = "
    SELECT DISTINCT s.run_id, s.scan_id FROM raw.scans s
    LEFT JOIN (SELECT run_id, scan_id, count(*) AS n FROM raw.tokens GROUP BY run_id, scan_id) t
        ON t.run_id = s.run_id AND t.scan_id = s.scan_id
    LEFT JOIN (SELECT DISTINCT run_id, scan_id FROM raw.masks) m ON m.run_id = s.run_id AND m.scan_id = s.scan_id
    LEFT JOIN (SELECT run_id, scan_id, count(*) AS n FROM raw.findings GROUP BY run_id, scan_id) f
        ON f.run_id = s.run_id AND f.scan_id = s.scan_id
    WHERE coalesce(t.n, 0) < s.n_tokens OR m.scan_id IS NULL OR coalesce(f.n, 0) < s.n_findings
    ORDER BY s.run_id, s.scan_id";

impl Tables {
    /// Deletes all but one of rows that are equal, and results that a later run has made again; gives the number of deleted
    /// rows by table.
    ///
    /// # Errors
    /// As [`remove_orphans`](Tables::remove_orphans).
    pub async fn remove_doubles(&mut self) -> Result<BTreeMap<&'static str, usize>> {
        self.refresh().await?;
        let mut removed = BTreeMap::new();
        let present: Vec<Table> = self.present().collect();
        for (table, key) in KEYS.into_iter().filter(|(table, _)| present.contains(table)) {
            let context = self.raw_session().await?;
            let doubled = match key {
                None => TOO_MANY_TOKENS.to_owned(),
                Some(key) => format!(
                    "SELECT run_id, scan_id FROM (
                         SELECT run_id, scan_id FROM raw.{} GROUP BY {key} HAVING count(*) > 1
                     ) GROUP BY run_id, scan_id ORDER BY run_id, scan_id",
                    table.name()
                ),
            };
            for (run_id, scans) in scans_by_run(&context, &doubled).await? {
                for scans in scans.chunks(SCANS_AT_ONCE) {
                    *removed.entry(table.name()).or_default() += self.keep_one(table, &run_id, scans).await?;
                }
            }
        }
        self.remove_earlier_results(&mut removed).await?;
        removed.retain(|_, rows| *rows > 0);
        Ok(removed)
    }

    /// Replaces the rows of these scans of a run by one of each; gives how many that leaves out.
    async fn keep_one(&mut self, table: Table, run_id: &str, scans: &[String]) -> Result<usize> {
        let unreadable = |e| Error::table(format!("cannot read table {}", table.name()), e);
        let schema = self.delta(table).snapshot().map_err(unreadable)?.schema();
        let columns: Vec<String> = schema.fields().map(|field| field.name().clone()).collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let which = of_scans(run_id, scans);
        let context = self.raw_session().await?;
        let rows = context.table(format!("{RAW_SCHEMA}.{}", table.name())).await?.filter(which.clone())?;
        let rows = rows.select_columns(&columns)?;
        let before = rows.clone().count().await?;
        let order = table.sorted_by().iter().map(|name| col(*name).sort(true, false)).collect();
        let distinct: Vec<RecordBatch> = rows.distinct()?.sort(order)?.collect().await?;
        let removed_rows = before - distinct.iter().map(RecordBatch::num_rows).sum::<usize>();
        if removed_rows == 0 {
            return Ok(0);
        }
        let operation = DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by: None, predicate: None };
        let what = Rewrite { table, attempted: "mend doubled rows of", operation, removed_rows };
        let properties = properties(table, false)?;
        let mended = self.rewrite(&what, |copy, commit| {
            let write =
                copy.write(distinct.clone()).with_save_mode(SaveMode::Overwrite).with_replace_where(which.clone());
            write.with_writer_properties(properties.clone()).with_commit_properties(commit).into_future()
        });
        mended.await?;
        Ok(removed_rows)
    }

    /// Deletes results that a run with a higher number has made again, with their rows in the other tables.
    async fn remove_earlier_results(&mut self, removed: &mut BTreeMap<&'static str, usize>) -> Result<()> {
        let context = self.raw_session().await?;
        let order = "PARTITION BY scan_id, content_id, recipe_id
                     ORDER BY coalesce(run_number, -1) DESC, finished_at DESC, run_id DESC";
        let earlier = format!(
            "SELECT DISTINCT run_id, scan_id FROM (
                 SELECT run_id, scan_id, first_value(run_id) OVER ({order}) AS kept FROM raw.scans
             ) WHERE run_id <> kept ORDER BY run_id, scan_id"
        );
        let earlier = scans_by_run(&context, &earlier).await?;
        self.remove_results(earlier, removed).await
    }

    /// Deletes results of which tokens, findings or the mask are missing, with the rows that are left of them: the next run screens
    /// these scans again. Gives the number of results.
    ///
    /// # Errors
    /// As [`remove_orphans`](Tables::remove_orphans).
    pub async fn remove_incomplete(&mut self) -> Result<usize> {
        self.refresh().await?;
        let incomplete = scans_by_run(&self.raw_session().await?, WITH_MISSING_ROWS).await?;
        let results = incomplete.values().map(Vec::len).sum();
        self.remove_results(incomplete, &mut BTreeMap::new()).await?;
        Ok(results)
    }

    /// Deletes the results of these scans by run, with their rows in the other tables; counts the rows in `removed`.
    async fn remove_results(
        &mut self,
        results: BTreeMap<String, Vec<String>>,
        removed: &mut BTreeMap<&'static str, usize>,
    ) -> Result<()> {
        for (run_id, scans) in results {
            for scans in scans.chunks(SCANS_AT_ONCE) {
                // `scans` first: rows without a result are hidden, a result without rows is not.
                for table in [Table::Scans].into_iter().chain(OWNED) {
                    *removed.entry(table.name()).or_default() +=
                        self.delete_counted(table, &of_scans(&run_id, scans)).await?;
                }
            }
        }
        Ok(())
    }
}

/// The rows (run_id, scan_id) of a query, by run.
async fn scans_by_run(context: &SessionContext, sql: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut scans: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for batch in context.sql(sql).await?.collect().await? {
        for (run_id, scan_id) in texts(&batch, 0).zip(texts(&batch, 1)) {
            scans.entry(run_id).or_default().push(scan_id);
        }
    }
    Ok(scans)
}
