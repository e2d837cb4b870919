//! A station: what one process has to carry out an [`Order`](super::Order).
//!
//! A station never leaves its process: opened stores, device threads, memory and counters are its own. Where several
//! processes work on one run, each gets the same order and brings its own station.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::budget::Budget;
use super::progress::Progress;
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
    /// Ends the run early.
    pub stop: StopSwitch,
}

impl Station {
    /// Waits for a permit to begin a scan; none once the run is to stop.
    pub(super) async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        (!self.stop.is_pressed()).then_some(permit)
    }
}

/// Ends a run early: no further scan is begun, scans in flight finish.
#[derive(Debug, Default)]
pub struct StopSwitch {
    pressed: watch::Sender<bool>,
    gave_up: AtomicBool,
}

impl StopSwitch {
    /// Ends the run.
    pub fn press(&self) {
        self.pressed.send_replace(true);
    }

    /// Ends the run because too many scans failed.
    pub fn give_up(&self) {
        self.gave_up.store(true, Relaxed);
        self.press();
    }

    /// Whether the run is to end.
    pub fn is_pressed(&self) -> bool {
        *self.pressed.borrow()
    }

    /// Whether too many scans failed.
    pub fn gave_up(&self) -> bool {
        self.gave_up.load(Relaxed)
    }

    /// Completes when the run is to end.
    pub async fn pressed(&self) {
        // Fails only without a sender, and `self` is one.
        let _ = self.pressed.subscribe().wait_for(|&pressed| pressed).await;
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
}
