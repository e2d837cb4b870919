//! A station: what one process has to carry out an [`Order`](super::Order).
//!
//! A station never leaves its process: opened stores, device threads, memory and counters are its own. Where several
//! processes work on one run, each gets the same order and brings its own station.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::apart::Apart;
use super::budget::Budget;
use super::journal::Journal;
use super::outage::Outages;
use super::progress::Progress;
use crate::error::Error;
use crate::machine::cores;
use crate::score::{Settings, Worker};
use crate::store::Location;

/// What all partitions of a run share in one process.
#[derive(Debug)]
pub struct Station {
    /// The opened cohort.
    pub cohort: Location,
    /// The order's score settings, completed by the bundle.
    pub settings: Settings,
    /// The device threads with the bundle's networks.
    pub worker: Worker,
    /// The device that the worker computes on.
    pub on: tch::Device,
    /// Name of the device, for the tables: `cpu`, `cuda:0`.
    pub device: String,
    /// Scans that are worked on at the same time, over all partitions.
    pub in_flight: usize,
    /// One permit per scan in flight.
    pub permits: Arc<Semaphore>,
    /// Memory for scans in flight.
    pub budget: Arc<Budget>,
    /// Counters for the progress line and a monitor.
    pub progress: Arc<Progress>,
    /// Whether the cohort's store answers.
    pub outages: Outages,
    /// Where scans in flight are noted.
    pub journal: Option<Journal>,
    /// How a scan is screened in a process of its own; none where that is not possible.
    pub apart: Option<Apart>,
    /// Ends the run early.
    pub stop: Arc<StopSwitch>,
}

impl Station {
    /// Waits for a permit to begin a scan; none once the run is to stop.
    pub(super) async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        (!self.stop.is_pressed()).then_some(permit)
    }
}

/// Ends a run early: no further scan is begun, what is finished is committed at once, and scans in flight finish unless they are
/// abandoned.
#[derive(Debug, Default)]
pub struct StopSwitch {
    phase: watch::Sender<Phase>,
    gave_up: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// How far a run is with ending early.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Working,
    /// No further scan is begun.
    Stopping,
    /// Scans in flight are left to the next run.
    Abandoning,
}

impl StopSwitch {
    /// Ends the run.
    pub fn press(&self) {
        self.advance(Phase::Stopping);
    }

    /// Ends the run, and leaves the scans in flight to the next one.
    pub fn abandon(&self) {
        self.advance(Phase::Abandoning);
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let further = *phase < to;
            *phase = to.max(*phase);
            further
        });
    }

    /// Ends the run with an error, which is not that of a scan; the first one counts.
    pub fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.press();
    }

    /// The error that ended the run.
    pub fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the run because too many scans failed.
    pub fn give_up(&self) {
        self.gave_up.store(true, Relaxed);
        self.press();
    }

    /// Whether the run is to end.
    pub fn is_pressed(&self) -> bool {
        *self.phase.borrow() >= Phase::Stopping
    }

    /// Whether too many scans failed.
    pub fn gave_up(&self) -> bool {
        self.gave_up.load(Relaxed)
    }

    /// Completes when the run is to end.
    pub async fn pressed(&self) {
        self.reached(Phase::Stopping).await;
    }

    /// Completes when the scans in flight are left to the next run.
    pub async fn abandoned(&self) {
        self.reached(Phase::Abandoning).await;
    }

    async fn reached(&self, least: Phase) {
        // Fails only without a sender, and `self` is one.
        let _ = self.phase.subscribe().wait_for(|&phase| phase >= least).await;
    }
}

/// Threads that own networks: one per core on the processor, one on a GPU.
pub(super) fn device_threads(device: tch::Device) -> usize {
    if device == tch::Device::Cpu { cores() } else { 1 }
}

/// The device as the tables name it: `cpu`, `cuda:0`.
pub(super) fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pressed_switch_ends_waiting_and_says_whether_the_run_gave_up() {
        let switch = StopSwitch::default();
        {
            let pressed = switch.pressed();
            tokio::pin!(pressed);
            assert!(futures::poll!(pressed.as_mut()).is_pending());
            switch.press();
            pressed.await;
        }
        assert_eq!((switch.is_pressed(), switch.gave_up()), (true, false));
        switch.give_up();
        assert_eq!((switch.is_pressed(), switch.gave_up()), (true, true));
        switch.pressed().await;
    }

    #[tokio::test]
    async fn scans_in_flight_are_abandoned_once_and_for_all_and_the_first_failure_counts() {
        let switch = StopSwitch::default();
        switch.fail(Error::Bug("first".into()));
        switch.fail(Error::Bug("second".into()));
        assert!(switch.is_pressed());
        assert!(switch.take_failure().unwrap().to_string().contains("first"));
        {
            let abandoned = switch.abandoned();
            tokio::pin!(abandoned);
            assert!(futures::poll!(abandoned.as_mut()).is_pending());
        }
        switch.abandon();
        switch.press();
        switch.abandoned().await;
    }
}
