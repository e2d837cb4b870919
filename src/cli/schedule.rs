//! `neurosieve schedule`: screens what is new, night after night.

use std::process::ExitCode;
use std::time::Duration;

use chrono::Local;

use super::pipeline::{PipelineArgs, asked_to_stop, monitor};
use super::run::summary;
use super::{STOPPED, write_json};
use crate::error::{Domain, Result};
use crate::flow::{Job, Schedule, ScheduleOutcome};

/// Screen what is new at the times of a pipeline file, until stopped
///
/// The section [schedule] says when: `run` screens, `upkeep` puts small files together and deletes what nothing refers to.
/// Of several schedules on the same tables one works at a time; what a crash leaves behind holds up nobody for longer than
/// five minutes. A run that fails is told, and the next time is waited for. Ctrl-C finishes and commits what is in flight.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve schedule pipelines/nightly.toml --cohort s3://bucket/study --tables s3://bucket/results
  neurosieve schedule pipelines/nightly.toml --cohort ./study --tables ./results --now --metrics 127.0.0.1:9184
  neurosieve schedule pipelines/nightly.toml --set 'schedule.run=\"*/15 * * * *\"' ...

systemd, Kubernetes and Slurm have schedules of their own: docs/operations.md shows them with `neurosieve run`.
Exit codes: 0 stopped between two runs, 1 error, 2 wrong settings, 4 stopped in the middle of a run.")]
pub struct ScheduleArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Run once at the start as well
    #[arg(long)]
    pub now: bool,
}

impl ScheduleArgs {
    /// Works until somebody stops it.
    pub async fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load([])?;
        let tables = pipeline.tables.url.clone();
        let monitor = monitor(&pipeline)?;
        let schedule = Schedule::new(pipeline)?;
        let stopping = asked_to_stop("stopping: what is in flight is finished and committed")?;
        let mut at_once = self.now;
        loop {
            let (time, job) = schedule.next(Local::now())?;
            let job = if std::mem::take(&mut at_once) {
                Job::Run
            } else {
                let what = if job == Job::Run { "run" } else { "upkeep" };
                eprintln!("next {what}: {}", time.format("%Y-%m-%d %H:%M:%S %Z"));
                let wait = (time - Local::now()).to_std().unwrap_or(Duration::ZERO);
                let mut asked = stopping.clone();
                tokio::select! {
                    () = tokio::time::sleep(wait) => job,
                    _ = asked.wait_for(|&asked| asked) => return Ok(ExitCode::SUCCESS),
                }
            };
            match schedule.work(job, stopping.clone(), monitor.as_ref()).await {
                Ok(ScheduleOutcome::Busy) => eprintln!("another schedule is at work on these tables: left out"),
                Ok(ScheduleOutcome::Kept(tables)) => {
                    for (table, optimized, deleted) in tables {
                        let (removed, added) = (optimized.removed, optimized.added);
                        eprintln!("{}: {removed} files became {added}, {deleted} deleted", table.name());
                    }
                }
                Ok(ScheduleOutcome::Ran(report)) => {
                    summary(&report, &tables);
                    write_json(self.pipeline.report.clone(), &report)?;
                    if *stopping.borrow() {
                        return Ok(ExitCode::from(STOPPED));
                    }
                }
                // Waiting for another night would not help.
                Err(error) if error.domain() == Domain::Config => return Err(error),
                Err(error) => eprintln!("error: {error}"),
            }
        }
    }
}
