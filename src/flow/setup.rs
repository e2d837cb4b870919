//! A setup: what a station has for one order. The process that gives an order makes its own; `fitness.rs` makes one for the order
//! of another process.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::apart::Apart;
use super::journal::Journal;
use super::outage::Outages;
use super::roll::RunLimits;
use super::stop::StopSwitch;
use crate::score::{Settings, Worker};
use crate::store::Location;

/// Stores, networks and helpers for one order, at one station.
#[derive(Debug)]
pub struct Setup {
    /// The opened cohort.
    pub cohort: Location,
    /// The place of the tables, to which data files are written.
    pub tables: Location,
    /// The order's score settings, completed by the bundle.
    pub settings: Settings,
    /// The device threads with the bundle's networks.
    pub worker: Worker,
    /// Whether the cohort's store answers.
    pub outages: Outages,
    /// Where scans in flight are noted.
    pub journal: Option<Journal>,
    /// How a scan is screened in a process of its own; none where that is not possible.
    pub apart: Option<Apart>,
    /// Whether a file that describes a scan was found broken; only the first one is warned of.
    pub broken_sidecar: AtomicBool,
    /// Ends the work on the order early.
    pub stop: Arc<StopSwitch>,
}

impl Setup {
    /// Whether a failure, which is not that of a scan, has ended the work.
    pub(super) fn has_failed(&self) -> bool {
        self.stop.is_pressed()
    }

    /// What a writer of this order's files heeds.
    pub(super) fn limits(&self, longest_outage: Duration) -> RunLimits {
        RunLimits { stop: Arc::clone(&self.stop), longest_outage }
    }
}
