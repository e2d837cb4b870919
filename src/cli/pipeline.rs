//! Options and helpers of `neurosieve run` and `neurosieve schedule`: the pipeline file with its overrides, the signals that
//! stop a run, and the metrics endpoint.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::STOPPED;
use super::report_file::ReportFile;
use crate::config;
use crate::error::{Error, Result};
use crate::flow::{Monitor, Pipeline};
use crate::machine;
use crate::terminal::errln;

/// The options of a command with a pipeline file.
#[derive(Debug, clap::Args)]
pub struct PipelineArgs {
    /// The pipeline file (TOML); ready ones are in pipelines/
    pub pipeline: PathBuf,
    /// Where the scans are: s3://, gs://, az://, http(s)://, file:// or a folder [pipeline: cohort.url]
    #[arg(long, value_name = "URL")]
    pub cohort: Option<String>,
    /// Where the tables are; created if missing [pipeline: tables.url]
    #[arg(long, value_name = "URL")]
    pub tables: Option<String>,
    /// Serve Prometheus metrics, /healthz and /livez at this address while the program runs; port 0: any free port [pipeline:
    /// run.metrics]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Write the report of the latest run to this file, as JSON: when it begins, and when it ended or failed
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Override a key of the pipeline file; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl PipelineArgs {
    /// The pipeline with these options and `more` overrides.
    ///
    /// # Errors
    /// As [`config::load`].
    pub fn load(&self, more: impl IntoIterator<Item = String>) -> Result<Pipeline> {
        let mut overrides = self.set.clone();
        overrides.extend(self.cohort.as_ref().map(|url| quoted("cohort.url", url)));
        overrides.extend(self.tables.as_ref().map(|url| quoted("tables.url", url)));
        overrides.extend(self.metrics.map(|address| quoted("run.metrics", &address.to_string())));
        overrides.extend(more);
        config::load(Some(&self.pipeline), &overrides)
    }

    /// Does `work` with the pipeline and the file of `--report`, which also gets the error of a failure.
    ///
    /// # Errors
    /// As [`PipelineArgs::load`] and [`ReportFile::open`]; those of `work`.
    pub async fn reported(
        &self,
        more: impl IntoIterator<Item = String>,
        work: impl AsyncFnOnce(Pipeline, &ReportFile) -> Result<ExitCode>,
    ) -> Result<ExitCode> {
        let pipeline = self.load(more);
        let named = self.tables.as_deref().unwrap_or_default();
        let tables = pipeline.as_ref().map_or(named, |pipeline| pipeline.tables.url.as_str());
        let report = ReportFile::open(self.report.as_deref(), tables)?;
        let outcome = match pipeline {
            Ok(pipeline) => work(pipeline, &report).await,
            Err(error) => Err(error),
        };
        outcome.inspect_err(|error| drop(report.failed(error)))
    }
}

/// An override that sets `key` to a string.
pub fn quoted(key: &str, value: &str) -> String {
    format!("{key}={}", toml::Value::String(value.to_owned()))
}

/// Serves Prometheus metrics if the pipeline sets `run.metrics`, and prints the address.
///
/// # Errors
/// As [`Monitor::serve`].
pub fn monitor(pipeline: &Pipeline) -> Result<Option<Monitor>> {
    let monitor = pipeline.run.metrics.map(Monitor::serve).transpose()?;
    if let Some(monitor) = &monitor {
        errln!("metrics at http://{}/metrics", monitor.address());
    }
    Ok(monitor)
}

/// Completes at the first Ctrl-C or SIGTERM and prints `message`. The second one ends the program at once.
///
/// # Errors
/// [`Error::Io`] where the program cannot listen for signals.
pub fn asked_to_stop(message: &'static str) -> Result<Shared<impl Future<Output = ()>>> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("cannot listen for signals", e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    // A separate task, so that the message is printed at once.
    let (first, signalled) = oneshot::channel();
    tokio::spawn(async move {
        let mut signal = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        signal().await;
        errln!("{message}; a second Ctrl-C or SIGTERM ends at once");
        // There is no receiver where the program is ending anyway.
        let _ = first.send(());
        signal().await;
        errln!("ended at once; the next run screens what was not committed");
        machine::end_at_once(STOPPED);
    });
    Ok(signalled.map(drop).shared())
}
