//! Wall time of each step.

use std::time::Instant;

/// Milliseconds per step, in the order in which steps first ended.
pub(super) struct Timer {
    last: Instant,
    laps: Vec<(&'static str, f32)>,
}

impl Timer {
    pub(super) fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// Adds the time since the last lap to `step`.
    pub(super) fn lap(&mut self, step: &'static str) {
        let ms = self.last.elapsed().as_secs_f32() * 1000.0;
        match self.laps.iter_mut().find(|(name, _)| *name == step) {
            Some((_, sum)) => *sum += ms,
            None => self.laps.push((step, ms)),
        }
        self.last = Instant::now();
    }

    /// Milliseconds of every step.
    pub(super) fn laps(self) -> Vec<(&'static str, f32)> {
        self.laps
    }
}
