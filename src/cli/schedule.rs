//! `neurosieve schedule`: screens new scans at the times given in a pipeline file.

use std::process::ExitCode;
use std::time::Duration;

use chrono::Local;
use futures::FutureExt as _;

use super::pipeline::{PipelineArgs, asked_to_stop, monitor};
use super::run::summary;
use super::{STOPPED, outside_tables, write_json};
use crate::error::{Domain, Error, Result};
use crate::flow::{Job, JobOutcome, Schedule, TableUpkeep};
use crate::terminal::errln;

/// Screen new scans at the times given in a pipeline file, until stopped
///
/// The section [schedule] has two cron expressions: `run` for screening, and `upkeep` for merging small files and deleting
/// unreferenced ones. Several schedules may share the same tables: one works at a time, and if it crashes, another one can
/// take over within five minutes. If a run fails or finds no scan, the schedule prints the error and waits for the next time. Ctrl-C finishes
/// and commits the scans in flight.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve schedule pipelines/nightly.toml --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve schedule pipelines/nightly.toml --cohort ./study --tables ./results --now --metrics 127.0.0.1:9184
  neurosieve schedule pipelines/nightly.toml --set 'schedule.run=\"*/15 * * * *\"' ...

docs/operations.md shows how systemd, Kubernetes and Slurm start `neurosieve run` instead.
Exit codes: 0 stopped between two runs, 1 error, 2 wrong settings, 4 stopped during a run.")]
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
    /// Wrong settings, and a report that cannot be written. Other errors of a run are only printed.
    pub async fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load([])?;
        let tables = pipeline.tables.url.clone();
        self.pipeline.report.as_deref().map_or(Ok(()), |path| outside_tables(path, &tables))?;
        let monitor = monitor(&pipeline)?;
        let schedule = Schedule::new(pipeline)?;
        let stop = asked_to_stop("stopping: finishing and committing the scans in flight")?;
        let mut run_now = self.now;
        loop {
            let (time, job) = schedule.next(Local::now())?;
            let job = if std::mem::take(&mut run_now) {
                Job::Run
            } else {
                let what = if job == Job::Run { "run" } else { "upkeep" };
                errln!("next {what}: {}", time.format("%Y-%m-%d %H:%M:%S %Z"));
                let wait = (time - Local::now()).to_std().unwrap_or(Duration::ZERO);
                tokio::select! {
                    () = tokio::time::sleep(wait) => job,
                    () = stop.clone() => return Ok(ExitCode::SUCCESS),
                }
            };
            match schedule.work(job, stop.clone(), monitor.as_ref()).await {
                Ok(JobOutcome::Busy) => errln!("another schedule is active on these tables; this time is skipped"),
                Ok(JobOutcome::Maintained(tables)) => {
                    for TableUpkeep { table, optimized, deleted, foreign } in tables {
                        let (removed, added) = (optimized.removed, optimized.added);
                        let name = table.name();
                        errln!("{name}: {removed} files became {added}, {deleted} deleted");
                        if foreign > 0 {
                            errln!("{name}: {foreign} files stay, because they are not of this program");
                        }
                    }
                }
                Ok(JobOutcome::Ran { report, left_out }) => {
                    left_out.iter().for_each(|line| errln!("{line}"));
                    summary(&report, &tables);
                    write_json(self.pipeline.report.clone(), &report)?;
                    if stop.clone().now_or_never().is_some() {
                        return Ok(ExitCode::from(STOPPED));
                    }
                }
                // Scans may have arrived by the next time.
                Err(error @ Error::NothingSelected(_)) => errln!("{error}"),
                // The same settings would fail again.
                Err(error) if error.domain() == Domain::Config => return Err(error),
                Err(error) => errln!("error: {}", error.text()),
            }
        }
    }
}
