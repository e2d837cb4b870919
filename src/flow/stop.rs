//! The switch that ends a run early.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::Error;

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
