//! `neurosieve schedule`: screens new scans at the times given in a pipeline file.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Local, SecondsFormat, TimeDelta, Utc};
use futures::FutureExt as _;
use futures::future::Shared;
use tokio::task::AbortHandle;

use super::STOPPED;
use super::on_cluster::OnCluster;
use super::pipeline::{PipelineArgs, asked_to_stop, monitor};
use super::report_file::{ReportFile, json};
use super::run::{selection, show, summary};
use crate::error::{Error, Result};
use crate::flow::{
    Job, JobOutcome, Monitor, Night, Notifier, Pipeline, Run, RunReport, Schedule, Since, Step, TableUpkeep,
};
use crate::machine::return_free_memory;
use crate::terminal::{errln, log_lines};

/// How often the clock is read while nothing is due, so that a machine that slept, or whose clock was set, is noticed.
const CHECKED_EVERY: Duration = Duration::from_secs(10);

/// How long the end of the program waits for reports that are on their way.
const DELIVERS_WITHIN: Duration = Duration::from_secs(5);

/// Screen new scans at the times given in a pipeline file, until stopped
///
/// The section [schedule] has two cron expressions: `run` for screening, and `upkeep` for merging small files and deleting
/// unreferenced ones. Several schedules may share the same tables. Of two that screen the same cohort, one waits until the
/// other has ended; after a crash it waits at most three minutes. A run that was missed while no schedule ran is made up for at
/// the start (`catch_up`), and one that was due during another job, after it.
///
/// Settings, addresses, bundle, device and report file are checked at the start. After that only Ctrl-C or SIGTERM ends the
/// schedule: it prints the error of a failed run or upkeep and waits for the next time. Ctrl-C finishes and commits the scans in
/// flight. Every line begins with the time, UTC, and the level. `notify` is an address that gets the report of each run.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve schedule pipelines/nightly.toml --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve schedule pipelines/nightly.toml --cohort ./study --tables ./results --now --metrics 127.0.0.1:9184
  neurosieve schedule pipelines/nightly.toml --set 'schedule.run=\"*/15 * * * *\"' ...

docs/operations.md shows how systemd, Kubernetes and Slurm start `neurosieve run` instead.
Exit codes: 0 stopped while no scan was being screened, 1 error at the start, 2 wrong settings, 4 stopped during a run.")]
pub struct ScheduleArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    #[command(flatten)]
    pub on: OnCluster,
    /// Also run once at the start
    #[arg(long)]
    pub now: bool,
}

impl ScheduleArgs {
    /// Runs the schedule until the program is asked to stop.
    ///
    /// # Errors
    /// What is wrong at the start: as [`Run::check`] and [`Schedule::new`], and a report that cannot be written. Later errors are
    /// only printed.
    pub async fn run(self) -> Result<ExitCode> {
        log_lines(true);
        let working = async |pipeline: Pipeline, report: &ReportFile| {
            let tables = pipeline.tables.url.clone();
            self.on.warn_of_unused(&pipeline.run);
            let engine = self.on.engine().await?;
            Run::check(&pipeline, engine.clone())?;
            let schedule = Schedule::new(pipeline.clone())?.on(engine);
            let notifier = Notifier::new(pipeline.schedule.as_ref().and_then(|schedule| schedule.notify.as_deref()))?;
            let monitor = monitor(&pipeline)?;
            let nights = Nights {
                schedule,
                tables,
                monitor,
                notifier,
                report,
                due: Mutex::default(),
                showing: Mutex::default(),
            };
            let stop = asked_to_stop("stopping: committing what is finished, and finishing the scans in flight")?;
            let code = tokio::select! {
                code = nights.work(self.now, stop) => code,
                never = nights.live() => match never {},
            };
            if let Some(notifier) = &nights.notifier {
                notifier.finish(DELIVERS_WITHIN).await;
            }
            code
        };
        self.pipeline.reported([], working).await
    }
}

/// How often a schedule says how far a run is.
const SHOWN_EVERY: Duration = Duration::from_secs(60);

/// A running schedule, with the outputs that report on it.
struct Nights<'a> {
    schedule: Schedule,
    tables: String,
    monitor: Option<Monitor>,
    notifier: Option<Notifier>,
    report: &'a ReportFile,
    /// When the next run is due.
    due: Mutex<Option<DateTime<Utc>>>,
    /// The task that prints the progress of a run.
    showing: Mutex<Option<AbortHandle>>,
}

