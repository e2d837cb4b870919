//! Nights: the same pipeline again and again, at the times of a cron expression.
//!
//! ```text
//! sleep until the next time ─► take the lease of the tables ─► run, or optimize and vacuum ─► give it back
//!        ▲                            │ another schedule has it                                 │
//!        └────────────────────────────┴─────────────────────────────────────────────────────────┘
//! ```
//! Times that pass while a job is at work are left out. A run that fails is told, and the next time is waited for; settings
//! that are wrong end the schedule before it begins.

use std::num::NonZeroU64;
use std::time::Duration;

use chrono::{DateTime, Local};
use croner::Cron;
use tokio::sync::watch;

use super::config::ScheduleConfig;
use super::driver::{Report, Run};
use super::monitor::Monitor;
use super::pipeline::Pipeline;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::store;
use crate::tables::{Lease, Optimized, Table, Tables};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Screen what is new.
    Run,
    /// Put small files together and delete what nothing refers to.
    Upkeep,
}

/// What was done.
#[derive(Debug)]
pub enum Outcome {
    /// A run ended.
    Ran(Box<Report>),
    /// Files of each table that were put together, and how many were deleted.
    Kept(Vec<(Table, Optimized, usize)>),
    /// Another schedule is at work on these tables.
    Busy,
}

/// A pipeline with its times.
#[derive(Debug)]
pub struct Schedule {
    pipeline: Pipeline,
    config: ScheduleConfig,
    runs: Cron,
    upkeep: Option<Cron>,
}

impl Schedule {
    /// # Errors
    /// [`Error::Config`] where the pipeline has no times, or some that are none.
    pub fn new(pipeline: Pipeline) -> Result<Self> {
        let Some(config) = pipeline.schedule.clone() else {
            return Err(Error::Config(
                "when is the pipeline to run? Add a section [schedule] with run = \"0 1 * * *\" (every night at one)"
                    .into(),
            ));
        };
        let parsed = |key: &str, text: &str| {
            text.parse::<Cron>().map_err(|e| {
                Error::Config(format!(
                    "schedule.{key}: `{text}` is no cron expression ({e}): write minute, hour, day, month and weekday, as \
                     in \"0 1 * * *\""
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
    /// [`Error::Config`] where none ever comes (the 30th of February).
    pub fn next(&self, after: DateTime<Local>) -> Result<(DateTime<Local>, Job)> {
        let never = |e: croner::errors::CronError| Error::Config(format!("[schedule]: no such time comes: {e}"));
        let run = self.runs.find_next_occurrence(&after, false).map_err(never)?;
        match &self.upkeep {
            None => Ok((run, Job::Run)),
            Some(upkeep) => {
                let upkeep = upkeep.find_next_occurrence(&after, false).map_err(never)?;
                Ok(if upkeep < run { (upkeep, Job::Upkeep) } else { (run, Job::Run) })
            }
        }
    }

    /// Does a job, unless another schedule is at work on the same tables. `stop` turning true ends a run early.
    ///
    /// # Errors
    /// As [`Run::prepare`] and [`Run::execute`]; those of maintenance.
    pub async fn work(&self, job: Job, stop: watch::Receiver<bool>, monitor: Option<&Monitor>) -> Result<Outcome> {
        let location = store::open_or_create(&self.pipeline.tables.url)?;
        let Some(lease) = Lease::take(&location).await? else { return Ok(Outcome::Busy) };
        let outcome = match job {
            Job::Run => self.run(&lease, stop, monitor).await,
            Job::Upkeep => self.keep().await,
        };
        lease.give_back().await;
        outcome
    }

    async fn run(&self, lease: &Lease, mut asked: watch::Receiver<bool>, monitor: Option<&Monitor>) -> Result<Outcome> {
        let run = Run::prepare(self.pipeline.clone()).await?;
        if let Some(monitor) = monitor {
            monitor.watch(run.progress(), run.pending() as u64);
        }
        let (stop, stopping) = watch::channel(false);
        let report = run.execute(stopping);
        tokio::pin!(report);
        let ended = tokio::select! {
            report = &mut report => report,
            _ = asked.wait_for(|&asked| asked) => {
                stop.send_replace(true);
                report.await
            }
            () = lease.lost() => {
                tracing::warn!("another schedule took these tables over: this run finishes what it has begun");
                stop.send_replace(true);
                report.await
            }
        };
        ended.map(|report| Outcome::Ran(Box::new(report)))
    }

    async fn keep(&self) -> Result<Outcome> {
        let ScheduleConfig { target_mib, keep_days, .. } = self.config;
        let target = NonZeroU64::new(target_mib << 20)
            .ok_or_else(|| Error::Config("schedule.target_mib is the size of files: it cannot be 0".into()))?;
        let mut tables = Tables::open(&self.pipeline.tables.url).await?;
        let mut kept = Vec::new();
        for table in tables.present().collect::<Vec<_>>() {
            let optimized = tables.optimize(table, target, Memory::of_process().free / 2).await?;
            let deleted = tables.vacuum(table, Duration::from_secs(keep_days * 24 * 3600), false).await?;
            kept.push((table, optimized, deleted.len()));
        }
        Ok(Outcome::Kept(kept))
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
    fn times_that_are_none_are_told_with_their_key() {
        let said = |text: &str| schedule(text).unwrap_err().to_string();
        assert!(said("").contains("[schedule]"));
        assert!(said("[schedule]\nrun = 'nightly'").contains("schedule.run"));
        assert!(said("[schedule]\nrun = '0 1 * * *'\nupkeep = '99 1 * * *'").contains("schedule.upkeep"));
        let never = schedule("[schedule]\nrun = '0 0 30 2 *'").unwrap().next(Local::now()).unwrap_err();
        assert!(never.to_string().contains("no such time"), "{never}");
    }
}
