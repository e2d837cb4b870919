//! Scheduled runs: the same pipeline at the times of a cron expression.
//!
//! ```text
//! sleep until the next time ─► take the lease of the tables ─► run, or optimize and vacuum ─► give the lease back
//!        ▲                            │ another schedule holds it                               │
//!        └────────────────────────────┴─────────────────────────────────────────────────────────┘
//! ```
//! Times that pass while a job is running are skipped. The caller decides what follows a failed job. A wrong cron expression is
//! refused before the first job.

use std::num::NonZeroU64;
use std::time::Duration;

use chrono::{DateTime, Local};
use croner::Cron;

use super::config::ScheduleConfig;
use super::monitor::Monitor;
use super::pipeline::Pipeline;
use super::prepare::Run;
use super::report::RunReport;
use crate::cohort;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::store;
use crate::tables::{Lease, Optimized, Table, Tables};

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
    /// [`Error::Config`] where the section is missing or a cron expression is not valid.
    pub fn new(pipeline: Pipeline) -> Result<Self> {
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
        Ok(Self { pipeline, config, runs, upkeep })
    }

    /// The first job after a time, in the machine's time zone.
    ///
    /// # Errors
    /// [`Error::Config`] where an expression never matches (the 30th of February).
    pub fn next(&self, after: DateTime<Local>) -> Result<(DateTime<Local>, Job)> {
        let never =
            |e: croner::errors::CronError| Error::Config(format!("[schedule]: no date matches the expression: {e}"));
        let run = self.runs.find_next_occurrence(&after, false).map_err(never)?;
        match &self.upkeep {
            None => Ok((run, Job::Run)),
            Some(upkeep) => {
                let upkeep = upkeep.find_next_occurrence(&after, false).map_err(never)?;
                Ok(if upkeep < run { (upkeep, Job::Upkeep) } else { (run, Job::Run) })
            }
        }
    }

    /// Does a job, unless another schedule is working on the same tables. When `stop` completes, a run ends early, as
    /// [`Run::execute`] says.
    ///
    /// # Errors
    /// As [`Run::prepare`] and [`Run::execute`]; table and storage errors of upkeep.
    pub async fn work(
        &self,
        job: Job,
        stop: impl Future<Output = ()>,
        monitor: Option<&Monitor>,
    ) -> Result<JobOutcome> {
        let location = store::open_or_create(&self.pipeline.tables.url)?;
        let Some(lease) = Lease::take(&location).await? else { return Ok(JobOutcome::Busy) };
        let outcome = match job {
            Job::Run => self.run(&lease, stop, monitor).await,
            Job::Upkeep => self.maintain().await.map(JobOutcome::Maintained),
        };
        lease.give_back().await;
        outcome
    }

    async fn run(
        &self,
        lease: &Lease,
        stop: impl Future<Output = ()>,
        monitor: Option<&Monitor>,
    ) -> Result<JobOutcome> {
        let run = Run::prepare(self.pipeline.clone()).await?;
        let left_out = cohort::report::faults(run.listing());
        if let Some(monitor) = monitor {
            monitor.watch(run.progress(), run.pending() as u64);
        }
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

    async fn maintain(&self) -> Result<Vec<TableUpkeep>> {
        let ScheduleConfig { target_mib, keep_days, .. } = self.config;
        let target = NonZeroU64::new(target_mib << 20).ok_or_else(|| {
            Error::Config("schedule.target_mib is 0: give the size of merged files, 1 MiB or more".into())
        })?;
        let mut tables = Tables::open(&self.pipeline.tables.url).await?;
        let lease = Lease::of_maintenance(tables.location()).await?;
        let mut maintained = Vec::new();
        for table in tables.present().collect::<Vec<_>>() {
            let optimized = tables.optimize(table, target, Memory::of_process().free / 2).await?;
            let vacuumed = tables.vacuum(table, Duration::from_secs(keep_days * 24 * 3600), false).await?;
            let (deleted, foreign) = (vacuumed.deleted.len(), vacuumed.foreign.len());
            maintained.push(TableUpkeep { table, optimized, deleted, foreign });
        }
        lease.give_back().await;
        Ok(maintained)
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
        let never = schedule("[schedule]\nrun = '0 0 30 2 *'").unwrap().next(Local::now()).unwrap_err();
        assert!(never.to_string().contains("no date matches"), "{never}");
    }
}
