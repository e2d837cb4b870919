//! What `neurosieve run` and `neurosieve schedule` share: the pipeline file with its overrides, the signals that stop, and the
//! figures for a monitor.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config;
use crate::error::{Error, Result};
use crate::flow::{Monitor, Pipeline};

/// The options of a command that works through a pipeline file.
#[derive(Debug, clap::Args)]
pub struct PipelineArgs {
    /// The pipeline file (TOML); ready ones are in pipelines/
    pub pipeline: PathBuf,
    /// Where the scans are: s3://, gs://, az://, http(s)://, file:// or a folder [pipeline: cohort.url]
    #[arg(long, value_name = "URL")]
    pub cohort: Option<String>,
    /// Where the tables are, made if missing [pipeline: tables.url]
    #[arg(long, value_name = "URL")]
    pub tables: Option<String>,
    /// Serve figures for Prometheus here while a run is at work [pipeline: run.metrics]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Write what the latest run did to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Override any key of the pipeline file; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl PipelineArgs {
    /// The pipeline with these options and `more` overrides.
    pub fn load(&self, more: impl IntoIterator<Item = String>) -> Result<Pipeline> {
        let mut overrides = self.set.clone();
        overrides.extend(self.cohort.as_ref().map(|url| quoted("cohort.url", url)));
        overrides.extend(self.tables.as_ref().map(|url| quoted("tables.url", url)));
        overrides.extend(self.metrics.map(|address| quoted("run.metrics", &address.to_string())));
        overrides.extend(more);
        config::load(Some(&self.pipeline), &overrides)
    }
}

/// An override of `key` by a text.
pub fn quoted(key: &str, value: &str) -> String {
    format!("{key}={}", toml::Value::String(value.to_owned()))
}

/// Serves the pipeline's figures, where it says so, and tells where.
pub fn monitor(pipeline: &Pipeline) -> Result<Option<Monitor>> {
    let monitor = pipeline.run.metrics.map(Monitor::serve).transpose()?;
    if let Some(monitor) = &monitor {
        eprintln!("metrics at http://{}/metrics", monitor.address());
    }
    Ok(monitor)
}

/// Turns true at the first Ctrl-C or SIGTERM, after `said` was told; from this call on neither ends the program by itself.
pub fn asked_to_stop(said: &'static str) -> Result<watch::Receiver<bool>> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("cannot listen for signals", e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("{said}");
        stop.send_replace(true);
        // Keeps the channel open: its end would mean that whoever may stop the run is gone.
        std::future::pending::<()>().await;
    });
    Ok(stopping)
}