impl Nights<'_> {
    /// Runs one job after the other until `stop` completes. A failed job does not end the schedule.
    async fn work(&self, now: bool, stop: Shared<impl Future<Output = ()>>) -> Result<ExitCode> {
        let mut run_now = now;
        let mut since = tokio::select! {
            biased;
            () = stop.clone() => return Ok(ExitCode::SUCCESS),
            since = self.start(now) => since,
        };
        loop {
            let (due, job) = if std::mem::take(&mut run_now) {
                (Local::now(), Job::Run)
            } else {
                tokio::select! {
                    biased;
                    () = stop.clone() => return Ok(ExitCode::SUCCESS),
                    due = self.next(&since) => due,
                }
            };
            since.began(job, due, Local::now());
            match self.try_to(job, &since, stop.clone()).await {
                Ok(JobOutcome::Stopped) => return Ok(ExitCode::SUCCESS),
                Ok(outcome) => {
                    let ran = matches!(outcome, JobOutcome::Ran { .. });
                    self.print(outcome).await;
                    if ran && stop.clone().now_or_never().is_some() {
                        return Ok(ExitCode::from(STOPPED));
                    }
                }
                Err(error) => {
                    self.failed(job, &error).await;
                    if job == Job::Run && stop.clone().now_or_never().is_some() {
                        return Ok(ExitCode::from(STOPPED));
                    }
                }
            }
            return_free_memory();
        }
    }

    /// From when on jobs are due: since the last run of the cohort, so that a missed one is made up for.
    async fn start(&self, run_now: bool) -> Since {
        let (now, catches_up) = (Local::now(), self.schedule.catches_up() && !run_now);
        let (last, success) = match self.schedule.last_runs().await {
            Ok(times) => times,
            Err(error) => {
                errln!("warning: cannot read when this cohort was last screened: {}", error.text());
                // The last time that a run was due counts as missed.
                let due = catches_up.then(|| self.schedule.last_due(now)).flatten();
                return Since::start(now, due.map(|due| (due - TimeDelta::seconds(1)).with_timezone(&Utc)));
            }
        };
        if let (Some(monitor), Some(time)) = (&self.monitor, success) {
            monitor.succeeded_before(time);
        }
        let since = Since::start(now, last.filter(|_| catches_up));
        if let Some(missed) = self.schedule.next_run(&since).filter(|due| *due <= now) {
            errln!("no run has ended since {}, when one was due: running now", text(missed));
        }
        since
    }

    /// Does a job. A panic in it must not end the nights after it.
    async fn try_to(&self, job: Job, since: &Since, stop: Shared<impl Future<Output = ()>>) -> Result<JobOutcome> {
        let working = AssertUnwindSafe(self.schedule.work(job, stop, |step| self.watch(step, since)));
        let outcome = working.catch_unwind().await;
        if let Some(showing) = self.showing.lock().unwrap_or_else(PoisonError::into_inner).take() {
            showing.abort();
        }
        outcome.unwrap_or_else(|_| Err(Error::Bug("a job panicked".into())))
    }

    /// Waits until a job is due.
    async fn next(&self, since: &Since) -> (DateTime<Local>, Job) {
        self.is_due(self.schedule.next_run(since));
        let Some((time, job)) = self.schedule.next(since) else {
            errln!("no further date matches [schedule]");
            return std::future::pending().await;
        };
        if time > Local::now() {
            errln!("next {}: {}", if job == Job::Run { "run" } else { "upkeep" }, text(time));
        }
        while let Ok(left) = (time - Local::now()).to_std() {
            tokio::time::sleep(left.min(CHECKED_EVERY)).await;
        }
        (time, job)
    }

    /// Tells the monitor when the next run is due, also while it waits for its lease.
    fn is_due(&self, next_run: Option<DateTime<Local>>) {
        let due = next_run.map(|time| time.with_timezone(&Utc));
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
        if let Some(monitor) = &self.monitor {
            monitor.alive(due);
        }
    }

    /// Gives the monitor a sign of life every ten seconds. It is part of the loop, and stands still where that does.
    async fn live(&self) -> Infallible {
        loop {
            if let Some(monitor) = &self.monitor {
                monitor.alive(*self.due.lock().unwrap_or_else(PoisonError::into_inner));
            }
            tokio::time::sleep(CHECKED_EVERY).await;
        }
    }

    fn watch(&self, step: Step<'_>, since: &Since) {
        match step {
            Step::Waiting => errln!("another schedule is screening this cohort: waiting until it has ended"),
            Step::Began(Job::Run) => {
                self.is_due(self.schedule.next_run(since));
                self.report.began();
            }
            Step::Began(Job::Upkeep) => {}
            Step::Prepared(run) => {
                self.report.prepared(run);
                selection(run);
                let showing = tokio::spawn(show(run.progress(), run.pending() as u64, SHOWN_EVERY));
                *self.showing.lock().unwrap_or_else(PoisonError::into_inner) = Some(showing.abort_handle());
                if let Some(monitor) = &self.monitor {
                    monitor.watch(run.progress(), run.pending() as u64);
                }
            }
        }
    }

    /// Prints the outcome of a job, and writes and sends the report of a run.
    async fn print(&self, outcome: JobOutcome) {
        match outcome {
            JobOutcome::Stopped => {}
            JobOutcome::Busy => errln!("another process is maintaining these tables: this upkeep is left out"),
            JobOutcome::NoTables => errln!("upkeep is skipped: there are no tables yet, the first run creates them"),
            JobOutcome::Maintained(tables) => {
                for TableUpkeep { table, optimized, deleted, foreign, ownerless } in tables {
                    let (removed, added) = (optimized.removed, optimized.added);
                    let name = table.name();
                    errln!("{name}: {removed} files became {added}, {deleted} deleted");
                    if ownerless > 0 {
                        errln!("{name}: {ownerless} rows without a result deleted");
                    }
                    if foreign > 0 {
                        errln!("{name}: {foreign} files stay, because they are not of this program");
                    }
                }
            }
            JobOutcome::Ran { report } => {
                summary(&report, &self.tables);
                if let Err(error) = self.report.ended(&report) {
                    errln!("error: {}", error.text());
                }
                self.tell(Night::of(&report), report.for_others(None)).await;
            }
        }
    }

    /// Prints why a job failed, and writes and sends the report of a run.
    async fn failed(&self, job: Job, error: &Error) {
        let level = if matches!(error, Error::NothingSelected(_)) { "warning" } else { "error" };
        errln!("{level}: {}", error.text());
        if job == Job::Run {
            let report = self.report.failed(error);
            self.tell(Night::failed(error), report.for_others(Some(error))).await;
        }
    }

    /// Tells the monitor and the webhook how a run ended.
    async fn tell(&self, night: Night, report: RunReport) {
        if let Some(monitor) = &self.monitor {
            monitor.ended(night);
        }
        if let Some(notifier) = &self.notifier {
            notifier.send(json(&report)).await;
        }
    }
}

/// A time in the machine's time zone.
fn text(time: DateTime<Local>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, false)
}
