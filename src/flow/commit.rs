//! Committing a run: receipts are gathered and their files become part of the tables.
//!
//! A commit costs about the same whatever it holds, and each one makes later ones slower, because the log grows. So rolls are
//! as large as memory allows, and commits are rare: after `tables.commit_scans` scans or `tables.commit_seconds`, whichever
//! comes first. A kill loses at most the scans since the last commit. Where the run is to end early, every roll is committed at
//! once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::error::Result as DataFusionResult;
use futures::{Stream, StreamExt as _};
use tokio::sync::Mutex;
use tracing::info;

use super::progress::Progress;
use super::roll::RunLimits;
use crate::error::Result;
use crate::store::{warn_if_slow, with_patience};
use crate::tables::{Committed, Receipt, Tables, TablesConfig};

/// The commits of one run; no other process commits for it.
pub(super) struct Commits<'a> {
    tables: &'a mut Tables,
    run_id: &'a str,
    progress: &'a Progress,
    limits: RunLimits,
    uncommitted: Uncommitted,
    /// Number of the next commit.
    epoch: i64,
    /// Scans of earlier commits that another run had committed first.
    superseded: u64,
}

impl<'a> Commits<'a> {
    pub(super) fn new(
        tables: &'a mut Tables,
        config: &TablesConfig,
        run_id: &'a str,
        progress: &'a Progress,
        limits: RunLimits,
    ) -> Self {
        Self { tables, run_id, progress, limits, uncommitted: Uncommitted::new(config), epoch: 0, superseded: 0 }
    }

    /// Commits all rolls, each of which is one batch of receipts; gives the number of superseded scans. If the plan
    /// fails, the rolls written before are still committed.
    ///
    /// # Errors
    /// The plan's own; [`crate::Error::Table`] and [`crate::Error::Storage`] where a commit fails.
    pub(super) async fn take_all(
        &mut self,
        mut rolls: impl Stream<Item = DataFusionResult<RecordBatch>> + Unpin,
    ) -> Result<u64> {
        let stop = Arc::clone(&self.limits.stop);
        let ended = loop {
            let is_stopping = stop.is_pressed();
            tokio::select! {
                roll = rolls.next() => match roll {
                    Some(Ok(roll)) => self.uncommitted.add(Receipt::from_batch(&roll)?),
                    Some(Err(error)) => break Err(error.into()),
                    None => break Ok(()),
                },
                () = tokio::time::sleep_until(self.uncommitted.due_at().into()), if !self.uncommitted.is_empty() => {}
                () = stop.pressed(), if !is_stopping => {}
            }
            if stop.is_pressed() || self.uncommitted.is_due(Instant::now()) {
                self.commit().await?;
            }
        };
        self.commit().await?;
        ended.map(|()| self.superseded)
    }

    async fn commit(&mut self) -> Result<()> {
        if self.uncommitted.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let (receipts, scans) = self.uncommitted.take();
        let Committed { tables, superseded } = self.commit_through_outages(&receipts).await?;
        info!(epoch = self.epoch, tables = tables.len(), files = receipts.len(), superseded, "committed");
        self.progress.commit(scans, started.elapsed());
        self.superseded += superseded as u64;
        self.epoch += 1;
        Ok(())
    }

    /// Repeats a commit while the store is down, as long as the run's limit allows. A commit that was made is not made again.
    async fn commit_through_outages(&mut self, receipts: &[Receipt]) -> Result<Committed> {
        // Each attempt needs the tables alone; there is one at a time.
        let tables = Mutex::new(&mut *self.tables);
        let attempt = async || tables.lock().await.commit(self.run_id, self.epoch, receipts).await;
        let committing = with_patience(self.limits.longest_outage, || warn_if_slow("committing", attempt()));
        tokio::select! {
            committed = committing => committed,
            () = self.limits.time_is_up() => Err(self.limits.error("the last commit")),
        }
    }
}

/// Receipts of rolls that are written and not yet committed.
#[derive(Debug)]
struct Uncommitted {
    receipts: Vec<Receipt>,
    /// Scans in these rolls, done and failed.
    scans: u64,
    max_scans: u64,
    max_age: Duration,
    last_commit: Instant,
}

impl Uncommitted {
    fn new(config: &TablesConfig) -> Self {
        let (max_scans, max_age) = (config.commit_scans as u64, Duration::from_secs(config.commit_seconds));
        Self { receipts: Vec::new(), scans: 0, max_scans, max_age, last_commit: Instant::now() }
    }

    /// Adds a roll; each of its receipts has the roll's counts.
    fn add(&mut self, roll: Vec<Receipt>) {
        self.scans += roll.first().map_or(0, |receipt| (receipt.n_scans + receipt.n_failed) as u64);
        self.receipts.extend(roll);
    }

    fn is_empty(&self) -> bool {
        self.receipts.is_empty()
    }

    /// When the next commit is due, unless enough scans come before.
    fn due_at(&self) -> Instant {
        self.last_commit + self.max_age
    }

    fn is_due(&self, now: Instant) -> bool {
        self.scans >= self.max_scans || now >= self.due_at()
    }

    /// Takes all receipts, with the number of their scans.
    fn take(&mut self) -> (Vec<Receipt>, u64) {
        self.last_commit = Instant::now();
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
    fn rolls_are_due_together_by_their_scans_or_by_their_age() {
        let config = TablesConfig { commit_scans: 10, commit_seconds: 60, ..TablesConfig::default() };
        let mut uncommitted = Uncommitted::new(&config);
        let soon = Instant::now();
        uncommitted.add(roll(4, 1));
        assert!(!uncommitted.is_due(soon));
        uncommitted.add(roll(5, 0));
        assert!(uncommitted.is_due(soon));
        let (receipts, scans) = uncommitted.take();
        assert_eq!((receipts.len(), scans, uncommitted.is_empty()), (4, 10, true));

        uncommitted.add(roll(1, 0));
        assert!(!uncommitted.is_due(soon + Duration::from_secs(59)));
        assert!(uncommitted.is_due(uncommitted.due_at()));
    }
}
