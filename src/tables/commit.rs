//! Commits, exactly once.
//!
//! A commit adds data files to one table's log and records, in the same atomic entry, the application transaction
//! (`<run_id>/<table>`, epoch). The library would add the same files again if asked twice, so the log is asked first:
//! load the newest log, stop if the epoch is there, else commit on top of exactly that log. A commit whose answer was
//! lost looks like an error; the next round finds its epoch and is content.
//!
//! What another run has committed first is left out ([`super::others`]).
//!
//! Tables are committed one after the other and `scans` last. A process that dies in between leaves rows that no
//! view shows, because views join on `scans`.

use std::time::Duration;

use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, Add, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaResult, DeltaTable, DeltaTableError};

use super::{Receipt, Table, Tables};
use crate::error::{Error, Result};

/// Rounds before giving up; the pauses between them sum up to about 15 s.
const ROUNDS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How often another commit may come first, and the longest pause after it.
const MEETINGS: u32 = 1000;
const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// What a commit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Tables that it added files to.
    pub tables: Vec<Table>,
    /// Scans that were left out: another run had committed them first.
    pub superseded: usize,
}

impl Tables {
    /// Makes the files of whole rolls part of their tables, `scans` last. `epoch` rises from commit to commit of a
    /// run; the same epoch again commits only what is missing. `run_id` must be new for each process that commits.
    ///
    /// Scans that another run has committed since these tables were opened are left out. Its commit between the look at
    /// the log and ours of `scans` leaves rows of ours in the other tables that no view shows.
    ///
    /// # Errors
    /// [`Error::Table`] and [`Error::Storage`] where the store does not do as asked, time and again.
    pub async fn commit(&mut self, run_id: &str, epoch: i64, receipts: &[Receipt]) -> Result<Committed> {
        let mut receipts = receipts.to_vec();
        let mut committed = Committed::default();
        let mut compared = 0;
        // It spares the other tables rows that nobody would see; where the log cannot be read now, `scans` alone will tell.
        if self.delta_mut(Table::Scans).update_state().await.is_ok() {
            self.look_at_others(run_id).await?;
            committed.superseded += self.leave_out_done(&mut receipts, &mut compared).await?;
        }
        for table in Table::SCREENED {
            let mut files: Vec<_> = receipts.iter().filter(|r| r.table == table).cloned().collect();
            let (did, superseded) = self.append(table, run_id, epoch, &mut files, &mut compared).await?;
            committed.superseded += superseded;
            committed.tables.extend(did.then_some(table));
        }
        Ok(committed)
    }

    /// Adds files to one table unless that epoch is in its log; says whether this call did, and how many scans it left out
    /// because others had committed them. `compared` as in [`Tables::leave_out_done`].
    pub(super) async fn append(
        &mut self,
        table: Table,
        run_id: &str,
        epoch: i64,
        files: &mut Vec<Receipt>,
        compared: &mut usize,
    ) -> Result<(bool, usize)> {
        let app_id = format!("{run_id}/{}", table.name());
        let (mut tried, mut superseded) = (false, 0);
        let (mut round, mut met) = (1, 0);
        // Who has committed the epoch before knows that this one is not there: nobody else commits for this run. The log says
        // so too, but only by being read from its last checkpoint on.
        let is_new = self.epochs.get(&app_id).is_some_and(|&last| last < epoch);
        loop {
            if files.is_empty() {
                return Ok((false, superseded));
            }
            let ask = tried || !is_new;
            let outcome = match last_epoch(self.delta_mut(table), &app_id, ask).await {
                // After a failed try, the epoch can only come from that try: its answer was lost, not its work.
                Ok(Some(done)) if done >= epoch => return Ok((tried, superseded)),
                Ok(_) => {
                    if table == Table::Scans {
                        self.look_at_others(run_id).await?;
                        superseded += self.leave_out_done(files, compared).await?;
                        if files.is_empty() {
                            continue;
                        }
                    }
                    tried = true;
                    let actions = files.iter().map(|file| Action::Add(add(file))).collect();
                    commit_once(self.delta_mut(table), table, &app_id, epoch, actions).await
                }
                Err(e) => Err(e),
            };
            let Err(error) = outcome else {
                self.epochs.insert(app_id, epoch);
                return Ok((true, superseded));
            };
            if came_second(&error) && met < MEETINGS {
                met += 1;
                tokio::time::sleep(SHORT_PAUSE.mul_f64(rand::random::<f64>())).await;
                continue;
            }
            if round == ROUNDS {
                return Err(Error::table(format!("cannot commit to table {}", table.name()), error));
            }
            tracing::warn!(table = table.name(), epoch, round, %error, "commit did not succeed, trying again");
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(round - 1)).await;
            round += 1;
        }
    }
}

/// Whether another commit took the version.
fn came_second(error: &DeltaTableError) -> bool {
    matches!(
        error,
        DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction { source: TransactionError::MaxCommitAttempts(_) }
    )
}

/// The newest epoch in the newest log, which is loaded in any case; none where the log is not to be asked.
async fn last_epoch(delta: &mut DeltaTable, app_id: &str, ask: bool) -> DeltaResult<Option<i64>> {
    delta.update_state().await?;
    if !ask {
        return Ok(None);
    }
    delta.snapshot()?.transaction_version(&delta.log_store(), app_id).await
}

async fn commit_once(
    delta: &mut DeltaTable,
    table: Table,
    app_id: &str,
    epoch: i64,
    actions: Vec<Action>,
) -> DeltaResult<()> {
    let now = chrono::Utc::now().timestamp_millis();
    let transaction = Transaction::new_with_last_update(app_id, epoch, Some(now));
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
    // Entries of the log that are past their time are looked for once in a run, not at each commit.
    let properties = CommitProperties::default()
        .with_application_transaction(transaction)
        .with_cleanup_expired_logs((epoch > 0).then_some(false));
    // On top of the version that others' results were read up to, or not at all. Rows of other tables may come in any order.
    let properties = if table == Table::Scans { properties.with_max_retries(0) } else { properties };
    let commit = CommitBuilder::from(properties).with_actions(actions).build(
        Some(delta.snapshot()?),
        delta.log_store(),
        operation,
    );
    let done = commit.await?;
    if !done.metrics.new_checkpoint_created {
        delta.state = Some(done.snapshot);
        return Ok(());
    }
    // What is loaded is a batch of one row for each commit since, all of which the library goes through again at every
    // further commit; the checkpoint has them in one.
    delta.state = None;
    delta.update_state().await
}

fn add(file: &Receipt) -> Add {
    Add {
        path: file.path.clone(),
        size: file.size_bytes,
        modification_time: chrono::Utc::now().timestamp_millis(),
        data_change: true,
        stats: Some(file.stats.clone()),
        ..Add::default()
    }
}
