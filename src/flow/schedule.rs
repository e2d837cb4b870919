//! Scheduled runs: the same pipeline at the times of a cron expression.
//!
//! ```text
//! sleep until the next time ─► wait for the lease of the cohort      ─► run                 ─► give the lease back
//!        ▲                 └─► take the lease of maintenance, if free ─► optimize and vacuum ─► give the lease back
//!        └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! No night is lost: a time that passes while a job is running or waiting is made up for once it has ended, and one that
//! passed while no schedule was running, at the start. The caller decides what follows a failed job. Wrong settings are
//! refused before the first job.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Local, Utc};
use croner::Cron;
use futures::FutureExt as _;

use super::bundles;
use super::config::ScheduleConfig;
use super::engine::Engine;
use super::journal::{delete_journals, delete_older};
use super::mark;
use super::pipeline::Pipeline;
use super::prepare::{Root, Run};
use super::report::RunReport;
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::store::{self, with_patience};
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
    },
    /// The tables were maintained.
    Maintained(Vec<TableUpkeep>),
    /// Nothing: another process is maintaining these tables.
    Busy,
    /// Nothing: `stop` completed while the job waited for its lease.
    Stopped,
    /// Nothing to maintain: no run has created the tables yet.
    NoTables,
}

/// How far a job is.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// Another schedule is screening this cohort; the job waits until it has ended.
    Waiting,
    /// The cohort or the tables are this schedule's alone, and the job begins.
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
    engine: Option<Arc<dyn Engine>>,
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
        Ok(Self { pipeline, config, runs, upkeep, engine: None })
    }

    /// The same schedule, with an engine that screens in place of this process.
    #[must_use]
    pub fn on(self, engine: Option<Arc<dyn Engine>>) -> Self {
        Self { engine, ..self }
    }

    /// The first job that is due, in the machine's time zone; `None` where no further date matches. The times in `since` are
    /// those from which on nothing was done yet, so the job may be due already.
    pub fn next(&self, since: &Since) -> Option<(DateTime<Local>, Job)> {
        let upkeep =
            self.upkeep.as_ref().and_then(|cron| time_after(cron, since.upkeep)).map(|time| (time, Job::Upkeep));
        // At the same time the run comes first.
        self.next_run(since).map(|time| (time, Job::Run)).into_iter().chain(upkeep).min_by_key(|(time, _)| *time)
    }

    /// When the next run is due.
    pub fn next_run(&self, since: &Since) -> Option<DateTime<Local>> {
        time_after(&self.runs, since.run)
    }

    /// When a run was last due before a time.
    pub fn last_due(&self, before: DateTime<Local>) -> Option<DateTime<Local>> {
        self.runs.find_previous_occurrence(&before, false).ok()
    }

    /// Whether the pipeline asks for missed runs to be made up for at the start.
    pub fn catches_up(&self) -> bool {
        self.config.catch_up
    }

    /// When the last run of this cohort began that the tables record and that did its work, and when the last that succeeded.
    ///
    /// # Errors
    /// Where the tables cannot be read.
    pub async fn last_runs(&self) -> Result<(Option<DateTime<Utc>>, Option<DateTime<Utc>>)> {
        let Some(tables) = Tables::open_if_created(&self.pipeline.tables.url).await? else { return Ok((None, None)) };
        let cohort = Root::of(&store::open(&self.pipeline.cohort.url)?, &self.pipeline.cohort)?.id();
        let shard = self.pipeline.run.shard.map(|shard| shard.to_string());
        let last = async |success| tables.last_run(&cohort, shard.as_deref(), success).await;
        Ok((last(false).await?, last(true).await?))
    }

    /// Does a job and reports its steps to `watch`. A run waits while another schedule screens the same cohort; upkeep is
    /// left out while another process maintains the tables. When `stop` completes, the waiting ends at once, and a run ends
    /// early, as [`Run::execute`] says.
    ///
    /// # Errors
    /// As [`Run::prepare`] and [`Run::execute`]; table and storage errors of upkeep.
    pub async fn work(
        &self,
        job: Job,
        stop: impl Future<Output = ()> + Clone,
        watch: impl Fn(Step<'_>),
    ) -> Result<JobOutcome> {
        if job == Job::Upkeep {
            watch(Step::Began(job));
            return self.maintain(stop).await;
        }
        let location = store::open_or_create(&self.pipeline.tables.url)?;
        let (cohort, longest_outage) = (self.lease_name()?, self.longest_outage());
        let lease = tokio::select! {
            biased;
            lease = Lease::wait(&location, &cohort, longest_outage, || watch(Step::Waiting)) => lease?,
            () = stop.clone() => return Ok(JobOutcome::Stopped),
        };
        watch(Step::Began(job));
        let outcome = self.run(&lease, stop, watch).await;
        lease.give_back().await;
        outcome
    }

    /// How long an outage of a store is waited for, so that it costs no night.
    fn longest_outage(&self) -> Duration {
        Duration::from_secs(self.pipeline.run.outage_s)
    }

    /// What identifies the cohort, or its shard that this schedule screens.
    fn lease_name(&self) -> Result<String> {
        let cohort = store::open(&self.pipeline.cohort.url)?.root_id();
        let shard = self.pipeline.run.shard.map(|shard| shard.to_string().replace('/', "-of-"));
        Ok(shard.map_or(cohort.clone(), |shard| format!("{cohort}-{shard}")))
    }

    async fn run(
        &self,
        lease: &Lease,
        stop: impl Future<Output = ()> + Clone,
        watch: impl Fn(Step<'_>),
    ) -> Result<JobOutcome> {
        let longest_outage = self.longest_outage();
        let run = tokio::select! {
            biased;
            run = Run::prepare_with_patience(self.pipeline.clone(), self.engine.clone(), longest_outage) => run?,
            () = stop.clone() => return Ok(JobOutcome::Stopped),
        };
        watch(Step::Prepared(&run));
        let executed = run.execute(async {
            tokio::select! {
                () = stop => {}
                () = lease.lost() => {
                    tracing::warn!("another schedule took over this cohort: this run ends after the scans in flight");
                }
            }
        });
        executed.await.map(|report| JobOutcome::Ran { report: Box::new(report) })
    }

    async fn maintain(&self, stop: impl Future<Output = ()> + Clone) -> Result<JobOutcome> {
        let Some(tables) = Tables::open_if_created(&self.pipeline.tables.url).await? else {
            return Ok(JobOutcome::NoTables);
        };
        let Some(lease) = Lease::of_maintenance_if_free(tables.location()).await? else { return Ok(JobOutcome::Busy) };
        // Each attempt reads the tables anew, and does what the ones before it have left.
        let attempt = async || {
            let Some(mut tables) = Tables::open_if_created(&self.pipeline.tables.url).await? else {
                return Ok(Vec::new());
            };
            self.maintain_all(&mut tables, stop.clone()).await
        };
        // A rewrite that is not committed may be dropped at any moment.
        let out_of_time = async {
            stop.clone().await;
            tokio::time::sleep(Duration::from_secs(self.pipeline.run.stop_s)).await;
        };
        let outcome = tokio::select! {
            biased;
            maintained = with_patience(self.longest_outage(), attempt) => maintained.map(JobOutcome::Maintained),
            () = out_of_time => Ok(JobOutcome::Stopped),
        };
        // Also after an error: a lease in a store that is only dropped keeps others out for minutes.
        lease.give_back().await;
        outcome
    }

    /// Maintains one table after the other until `stop` completes.
    async fn maintain_all(
        &self,
        tables: &mut Tables,
        stop: impl Future<Output = ()> + Clone,
    ) -> Result<Vec<TableUpkeep>> {
        let (target, keep) = (self.config.target(), self.config.keep());
        let mut maintained = Vec::new();
        let mut ownerless = tables.remove_orphans().await?;
        delete_journals(tables.location(), Utc::now() - keep).await?;
        for folder in [mark::FOLDER, bundles::FOLDER] {
            delete_older(tables.location(), folder, Utc::now() - keep).await?;
        }
        for table in tables.present().collect::<Vec<_>>() {
            if stop.clone().now_or_never().is_some() {
                break;
            }
            let optimized = tables.optimize(table, target, Memory::of_process().free / 2).await?;
            let vacuumed = tables.vacuum(table, keep, false).await?;
            let (deleted, foreign) = (vacuumed.deleted.len(), vacuumed.foreign.len());
            let ownerless = ownerless.remove(table.name()).unwrap_or_default();
            maintained.push(TableUpkeep { table, optimized, deleted, foreign, ownerless });
        }
        Ok(maintained)
    }
}

/// From when on no job of each kind has begun.
#[derive(Debug, Clone, Copy)]
pub struct Since {
    run: DateTime<Local>,
    upkeep: DateTime<Local>,
}

impl Since {
    /// A schedule that starts, with the last run before it.
    pub fn start(now: DateTime<Local>, last_run: Option<DateTime<Utc>>) -> Self {
        Self { run: last_run.map_or(now, |time| time.with_timezone(&Local).min(now)), upkeep: now }
    }

    /// A job begins that was due at `due`. All its earlier times are done with it.
    pub fn began(&mut self, job: Job, due: DateTime<Local>, now: DateTime<Local>) {
        let since = match job {
            Job::Run => &mut self.run,
            Job::Upkeep => &mut self.upkeep,
        };
        // A clock that was put back must not make the same time due twice.
        *since = due.max(now);
    }
}

fn time_after(cron: &Cron, since: DateTime<Local>) -> Option<DateTime<Local>> {
    cron.find_next_occurrence(&since, false).ok()
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

    fn at(day: u32, hour: u32) -> DateTime<Local> {
        Local.with_ymd_and_hms(2026, 11, day, hour, 0, 0).unwrap()
    }

    #[test]
    fn the_next_job_is_the_earliest_and_a_time_that_passed_during_another_job_is_due() {
        let nights = schedule("[schedule]\nrun = '0 1 * * *'\nupkeep = '0 12 * * 0'").unwrap();
        let mut since = Since::start(at(28, 0), None);
        assert_eq!(nights.next(&since).unwrap(), (at(28, 1), Job::Run));
        // This run ends on Sunday at 20 only. The Sunday's run and upkeep are made up for, each once.
        since.began(Job::Run, at(28, 1), at(28, 1));
        assert_eq!(nights.next(&since).unwrap(), (at(29, 1), Job::Run));
        since.began(Job::Run, at(29, 1), at(29, 20));
        assert_eq!(nights.next(&since).unwrap(), (at(29, 12), Job::Upkeep));
        since.began(Job::Upkeep, at(29, 12), at(29, 21));
        assert_eq!(nights.next(&since).unwrap(), (at(30, 1), Job::Run));
        // The clock was put back.
        since.began(Job::Run, at(30, 1), at(30, 0));
        assert!(nights.next(&since).unwrap().0 > at(30, 1));
    }

    #[test]
    fn a_night_that_was_missed_while_no_schedule_ran_is_due_at_the_start() {
        let nights = schedule("[schedule]\nrun = '0 1 * * *'").unwrap();
        let due = |last: Option<DateTime<Local>>| {
            nights.next(&Since::start(at(25, 9), last.map(|time| time.with_timezone(&Utc)))).unwrap().0
        };
        assert_eq!(due(Some(at(25, 2))), at(26, 1));
        assert_eq!(due(Some(at(20, 2))), at(21, 1));
        assert_eq!(due(None), at(26, 1));
        assert_eq!(due(Some(at(27, 2))), at(26, 1), "a clock of another machine is ahead");
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
