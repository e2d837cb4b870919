//! The file of `--report`: what the latest run does or did, for a monitor.
//!
//! It is written when a run begins (`running`), when its scans are known, and when it ended or failed. So an old report is
//! never taken for that of a run that has not ended, and a run that was killed stays `running`, with the time of writing.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::json_file::JsonFile;
use super::outside_tables;
use crate::error::{Error, Result};
use crate::flow::{Progress, Run, RunReport};
use crate::terminal::errln;

/// The file, if one is asked for.
#[derive(Debug)]
pub struct ReportFile {
    file: Option<JsonFile>,
    /// The scans of the current run, once they are known.
    run: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    progress: Arc<Progress>,
    /// The report of the run as it begins.
    report: RunReport,
}

/// The JSON of the file.
#[derive(Serialize)]
struct Written<'a> {
    written_at: String,
    #[serde(flatten)]
    report: &'a RunReport,
}

impl ReportFile {
    /// The file at `path`, if one is given, of a command that writes to `tables`.
    ///
    /// # Errors
    /// [`Error::Config`] where it is among the tables or cannot be written.
    pub fn open(path: Option<&Path>, tables: &str) -> Result<Self> {
        path.map_or(Ok(()), |path| outside_tables(path, tables))?;
        Ok(Self { file: JsonFile::open(path)?, run: Mutex::default() })
    }

    /// A run begins that is to be refused where its report cannot be written.
    ///
    /// # Errors
    /// [`Error::Config`] where the file cannot be written.
    pub fn begin(&self) -> Result<()> {
        self.take_known();
        let Some(file) = self.file.as_ref().filter(|file| !file.is_stream()) else { return Ok(()) };
        file.write(&written(&RunReport::running(0, 0, 0))).map_err(|error| {
            Error::Config(format!("{}: make the file writable, or choose another (--report)", error.text()))
        })
    }

    /// A run of a schedule begins. It screens even if the file cannot be written; the reason is printed.
    pub fn began(&self) {
        self.take_known();
        self.running(&RunReport::running(0, 0, 0));
    }

    /// The scans of the run are known.
    pub fn prepared(&self, run: &Run) {
        let [pending, quarantined, waiting] = [run.pending(), run.quarantined(), run.waiting()].map(|n| n as u64);
        let report = RunReport::running(pending, quarantined, waiting);
        self.running(&report);
        let known = Known { progress: run.progress(), report };
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    /// The run ended.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn ended(&self, report: &RunReport) -> Result<()> {
        self.take_known();
        self.file.as_ref().map_or(Ok(()), |file| file.write(&written(report)))
    }

    /// The run failed; gives its report. An error of writing the file is printed.
    pub fn failed(&self, error: &Error) -> RunReport {
        let report = match self.take_known() {
            Some(Known { progress, report }) => report.with_error(error, Some(&progress.snapshot())),
            None => RunReport::running(0, 0, 0).with_error(error, None),
        };
        print_failure(self.ended(&report));
        report
    }

    fn take_known(&self) -> Option<Known> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn running(&self, report: &RunReport) {
        if let Some(file) = self.file.as_ref().filter(|file| !file.is_stream()) {
            print_failure(file.write(&written(report)));
        }
    }
}

/// The JSON of the file, as text.
pub fn json(report: &RunReport) -> String {
    serde_json::to_string(&written(report)).unwrap_or_default()
}

fn written(report: &RunReport) -> Written<'_> {
    let now: DateTime<Utc> = Utc::now();
    Written { written_at: now.to_rfc3339_opts(SecondsFormat::Secs, true), report }
}

fn print_failure(outcome: Result<()>) {
    if let Err(error) = outcome {
        errln!("error: the report of the run: {}", error.text());
    }
}
