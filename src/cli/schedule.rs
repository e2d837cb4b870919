//! `neurosieve schedule`: screens new scans at the times given in a pipeline file.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Duration;

use chrono::{Local, SecondsFormat};
use futures::FutureExt as _;
use futures::future::Shared;

use super::STOPPED;
use super::pipeline::{PipelineArgs, asked_to_stop, monitor};
use super::report_file::ReportFile;
use super::run::summary;
use crate::error::{Error, Result};
use crate::flow::{Job, JobOutcome, Monitor, Pipeline, Run, Schedule, Step, TableUpkeep};
use crate::terminal::{errln, stamp_lines};

/// Screen new scans at the times given in a pipeline file, until stopped
///
/// The section [schedule] has two cron expressions: `run` for screening, and `upkeep` for merging small files and deleting
/// unreferenced ones. Several schedules may share the same tables: one works at a time, and if it crashes, another one can
/// take over within five minutes.
///
/// Settings, addresses, bundle, device and report file are checked at the start. After that only Ctrl-C or SIGTERM ends the
/// schedule: it prints the error of a failed run or upkeep and waits for the next time. Ctrl-C finishes and commits the scans in
/// flight. Every line begins with the time, UTC.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve schedule pipelines/nightly.toml --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve schedule pipelines/nightly.toml --cohort ./study --tables ./results --now --metrics 127.0.0.1:9184
  neurosieve schedule pipelines/nightly.toml --set 'schedule.run=\"*/15 * * * *\"' ...

docs/operations.md shows how systemd, Kubernetes and Slurm start `neurosieve run` instead.
Exit codes: 0 stopped between two runs, 1 error at the start, 2 wrong settings, 4 stopped during a run.")]
pub struct ScheduleArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
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
        stamp_lines();
        let working = async |pipeline: Pipeline, report: &ReportFile| {
            let tables = pipeline.tables.url.clone();
            Run::check(&pipeline)?;
            let schedule = Schedule::new(pipeline.clone())?;
            let monitor = monitor(&pipeline)?;
            let nights = Nights { schedule, tables, monitor, report };
            nights.work(self.now, asked_to_stop("stopping: finishing and committing the scans in flight")?).await
        };
        self.pipeline.reported([], working).await
    }
}

/// A running schedule, with the outputs that report on it.
struct Nights<'a> {
    schedule: Schedule,
    tables: String,
    monitor: Option<Monitor>,
    report: &'a ReportFile,
}

impl Nights<'_> {
    /// Runs one job after the other until `stop` completes. A failed job does not end the schedule.
    async fn work(&self, now: bool, stop: Shared<impl Future<Output = ()>>) -> Result<ExitCode> {
        let mut run_now = now;
        loop {
            let job = if std::mem::take(&mut run_now) {
                Job::Run
            } else {
                tokio::select! {
                    biased;
                    () = stop.clone() => return Ok(ExitCode::SUCCESS),
                    job = self.next() => job,
                }
            };
            // A panic in a job must not end the nights after it.
            let working = AssertUnwindSafe(self.schedule.work(job, stop.clone(), |step| self.watch(step)));
            let outcome = working.catch_unwind().await.unwrap_or_else(|_| Err(Error::Bug("a job panicked".into())));
            let ran = matches!(outcome, Ok(JobOutcome::Ran { .. }));
            if let Err(error) = outcome.and_then(|outcome| self.print(outcome)) {
                let what = if matches!(error, Error::NothingSelected(_)) { "" } else { "error: " };
                errln!("{what}{}", error.text());
                if job == Job::Run && !ran {
                    self.report.failed(&error);
                }
            }
            if ran && stop.clone().now_or_never().is_some() {
                return Ok(ExitCode::from(STOPPED));
            }
        }
    }

    /// Waits for the next job.
    async fn next(&self) -> Job {
        let Some((time, job)) = self.schedule.next(Local::now()) else {
            errln!("no further date matches [schedule]");
            return std::future::pending().await;
        };
        let what = if job == Job::Run { "run" } else { "upkeep" };
        errln!("next {what}: {}", time.to_rfc3339_opts(SecondsFormat::Secs, false));
        tokio::time::sleep((time - Local::now()).to_std().unwrap_or(Duration::ZERO)).await;
        job
    }

    fn watch(&self, step: Step<'_>) {
        match step {
            Step::Began(Job::Run) => self.report.began(),
            Step::Began(Job::Upkeep) => {}
            Step::Prepared(run) => {
                self.report.prepared(run);
                if let Some(monitor) = &self.monitor {
                    monitor.watch(run.progress(), run.pending() as u64);
                }
            }
        }
    }

    /// Prints the outcome of a job, and writes the report of a run.
    fn print(&self, outcome: JobOutcome) -> Result<()> {
        match outcome {
            JobOutcome::Busy => errln!("another schedule is active on these tables; this time is skipped"),
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
            JobOutcome::Ran { report, left_out } => {
                left_out.iter().for_each(|line| errln!("{line}"));
                summary(&report, &self.tables);
                self.report.ended(&report)?;
            }
        }
        Ok(())
    }
}
