//! Scheduled runs: the same pipeline at the times of a cron expression.
//!
//! ```text
//! sleep until the next time ─► take the lease of the tables ─► run, or optimize and vacuum ─► give the lease back
//!        ▲                            │ another schedule holds it                               │
//!        └────────────────────────────┴─────────────────────────────────────────────────────────┘
//! ```
//! Times that pass while a job is running are skipped. The caller decides what follows a failed job. Wrong settings are refused
//! before the first job.

use std::num::NonZeroU64;
use std::time::Duration;

use chrono::{DateTime, Local};
use croner::Cron;

use super::config::ScheduleConfig;
use super::pipeline::Pipeline;
use super::prepare::Run;
use super::report::RunReport;
use crate::cohort;
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::store;
use crate::tables::{Lease, Optimized, Table, Tables};

const MIB: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

/// A kind of scheduled work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Screen the pending scans.
    Run,
    /// Merge small files of the tables and delete unreferenced ones.
    Upkeep,
}

/// What a job did.
#[derive(Debug)]
pub enum JobOutcome {
    /// A run ended.
    Ran {
        /// What it did.
        report: Box<RunReport>,
        /// Entries of the cohort that cannot be used, a line for each reason.
        left_out: Vec<String>,
    },
    /// The tables were maintained.
    Maintained(Vec<TableUpkeep>),
    /// Nothing: another schedule is working on these tables.
    Busy,
    /// Nothing to maintain: no run has created the tables yet.
    NoTables,
}

/// How far a job is.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// The tables are this schedule's alone, and the job begins.
    Began(Job),
    /// The scans of a run are known.
    Prepared(&'a Run),
}

/// Upkeep of one table.
#[derive(Debug)]
pub struct TableUpkeep {
    /// The table.
    pub table: Table,
    /// Files that were merged.
    pub optimized: Optimized,
    /// Number of unreferenced files that were deleted.
    pub deleted: usize,
    /// Number of files in the table's folder that are not of this program, and that stay.
    pub foreign: usize,
    /// Number of rows that killed runs left without a result, and that were deleted.
    pub ownerless: usize,
}

/// A pipeline with the times of its jobs.
#[derive(Debug)]
pub struct Schedule {
    pipeline: Pipeline,
    config: ScheduleConfig,
    runs: Cron,
    upkeep: Option<Cron>,
}

impl Schedule {
    /// The schedule in the pipeline's section `[schedule]`.
    ///
    /// # Errors
    /// [`Error::Config`] where the section is missing, a number of the pipeline is out of range, or a cron expression is not
    /// valid or never matches.
    pub fn new(pipeline: Pipeline) -> Result<Self> {
        pipeline.validate()?;
        let Some(config) = pipeline.schedule.clone() else {
            return Err(Error::Config(
                "the pipeline has no times to run at: add a section [schedule] with run = \"0 1 * * *\" (every night at one)"
                    .into(),
            ));
        };
        let parsed = |key: &str, text: &str| {
            text.parse::<Cron>().map_err(|e| {
                Error::Config(format!(
                    "schedule.{key}: `{text}` is not a cron expression ({e}): write minute, hour, day, month and weekday, \
                     as in \"0 1 * * *\""
                ))
            })
        };
        let runs = parsed("run", &config.run)?;
        let upkeep = config.upkeep.as_deref().map(|text| parsed("upkeep", text)).transpose()?;
        for (key, cron) in [("run", Some(&runs)), ("upkeep", upkeep.as_ref())] {
            cron.map_or(Ok(()), |cron| cron.find_next_occurrence(&Local::now(), false).map(drop))
                .map_err(|e| Error::Config(format!("schedule.{key}: no date matches the expression: {e}")))?;
        }
        Ok(Self { pipeline, config, runs, upkeep })
    }

    /// The first job after a time, in the machine's time zone; `None` where no further date matches.
    pub fn next(&self, after: DateTime<Local>) -> Option<(DateTime<Local>, Job)> {
        let time = |cron: &Cron| cron.find_next_occurrence(&after, false).ok();
        let run = time(&self.runs).map(|time| (time, Job::Run));
        let upkeep = self.upkeep.as_ref().and_then(time).map(|time| (time, Job::Upkeep));
        // At the same time the run comes first.
        run.into_iter().chain(upkeep).min_by_key(|(time, _)| *time)
    }

