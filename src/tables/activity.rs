//! Which runs may still be working on the tables.
//!
//! A run has a row in `runs` before it commits anything, and one with its end after its last commit. A run that was killed
//! never gets the second one. So a run without an end counts as active until it has given no sign of life for a day: its
//! start, or the last result or failure that it committed.
//!
//! Takes opened tables; gives a [`RunState`] for each run.

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use chrono::{DateTime, TimeDelta, Utc};

use super::open::Tables;
use super::session::texts;
use crate::error::{Error, Result};

/// How long a run may be silent: longer than the store can be down before a run gives up.
const LONGEST_SILENCE: TimeDelta = TimeDelta::days(1);

/// A run, as the tables know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunState {
    /// Its id.
    pub run_id: String,
    /// The name of its cohort.
    pub cohort: String,
    /// Its recipe.
    pub recipe_id: String,
    /// Whether it has ended by its own account.
    pub ended: bool,
    /// When it ended, or gave its last sign of life.
    pub last_seen: DateTime<Utc>,
}

impl RunState {
    /// Whether the run may still commit results.
    pub fn may_be_active(&self, now: DateTime<Utc>) -> bool {
        !self.ended && self.last_seen >= now - LONGEST_SILENCE
    }
}

impl Tables {
    /// Every run, as of the last refresh.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Query`] where a table cannot be read.
    pub async fn run_states(&self) -> Result<Vec<RunState>> {
        let context = self.raw_session().await?;
        let sql = "
            SELECT r.run_id, r.cohort, r.recipe_id, r.ended,
                CAST(CASE WHEN r.ended THEN r.seen ELSE greatest(r.seen, s.seen, f.seen) END AS BIGINT) AS last_seen
            FROM (
                SELECT run_id, max(cohort) AS cohort, max(recipe_id) AS recipe_id,
                    bool_or(finished_at IS NOT NULL) AS ended, max(coalesce(finished_at, started_at)) AS seen
                FROM raw.runs GROUP BY run_id
            ) r
            LEFT JOIN (SELECT run_id, max(finished_at) AS seen FROM raw.scans GROUP BY run_id) s ON s.run_id = r.run_id
            LEFT JOIN (SELECT run_id, max(failed_at) AS seen FROM raw.failures GROUP BY run_id) f ON f.run_id = r.run_id
            ORDER BY r.run_id";
        let mut runs = Vec::new();
        for batch in context.sql(sql).await?.collect().await? {
            let unexpected = || Error::Bug("the runs have other column types than this version writes".into());
            let ended = batch.column(3).as_boolean_opt().ok_or_else(unexpected)?;
            let seen = batch.column(4).as_primitive_opt::<Int64Type>().ok_or_else(unexpected)?;
            let names = texts(&batch, 0).zip(texts(&batch, 1)).zip(texts(&batch, 2));
            runs.extend(names.enumerate().map(|(i, ((run_id, cohort), recipe_id))| RunState {
                run_id,
                cohort,
                recipe_id,
                ended: ended.value(i),
                last_seen: DateTime::from_timestamp_micros(seen.value(i)).unwrap_or_default(),
            }));
        }
        Ok(runs)
    }

    /// Refuses work that an active run would undo or be broken by. `killed` are runs that the caller knows to be over.
    ///
    /// # Errors
    /// [`Error::Config`] where a run may be active; [`Error::Table`] and [`Error::Query`] where a table cannot be read.
    pub async fn refuse_active_runs(&mut self, killed: &[String]) -> Result<()> {
        self.refresh().await?;
        let now = Utc::now();
        let active = |run: &RunState| run.may_be_active(now) && !killed.contains(&run.run_id);
        let active: Vec<String> = self
            .run_states()
            .await?
            .into_iter()
            .filter(active)
            .map(|run| format!("{} ({})", run.run_id, run.cohort))
            .collect();
        if active.is_empty() {
            return Ok(());
        }
        Err(Error::Config(format!(
            "run {} may be in progress: it has no end in the table runs, and gave a sign of life within the last day. Try again \
             when it has ended; if it was killed, say so with --killed RUN_ID",
            active.join(", ")
        )))
    }
}
