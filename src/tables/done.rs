//! What earlier runs have done with one recipe: scans that a new run skips, scans that it may try again, and which outcome
//! of a scan is the current one.
//!
//! A scan has an outcome for each content that was screened: a result, a failure, or both where a further attempt succeeded.
//! The current outcome is the one that the run with the highest number gave, or found again (`reverts`). The views decide by
//! the same rule (`query/views.rs`).

use std::collections::HashMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::functions_aggregate::expr_fn::{bool_or, max};
use datafusion::prelude::{DataFrame, SessionContext, col, lit, when};

use super::open::Tables;
use super::schema::Table;
use super::session::RAW_SCHEMA;
use crate::error::{CRASHED, Error, Result, TOO_LARGE, TOO_LARGE_FOR_MEMORY};

/// What was done with one content of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The content.
    pub content_id: String,
    /// Whether there is a result.
    pub finished: bool,
    /// Failed attempts.
    pub attempts: i32,
    /// Whether a further attempt cannot succeed, whatever the limits of the run.
    pub permanent: bool,
    /// Bytes that the scan needs at least, where it exceeded `run.max_scan_mib`.
    pub needs_scan_bytes: Option<i64>,
    /// Bytes that the scan needs at least, where it exceeded the memory of the run.
    pub needs_memory_bytes: Option<i64>,
    /// Whether a process died while it screened the content alone.
    pub crashed: bool,
    /// Number of the last run that failed with it.
    failed_in: Option<i64>,
    /// Number of the last run that gave or found this outcome; null, in rows of older versions, comes first.
    run_number: Option<i64>,
    /// When the outcome was given; orders those without a number.
    at: i64,
}

impl Outcome {
    fn new(content_id: &str) -> Self {
        Self {
            content_id: content_id.to_owned(),
            finished: false,
            attempts: 0,
            permanent: false,
            needs_scan_bytes: None,
            needs_memory_bytes: None,
            crashed: false,
            failed_in: None,
            run_number: None,
            at: 0,
        }
    }

    /// Sorts the outcomes of a scan; the last one is current.
    fn order(&self) -> (Option<i64>, i64, bool) {
        (self.run_number, if self.run_number.is_none() { self.at } else { 0 }, self.finished)
    }

    /// Whether no run with these limits, in bytes, can screen the content.
    pub fn is_unusable(&self, scan_bytes: u64, memory_bytes: u64) -> bool {
        let exceeds = |needs: Option<i64>, limit: u64| needs.is_some_and(|needs| i128::from(needs) > i128::from(limit));
        self.permanent || exceeds(self.needs_scan_bytes, scan_bytes) || exceeds(self.needs_memory_bytes, memory_bytes)
    }

    fn given(&mut self, run_number: Option<i64>, at: i64) {
        self.run_number = self.run_number.max(run_number);
        self.at = self.at.max(at);
    }
}

/// The outcomes of every scan that was screened with one recipe, by scan id.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Done {
    scans: HashMap<String, Vec<Outcome>>,
    /// Numbers of the runs that asked for the recipe, in ascending order.
    runs: Vec<i64>,
}

impl Done {
    /// What was done with this content of a scan.
    pub fn outcome(&self, scan_id: &str, content_id: &str) -> Option<&Outcome> {
        self.scans.get(scan_id)?.iter().find(|outcome| outcome.content_id == content_id)
    }

    /// Whether the scan's current outcome is that of this content.
    pub fn is_current(&self, scan_id: &str, content_id: &str) -> bool {
        let current =
            self.scans.get(scan_id).and_then(|outcomes| outcomes.iter().max_by_key(|outcome| outcome.order()));
        current.is_some_and(|outcome| outcome.content_id == content_id)
    }

    /// Number of runs that asked for the recipe after the last one that failed with this outcome.
    pub fn runs_since(&self, outcome: &Outcome) -> u64 {
        let Some(failed_in) = outcome.failed_in else { return u64::MAX };
        self.runs.iter().rev().take_while(|&&number| number > failed_in).count() as u64
    }

    /// Records a result that the run of this number gave, at a time in microseconds since 1970.
    pub(crate) fn finish(&mut self, [scan_id, content_id]: [&str; 2], run_number: Option<i64>, at: i64) {
        let outcome = self.entry(scan_id, content_id);
        outcome.finished = true;
        outcome.given(run_number, at);
    }

    /// Records a failure that the run of this number gave: attempts so far, and whether a further one cannot succeed.
    pub(crate) fn fail(
        &mut self,
        [scan_id, content_id]: [&str; 2],
        run_number: Option<i64>,
        at: i64,
        (attempts, permanent): (i32, bool),
    ) -> &mut Outcome {
        let outcome = self.entry(scan_id, content_id);
        (outcome.attempts, outcome.permanent, outcome.failed_in) = (attempts, permanent, run_number);
        outcome.given(run_number, at);
        outcome
    }

    /// Records the runs that asked for the recipe.
    pub(crate) fn ran(&mut self, mut numbers: Vec<i64>) {
        numbers.sort_unstable();
        numbers.dedup();
        self.runs = numbers;
    }