    /// Does a job, unless another schedule is working on the same tables, and reports its steps to `watch`. When `stop`
    /// completes, a run ends early, as [`Run::execute`] says.
    ///
    /// # Errors
    /// As [`Run::prepare`] and [`Run::execute`]; table and storage errors of upkeep.
    pub async fn work(&self, job: Job, stop: impl Future<Output = ()>, watch: impl Fn(Step<'_>)) -> Result<JobOutcome> {
        let location = store::open_or_create(&self.pipeline.tables.url)?;
        let Some(lease) = Lease::take(&location).await? else { return Ok(JobOutcome::Busy) };
        watch(Step::Began(job));
        let outcome = match job {
            Job::Run => self.run(&lease, stop, watch).await,
            Job::Upkeep => self.maintain().await,
        };
        lease.give_back().await;
        outcome
    }

    async fn run(&self, lease: &Lease, stop: impl Future<Output = ()>, watch: impl Fn(Step<'_>)) -> Result<JobOutcome> {
        let run = Run::prepare(self.pipeline.clone()).await?;
        let left_out = cohort::report::faults(run.listing());
        watch(Step::Prepared(&run));
        let executed = run.execute(async {
            tokio::select! {
                () = stop => {}
                () = lease.lost() => {
                    tracing::warn!("another schedule took over these tables: this run ends after the scans in flight");
                }
            }
        });
        executed.await.map(|report| JobOutcome::Ran { report: Box::new(report), left_out })
    }

    async fn maintain(&self) -> Result<JobOutcome> {
        let Some(mut tables) = Tables::open_if_created(&self.pipeline.tables.url).await? else {
            return Ok(JobOutcome::NoTables);
        };
        let lease = Lease::of_maintenance(tables.location()).await?;
        let maintained = self.maintain_all(&mut tables).await;
        // Also after an error: a lease in a store that is only dropped keeps others out for minutes.
        lease.give_back().await;
        maintained.map(JobOutcome::Maintained)
    }

    async fn maintain_all(&self, tables: &mut Tables) -> Result<Vec<TableUpkeep>> {
        let (target, keep) = (self.config.target(), self.config.keep());
        let mut maintained = Vec::new();
        let mut ownerless = tables.remove_orphans().await?;
        for table in tables.present().collect::<Vec<_>>() {
            let optimized = tables.optimize(table, target, Memory::of_process().free / 2).await?;
            let vacuumed = tables.vacuum(table, keep, false).await?;
            let (deleted, foreign) = (vacuumed.deleted.len(), vacuumed.foreign.len());
            let ownerless = ownerless.remove(table.name()).unwrap_or_default();
            maintained.push(TableUpkeep { table, optimized, deleted, foreign, ownerless });
        }
        Ok(maintained)
    }
}

impl ScheduleConfig {
    /// The target size of merged files, in bytes; [`Schedule::new`] has refused 0.
    fn target(&self) -> NonZeroU64 {
        NonZeroU64::new(self.target_mib).unwrap_or(NonZeroU64::MIN).saturating_mul(MIB)
    }

    /// How long upkeep keeps files.
    fn keep(&self) -> Duration {
        Duration::from_secs(self.keep_days.saturating_mul(24 * 3600))
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;

    use super::*;

    fn schedule(text: &str) -> Result<Schedule> {
        Schedule::new(toml::from_str(text).unwrap())
    }

    #[test]
    fn the_next_job_is_the_earliest() {
        let nights = schedule("[schedule]\nrun = '0 1 * * *'\nupkeep = '30 12 * * 0'").unwrap();
        let at = |day, hour| Local.with_ymd_and_hms(2026, 11, day, hour, 0, 0).unwrap();
        assert_eq!(nights.next(at(24, 0)).unwrap(), (at(24, 1), Job::Run));
        assert_eq!(nights.next(at(24, 1)).unwrap(), (at(25, 1), Job::Run));
        // A Sunday.
        assert_eq!(nights.next(at(29, 2)).unwrap(), (at(29, 12) + chrono::TimeDelta::minutes(30), Job::Upkeep));
    }

    #[test]
    fn an_invalid_time_is_refused_with_its_key() {
        let refusal = |text: &str| schedule(text).unwrap_err().to_string();
        assert!(refusal("").contains("[schedule]"));
        assert!(refusal("[schedule]\nrun = 'nightly'").contains("schedule.run"));
        assert!(refusal("[schedule]\nrun = '0 1 * * *'\nupkeep = '99 1 * * *'").contains("schedule.upkeep"));
        for (key, text) in [("run", "run = '0 0 30 2 *'"), ("upkeep", "upkeep = '0 0 31 4 *'")] {
            let never = refusal(&format!("[schedule]\n{text}"));
            assert!(never.contains("no date matches") && never.contains(&format!("schedule.{key}")), "{never}");
        }
    }

    #[test]
    fn upkeep_that_can_never_succeed_is_refused_before_the_first_night() {
        let max = i64::MAX.to_string();
        for (key, value) in [("keep_days", "0"), ("keep_days", &max), ("target_mib", "0"), ("target_mib", &max)] {
            let refused = schedule(&format!("[schedule]\n{key} = {value}")).unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, Error::Config(_)) && text.contains(&format!("schedule.{key}")), "{text}");
        }
    }
}
