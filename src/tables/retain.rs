//! Removing the results of an old recipe.
//!
//! Takes opened tables and a [`Retention`]; deletes the rows that runs of the recipe wrote, where they ended long enough ago,
//! from all tables but `runs` and `participants`: the rows of `runs` are the record of what was done, and say which recipe is current;
//! what is known of a subject is of no recipe. Refuses the current
//! recipe of a cohort, whose results the views show.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use datafusion::prelude::{Expr, col, lit};

use super::activity::RunState;
use super::open::Tables;
use super::schema::Table;
use super::session::texts;
use crate::error::{Error, Result};

/// The tables that are cleaned: `scans` first, because rows without a result are hidden, and a result without rows is not.
const TABLES: [Table; 6] =
    [Table::Scans, Table::Tokens, Table::Masks, Table::Findings, Table::Failures, Table::Reverts];

/// Runs in one condition of a deletion.
const RUNS_AT_ONCE: usize = 500;

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The recipe whose results are removed.
    pub recipe_id: String,
    /// The cohorts; all where it is empty.
    pub cohorts: Vec<String>,
    /// Runs that ended less than this many days ago stay.
    pub days: u32,
    /// Whether results go that the views show.
    pub even_current: bool,
}

/// What was removed, or with `dry_run` would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// Runs that ended long enough ago.
    pub runs: usize,
    /// Runs of the recipe that did not, or may be active.
    pub younger: usize,
    /// By table, the rows.
    pub rows: BTreeMap<&'static str, usize>,
}

impl Tables {
    /// Deletes the results and failures of a recipe's old runs. Readers of earlier versions see them until the next vacuum.
    ///
    /// # Errors
    /// [`Error::Config`] for a recipe that no run had, for one that is current, and for tables that cannot be rewritten;
    /// [`Error::Table`] and [`Error::Query`] where a table cannot be read or written.
    pub async fn retain(&mut self, what: &Retention, dry_run: bool) -> Result<Retained> {
        self.refresh().await?;
        let of_cohorts = |cohort: &String| what.cohorts.is_empty() || what.cohorts.contains(cohort);
        let mut runs = self.run_states().await?;
        runs.retain(|run| run.recipe_id == what.recipe_id && of_cohorts(&run.cohort));
        if runs.is_empty() {
            return Err(Error::Config(format!(
                "no run{} had recipe {}: `neurosieve sql -c 'SELECT cohort, recipe_id, current, started_at FROM recipes'` lists \
                 the recipes",
                if what.cohorts.is_empty() { "" } else { " of this cohort" },
                what.recipe_id
            )));
        }
        let current = self.cohorts_with_current(&what.recipe_id).await?;
        let current: Vec<String> = current.into_iter().filter(of_cohorts).collect();
        if !current.is_empty() && !what.even_current {
            return Err(Error::Config(format!(
                "recipe {} is the current one of cohort {}, and the views show its results: name other cohorts with --cohort, or \
                 remove them all the same with --even-current",
                what.recipe_id,
                current.join(", ")
            )));
        }
        let (old, younger): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| is_old(run, what.days, Utc::now()));
        let mut retained = Retained { runs: old.len(), younger: younger.len(), rows: BTreeMap::new() };
        let present: Vec<Table> = self.present().collect();
        for runs in old.chunks(RUNS_AT_ONCE) {
            let which = of_runs(runs);
            for table in TABLES.into_iter().filter(|table| present.contains(table)) {
                let rows = match dry_run {
                    true => self.count_where(table, &which).await?,
                    false => self.delete_counted(table, &which).await?,
                };
                *retained.rows.entry(table.name()).or_default() += rows;
            }
        }
        retained.rows.retain(|_, rows| *rows > 0);
        Ok(retained)
    }

    /// The cohorts whose last run had this recipe.
    async fn cohorts_with_current(&self, recipe_id: &str) -> Result<Vec<String>> {
        let context = self.raw_session().await?;
        let last = context.sql(
            "SELECT cohort, recipe_id FROM raw.runs WHERE recipe_id <> ''
             QUALIFY row_number() OVER (
                 PARTITION BY cohort ORDER BY run_number DESC NULLS LAST, started_at DESC, run_id DESC
             ) = 1 ORDER BY cohort",
        );
        let mut cohorts = Vec::new();
        for batch in last.await?.collect().await? {
            let pairs = texts(&batch, 0).zip(texts(&batch, 1));
            cohorts.extend(pairs.filter(|(_, recipe)| recipe == recipe_id).map(|(cohort, _)| cohort));
        }
        Ok(cohorts)
    }
}

fn is_old(run: &RunState, days: u32, now: DateTime<Utc>) -> bool {
    !run.may_be_active(now) && run.last_seen < now - TimeDelta::days(days.into())
}

fn of_runs(runs: &[RunState]) -> Expr {
    col("run_id").in_list(runs.iter().map(|run| lit(run.run_id.as_str())).collect(), false)
}
