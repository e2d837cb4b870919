//! What the chunks of a run did, for its report.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::client::{JobId, Metrics};
use crate::flow::Plan;

/// What the driver of a run and its engine share.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared {
    /// Kinds of devices that have been seen.
    pub(super) devices: Arc<Mutex<BTreeSet<String>>>,
    /// What the chunks did.
    pub(super) totals: Arc<Mutex<Totals>>,
    /// The jobs that are submitted and have not ended.
    pub(super) jobs: Jobs,
}

/// Ids of jobs.
pub(super) type Jobs = Arc<Mutex<HashSet<JobId>>>;

/// What the chunks of a run did.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Chunks that were accepted.
    pub(super) accepted: u64,
    /// Jobs whose results were not accepted.
    pub(super) again: u64,
    /// Time from submission to acceptance, summed over accepted chunks.
    pub(super) elapsed: Duration,
    /// Metrics of the operators.
    pub(super) metrics: Metrics,
}

/// The chunks of a run as its plan.
pub(super) struct Chunks(pub(super) Arc<Mutex<Totals>>);

impl Plan for Chunks {
    fn shown(&self) -> String {
        let Totals { accepted, again, elapsed, metrics } = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |(name, value): (&String, &u64)| {
            if name.ends_with("time") || name == "elapsed_compute" {
                format!("{name}={:.1}s", *value as f64 / 1e9)
            } else {
                format!("{name}={value}")
            }
        };
        let metrics: Vec<String> = metrics.iter().map(shown).collect();
        format!(
            "WriteExec, ScreenExec on a cluster: chunks={accepted}, again={again}, mean chunk={:.1}s, metrics=[{}]",
            elapsed.as_secs_f64() / (*accepted).max(1) as f64,
            metrics.join(", ")
        )
    }
}
