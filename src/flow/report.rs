//! What a run reports when it has ended.

use std::time::Duration;

use serde::Serialize;

use super::audit::summary;
use super::progress::{Snapshot, StageSnapshot, bottleneck};
use super::stage::Stage;
use crate::error::Error;
use crate::tables::RunRow;

/// What a run did. As JSON it is the file of `--report`.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// How the run ended, or that it has not.
    pub outcome: RunOutcome,
    /// Why the run failed.
    pub error: Option<RunError>,
    /// The run's row in the table `runs`.
    pub run: Option<RunRow>,
    /// Scans that were pending at the start.
    pub pending: u64,
    /// Scans that finished and that this run committed.
    pub done: u64,
    /// Scans that became a row in `failures`.
    pub failed: u64,
    /// Scans that finished here after another run had committed them; the other run's results stand.
    pub superseded: u64,
    /// Scans that are not tried again, because an earlier run found their content unusable, or because they failed too often.
    pub quarantined: u64,
    /// Scans that have failed repeatedly and are tried again by a later run.
    pub waiting: u64,
    /// Scans that have an earlier content again; the outcome of that content is their current one.
    pub reverted: u64,
    /// Wall time of the screening.
    #[serde(rename = "elapsed_s", serialize_with = "as_seconds")]
    pub elapsed: Duration,
    /// Counts and times of every stage.
    #[serde(rename = "places")]
    pub stages: Vec<StageSnapshot>,
    /// The stage that the others waited for; none where nothing was done.
    pub bottleneck: Option<Stage>,
    /// The physical plan with its metrics, as EXPLAIN ANALYZE shows it.
    #[serde(skip)]
    pub plan: String,
}

impl RunReport {
    /// The report of a run that is under way.
    pub fn running(pending: u64, quarantined: u64, waiting: u64) -> Self {
        Self {
            outcome: RunOutcome::Running,
            error: None,
            run: None,
            pending,
            done: 0,
            failed: 0,
            superseded: 0,
            quarantined,
            waiting,
            reverted: 0,
            elapsed: Duration::ZERO,
            stages: Vec::new(),
            bottleneck: None,
            plan: String::new(),
        }
    }

    /// The report for another machine: the error without addresses, paths and what a server said, and the run's row without
    /// the pipeline.
    #[must_use]
    pub fn for_others(mut self, error: Option<&Error>) -> Self {
        if let (Some(shown), Some(error)) = (&mut self.error, error) {
            shown.message = summary(error);
        }
        if let Some(run) = &mut self.run {
            run.config.clear();
        }
        self
    }

    /// Whether no scan that the run selected has a result.
    pub fn all_failed(&self) -> bool {
        let before = self.run.as_ref().map_or(0, |run| run.n_already_done);
        before == 0 && self.done + self.superseded == 0 && self.failed + self.quarantined + self.waiting > 0
    }

    /// The report of a run that failed with this error. `counts` are those of its scans, where it had begun to screen.
    #[must_use]
    pub fn with_error(self, error: &Error, counts: Option<&Snapshot>) -> Self {
        let failed = Self {
            outcome: RunOutcome::Failed,
            error: Some(RunError { kind: error.kind(), message: error.text() }),
            ..self
        };
        let Some(counts) = counts else { return failed };
        Self {
            done: counts.done,
            failed: counts.failed,
            elapsed: counts.elapsed,
            stages: counts.stages.to_vec(),
            bottleneck: bottleneck(&counts.stages).map(|slowest| slowest.stage),
            ..failed
        }
    }
}

/// Why a run as a whole failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunError {
    /// [`Error::kind`].
    pub kind: &'static str,
    /// [`Error::text`].
    pub message: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// It has not ended, or was killed.
    Running,
    /// It ended with an error.
    Failed,
    /// Every selected scan had a result.
    NothingToDo,
    /// All pending scans finished, and every other selected scan had a result.
    Done,
    /// No selected scan is pending any more, and some have no result: they failed in this run, or an earlier one found their
    /// content unusable.
    DoneWithFailures,
    /// The run was asked to stop; some scans are still pending.
    Stopped,
    /// More scans failed than the limit allows; scans may still be pending.
    GaveUp,
}

impl RunOutcome {
    /// Its name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Failed => "failed",
            Self::NothingToDo => "nothing_to_do",
            Self::Done => "done",
            Self::DoneWithFailures => "done_with_failures",
            Self::Stopped => "stopped",
            Self::GaveUp => "gave_up",
        }
    }

    /// The status in the table `runs`.
    pub(super) fn status(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Failed => "failed",
            Self::GaveUp => "gave_up",
            Self::Stopped => "stopped",
            Self::NothingToDo | Self::Done | Self::DoneWithFailures => "finished",
        }
    }
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_json_of_a_report_has_the_names_that_monitors_read() {
        let report = RunReport {
            outcome: RunOutcome::NothingToDo,
            elapsed: Duration::from_millis(1500),
            plan: "not in the report".into(),
            ..RunReport::running(0, 1, 0)
        };
        let json = serde_json::to_value(report).unwrap();
        let names: BTreeSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let counts =
            ["outcome", "run", "pending", "done", "failed", "superseded", "quarantined", "waiting", "reverted"];
        let expected = counts.into_iter().chain(["elapsed_s", "places", "bottleneck", "error"]);
        assert_eq!(names, expected.collect());
        assert_eq!((&json["outcome"], &json["elapsed_s"]), (&"nothing_to_do".into(), &1.5.into()));
    }
}
