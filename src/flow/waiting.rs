//! Rolls that are written and wait for their commit.
//!
//! A commit costs about the same whatever is in it, and makes every later one dearer, as the log grows. So rolls are as
//! large as memory likes them, and commits as rare as a kill may cost: after so many scans, or so much time since the
//! last one.

use std::time::{Duration, Instant};

use crate::tables::{Receipt, TablesConfig};

/// The receipts of whole rolls.
#[derive(Debug)]
pub(super) struct Waiting {
    receipts: Vec<Receipt>,
    /// Scans in them that ended, one way or the other.
    scans: u64,
    at_most: u64,
    every: Duration,
    /// When the last commit was.
    since: Instant,
}

impl Waiting {
    pub(super) fn new(config: &TablesConfig) -> Self {
        let (at_most, every) = (config.commit_scans as u64, Duration::from_secs(config.commit_seconds));
        Self { receipts: Vec::new(), scans: 0, at_most, every, since: Instant::now() }
    }

    /// One more roll, each of whose receipts has the roll's counts.
    pub(super) fn add(&mut self, roll: Vec<Receipt>) {
        self.scans += roll.first().map_or(0, |receipt| (receipt.n_scans + receipt.n_failed) as u64);
        self.receipts.extend(roll);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    /// When they are to be committed, unless enough of them come before.
    pub(super) fn until(&self) -> Instant {
        self.since + self.every
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.scans >= self.at_most || now >= self.until()
    }

    /// All of them, with the number of their scans; the next wait begins.
    pub(super) fn take(&mut self) -> (Vec<Receipt>, u64) {
        self.since = Instant::now();
        (std::mem::take(&mut self.receipts), std::mem::take(&mut self.scans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Table;

    fn roll(n_scans: i64, n_failed: i64) -> Vec<Receipt> {
        let receipt = |table| Receipt {
            batch_id: "b".into(),
            table,
            path: "part-1.zstd.parquet".into(),
            size_bytes: 1,
            num_rows: 1,
            stats: String::new(),
            n_scans,
            n_failed,
        };
        vec![receipt(Table::Tokens), receipt(Table::Scans)]
    }

    #[test]
    fn rolls_are_due_together_by_their_scans_or_by_their_time() {
        let config = TablesConfig { commit_scans: 10, commit_seconds: 60, ..TablesConfig::default() };
        let mut waiting = Waiting::new(&config);
        let soon = Instant::now();
        waiting.add(roll(4, 1));
        assert!(!waiting.is_due(soon));
        waiting.add(roll(5, 0));
        assert!(waiting.is_due(soon));
        let (receipts, scans) = waiting.take();
        assert_eq!((receipts.len(), scans, waiting.is_empty()), (4, 10, true));

        waiting.add(roll(1, 0));
        assert!(!waiting.is_due(soon + Duration::from_secs(59)));
        assert!(waiting.is_due(waiting.until()));
    }
}