    /// The outcome of this content, added where the scan has none yet.
    fn entry(&mut self, scan_id: &str, content_id: &str) -> &mut Outcome {
        let outcomes = self.scans.entry(scan_id.to_owned()).or_default();
        let at = outcomes.iter().position(|outcome| outcome.content_id == content_id).unwrap_or_else(|| {
            outcomes.push(Outcome::new(content_id));
            outcomes.len() - 1
        });
        &mut outcomes[at]
    }
}

impl Tables {
    /// What was done with `recipe_id`, and which runs on `cohort` asked for it, as of the last refresh. Reads a few columns of
    /// `scans`, `failures`, `reverts` and `runs`; holds two strings per scan in memory.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Query`] where the tables cannot be read.
    pub async fn done(&self, recipe_id: &str, cohort: &str) -> Result<Done> {
        let context = self.raw_session().await?;
        let mut done = Done::default();

        let scans = of_recipe(&context, Table::Scans, recipe_id).await?;
        let scans = scans.select_columns(&["scan_id", "content_id", "run_number", "finished_at"])?;
        for batch in scans.collect().await? {
            let (numbers, times) = (numbers(&batch, 2)?, times(&batch, 3)?);
            for (i, (scan_id, content_id)) in keys(&batch)?.enumerate() {
                done.finish([scan_id, content_id], numbers(i), times(i));
            }
        }
        let unlimited = col("kind").in_list(vec![lit(TOO_LARGE), lit(TOO_LARGE_FOR_MEMORY)], true);
        let needs = |kind: &str| Ok::<_, Error>(when(col("kind").eq(lit(kind)), col("needs_bytes")).end()?);
        let failures = of_recipe(&context, Table::Failures, recipe_id).await?.aggregate(
            vec![col("scan_id"), col("content_id")],
            vec![
                max(col("attempts")),
                bool_or(col("permanent").and(unlimited)),
                max(col("run_number")),
                max(col("failed_at")),
                max(needs(TOO_LARGE)?),
                max(needs(TOO_LARGE_FOR_MEMORY)?),
                bool_or(col("kind").eq(lit(CRASHED))),
            ],
        )?;
        for batch in failures.collect().await? {
            let attempts = batch.column(2).as_primitive_opt::<Int32Type>().ok_or_else(unexpected)?;
            let permanent = batch.column(3).as_boolean_opt().ok_or_else(unexpected)?;
            let (at_run, times) = (numbers(&batch, 4)?, times(&batch, 5)?);
            let crashed = batch.column(8).as_boolean_opt().ok_or_else(unexpected)?;
            let (scan_bytes, memory_bytes) = (numbers(&batch, 6)?, numbers(&batch, 7)?);
            for (i, (scan_id, content_id)) in keys(&batch)?.enumerate() {
                let tried = (attempts.value(i), permanent.value(i));
                let outcome = done.fail([scan_id, content_id], at_run(i), times(i), tried);
                (outcome.needs_scan_bytes, outcome.needs_memory_bytes) = (scan_bytes(i), memory_bytes(i));
                outcome.crashed = crashed.value(i);
            }
        }
        let reverts = of_recipe(&context, Table::Reverts, recipe_id).await?;
        let reverts = reverts.select_columns(&["scan_id", "content_id", "run_number"])?;
        for batch in reverts.collect().await? {
            let numbers = numbers(&batch, 2)?;
            for (i, (scan_id, content_id)) in keys(&batch)?.enumerate() {
                done.entry(scan_id, content_id).given(numbers(i), 0);
            }
        }
        let runs = of_recipe(&context, Table::Runs, recipe_id).await?.filter(col("cohort").eq(lit(cohort)))?;
        let mut ran = Vec::new();
        for batch in runs.select_columns(&["run_number"])?.collect().await? {
            let numbers = numbers(&batch, 0)?;
            ran.extend((0..batch.num_rows()).filter_map(numbers));
        }
        done.ran(ran);
        Ok(done)
    }
}

async fn of_recipe(context: &SessionContext, table: Table, recipe_id: &str) -> Result<DataFrame> {
    let rows = context.table(format!("{RAW_SCHEMA}.{}", table.name())).await?;
    Ok(rows.filter(col("recipe_id").eq(lit(recipe_id)))?)
}

/// The first two columns as (scan_id, content_id).
fn keys(batch: &RecordBatch) -> Result<impl Iterator<Item = (&str, &str)>> {
    let scans = batch.column(0).as_string_opt::<i32>().ok_or_else(unexpected)?;
    let contents = batch.column(1).as_string_opt::<i32>().ok_or_else(unexpected)?;
    Ok((0..scans.len()).map(|i| (scans.value(i), contents.value(i))))
}

fn numbers(batch: &RecordBatch, column: usize) -> Result<impl Fn(usize) -> Option<i64>> {
    let numbers = batch.column(column).as_primitive_opt::<Int64Type>().ok_or_else(unexpected)?;
    Ok(|i| numbers.is_valid(i).then(|| numbers.value(i)))
}

/// Microseconds since 1970.
fn times(batch: &RecordBatch, column: usize) -> Result<impl Fn(usize) -> i64> {
    let times = batch.column(column).as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(unexpected)?;
    Ok(|i| times.value(i))
}

fn unexpected() -> Error {
    Error::Bug("the tables have other column types than this version writes".into())
}
